"""ImageNet (ILSVRC 2012) with ResNet50: the paper, arXiv 2306.16993.

    wcjax-train --config imagenet:resnet50,wc --workdir runs/imagenet_wc --config.data_dir=DIR
    wcjax-train --config imagenet:resnet50,plain --workdir runs/imagenet_plain --config.data_dir=DIR

DIR is a folder with train/<class>/<image> and val/<class>/<image>, or a tensorflow-datasets folder in which
imagenet2012 is prepared as array_record. The first needs pip install 'wcjax[stream]', the second 'wcjax[stream,data]'.

The paper's top-1 accuracy on the official validation split in % (mean ± std of 3 seeds, 300 epochs) is 76.80 ± .11 for
plain and 77.02 ± .08 for wc. The paper has no other variants. The same split chooses the best epoch, so the best val
accuracy and the test accuracy in summary.json are equal.

The time was not measured. The run needs an accelerator in a machine with many cores, because 300 epochs are 384 million
images to decode (benchmarks/decode_speed.py measures how many a core decodes). Use as many data_workers as there are
cores. Each worker needs 0.2 GB of memory and room for four batches of 39 MB, two of them in shared memory (docker run
--shm-size=2g). The run is saved every 1,000 steps within the epoch.

OPEN in the paper, with the choice made here in brackets: 'random crop 224' (a random resized crop, area 0.08 to 1, to
224), and the same as in configs/cifar10.py.
"""

from wcjax.config import default_config, with_variant


def get_config(argument: str = "resnet50,wc"):
    """argument: 'model,variant'; wcjax.config.VARIANTS lists the variants, and the default is 'wc'."""
    config = default_config()
    config.dataset = "imagenet"
    config.model = argument.partition(",")[0]
    config.stem = "imagenet"
    config.reparam.a, config.reparam.b = 0.6, 0.7
    config.batch_size = 256
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.epochs = 300
    config.schedule = {"milestones": (75, 150, 225), "factor": 0.1}
    config.data_workers = 16
    config.checkpoint_every = 1000
    return with_variant(config, argument)
