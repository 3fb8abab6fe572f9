"""ImageNet (ILSVRC 2012) with ResNet50: the paper, arXiv 2306.16993.

    python train.py --config configs/imagenet.py:resnet50,wc --workdir runs/imagenet_wc --config.data_dir=DIR
    python train.py --config configs/imagenet.py:resnet50,plain --workdir runs/imagenet_plain --config.data_dir=DIR

DIR: a folder with train/<class>/<image> and val/<class>/<image>, or a tensorflow-datasets folder in which imagenet2012
is prepared as array_record (that needs the extra 'data' as well). Needs pip install 'wcjax[stream]'. Top-1 accuracy on
the official validation split in % (mean ± std of 3 seeds, 300 epochs): plain 76.80 ± .11, wc 77.02 ± .08. Only these
two are in the paper. That split chooses the best epoch too: val_accuracy and test_accuracy in summary.json are the
same there.

Time: not measured. It is for an accelerator with many cores beside it: 300 epochs are 384 million images, and what a
core decodes is in benchmarks/decode_speed.py. Take as many data_workers as there are cores; each needs 0.2 GB of memory
and room for four batches of 39 MB, two of them in shared memory (docker run --shm-size=2g). Every 1,000 steps the run
is saved within the epoch.

OPEN in the paper, and how it is read here: 'random crop 224' (a random resized crop, area 0.08 to 1, to 224), and as
in configs/cifar10.py.
"""

from wcjax.config import default_config, with_variant


def get_config(argument: str = "resnet50,wc"):
    """argument: 'model,variant'; the variants are those of wcjax.config.keys.VARIANTS, 'wc' where left out."""
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
