"""CIFAR-10 with the networks of the paper, arXiv 2306.16993 (tables II and following), and small ones for a CPU.

    wcjax-train --config cifar10:resnet18,wc --workdir runs/r18_wc --config.data_dir=DIR
    wcjax-train --config cifar10:resnet18,plain --workdir runs/r18_plain --config.data_dir=DIR
    wcjax-train --config cifar10:resnet8,wc --workdir runs/r8_wc --config.data_dir=DIR

DIR is a tensorflow-datasets folder in which cifar10 is prepared as array_record, or a folder with a cifar10.npz. If DIR
has neither, the error says how to prepare the data. The paper's test accuracy in % (mean ± std of 5 seeds, 200 epochs):

    | model    | plain       | pp          | wn          | wc          | arsinh | erf   | learned     |
    | resnet18 | 94.04 ± .08 | 92.94 ± .17 | 94.26 ± .14 | 94.44 ± .12 | 94.34  | 94.36 | 94.16 ± .08 |
    | resnet34 | 93.69 ± .30 | 93.29 ± .16 | 94.17 ± .22 | 94.43 ± .25 | 94.68  | 94.52 | 94.46 ± .07 |
    | resnet50 | 93.31 ± .36 | 93.47 ± .14 | 93.89 ± .23 | 94.06 ± .27 | 93.82  | 93.87 | 94.80 ± .14 |
    | vgg16_bn | 93.27 ± .12 |             |             | 93.52 ± .19 |        |       |             |
    | vgg19_bn | 93.21 ± .08 |             |             | 93.33 ± .25 |        |       |             |

VGG is trained with the schedule and the decay of CIFAR-100. The variant after the comma is a column name of the table,
'coarse' for one learned pair in the network, or 'channel' for a learned pair of each output channel, which is not in
the paper.

resnet8 (78,042 parameters) and resnet20 are not in the paper. They are trained for 20 epochs, with the a and b of
ResNet18. On two CPU cores with AVX-512, an epoch of resnet8 takes 22 to 24 s (1,880 to 2,100 images/s), and 5 epochs
gave 70 to 72 % on test. ResNet18 takes 6 minutes an epoch there (1.0 s a step), so it needs a GPU or TPU.

OPEN in the paper, with the choice made here in brackets: the augmentation (4-pixel zero pad, random crop, flip), the
gain of Kaiming-uniform (√2, fan-in; kernel_init='torch' is torch's default), the parameters that decay (all; the
gradient gets λ·w), and the width of VGG's linear layers (512).
"""

from wcjax.config import default_config, with_variant

BEST_AB = {  # table I
    "resnet18": (1.0, 0.6),
    "resnet34": (0.8, 0.5),
    "resnet50": (1.0, 0.6),
    "vgg16_bn": (0.7, 0.7),
    "vgg19_bn": (0.5, 0.7),
}
SMALL = ("resnet8", "resnet20")


def get_config(argument: str = "resnet18,wc"):
    """argument: 'model,variant'; wcjax.config.VARIANTS lists the variants, and the default is 'wc'."""
    config = default_config()
    config.dataset = "cifar10"
    config.model = argument.partition(",")[0]
    config.reparam.a, config.reparam.b = BEST_AB.get(config.model, BEST_AB["resnet18"])
    config.batch_size = 128
    config.learning_rate = 0.1
    config.momentum = 0.9
    if config.model.startswith("vgg"):
        config.weight_decay, config.epochs = 5e-4, 200
        config.schedule = {"milestones": (60, 120, 160), "factor": 0.2}
    else:
        config.weight_decay = 1e-4
        config.epochs, config.schedule.milestones = (20, (10, 15)) if config.model in SMALL else (200, (90, 136))
    return with_variant(config, argument)
