"""TinyImageNet with ResNet50: the paper, arXiv 2306.16993.

    wcjax-train --config tiny_imagenet:resnet50,wc --workdir runs/tiny_wc --config.data_dir=DIR
    wcjax-train --config tiny_imagenet:resnet50,plain --workdir runs/tiny_plain --config.data_dir=DIR

DIR is the unpacked folder tiny-imagenet-200, or the folder that contains it. This needs pip install 'wcjax[stream]'.

The paper's top-1 accuracy on the official validation split in % (mean ± std of 3 seeds, 300 epochs) is 65.08 ± .38 for
plain and 65.93 ± .12 for wc. The paper has no other variants. The same split chooses the best epoch, so the best val
accuracy and the test accuracy in summary.json are equal.

The time was not measured. The run needs a GPU or TPU: an epoch is 781 steps of 128 images at 224x224, as many pixels as
109 epochs of CIFAR-10. Use as many data_workers as there are cores. Each worker needs 0.2 GB of memory and room for
four batches.

OPEN in the paper, with the choice made here in brackets: 'random crop 224' of a 64x64 image (a random resized crop,
area 0.08 to 1, to 224); the stem (ImageNet's, 7x7 with stride 2 and a max pool, because the images have 224x224
pixels); the statistics for normalization (ImageNet's); and the same as in configs/cifar10.py.
"""

from wcjax.config import default_config, with_variant


def get_config(argument: str = "resnet50,wc"):
    """argument: 'model,variant'; wcjax.config.VARIANTS lists the variants, and the default is 'wc'."""
    config = default_config()
    config.dataset = "tiny_imagenet"
    config.model = argument.partition(",")[0]
    config.stem = "imagenet"
    config.reparam.a, config.reparam.b = 0.7, 0.8
    config.batch_size = 128
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.epochs = 300
    config.schedule = {"milestones": (75, 150, 225), "factor": 0.1}
    config.data_workers = 8
    return with_variant(config, argument)
