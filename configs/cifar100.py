"""CIFAR-100 with the networks of the paper, arXiv 2306.16993.

    wcjax-train --config cifar100:resnet50,wc --workdir runs/r50_wc --config.data_dir=DIR
    wcjax-train --config cifar100:resnet50,plain --workdir runs/r50_plain --config.data_dir=DIR

DIR is as in configs/cifar10.py. The paper's test accuracy in % (mean ± std of 5 seeds, 200 epochs):

    | model    | plain       | pp           | wn          | wc          | arsinh | erf   |
    | resnet18 | 76.47 ± .20 | 74.70 ± 1.32 | 76.83 ± .22 | 76.73 ± .09 | 76.59  | 76.80 |
    | resnet34 | 77.07 ± .45 | (see below)  | 76.98 ± .39 | 77.54 ± .42 | 77.21  | 77.26 |
    | resnet50 | 76.17 ± .69 | 75.23 ± .25  | 76.10 ± .25 | 77.73 ± .40 | 76.76  | 77.51 |
    | wrn28_10 | 80.09 ± .14 |              |             | 80.24 ± .36 |        |       |
    | vgg16_bn | 72.48 ± .35 |              |             | 72.74 ± .25 |        |       |
    | vgg19_bn | 71.34 ± .14 |              |             | 71.86 ± .26 |        |       |

For ResNet34 with PP, the paper repeats the number of ResNet18. resnet8 and resnet20 are not in the paper. They use a =
1.0 and b = 0.6, because their initial |w| reaches 0.61. The networks of the paper need a GPU or TPU.

OPEN in the paper: as in configs/cifar10.py.
"""

from wcjax.config import default_config, with_variant

BEST_AB = {  # table I, and the text for wrn28_10
    "resnet18": (0.6, 0.6),
    "resnet34": (0.7, 0.8),
    "resnet50": (1.0, 0.8),
    "wrn28_10": (0.7, 0.7),
    "vgg16_bn": (0.7, 1.0),
    "vgg19_bn": (0.7, 0.8),
}


def get_config(argument: str = "resnet18,wc"):
    """argument: 'model,variant'; wcjax.config.VARIANTS lists the variants, and the default is 'wc'."""
    config = default_config()
    config.dataset = "cifar100"
    config.model = argument.partition(",")[0]
    config.reparam.a, config.reparam.b = BEST_AB.get(config.model, (1.0, 0.6))
    config.batch_size = 128
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.epochs = 200
    config.schedule = {"milestones": (60, 120, 160), "factor": 0.2}
    return with_variant(config, argument)
