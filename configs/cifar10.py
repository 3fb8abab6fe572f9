"""CIFAR-10."""

from wcjax.training import default_config, with_variant

BEST = {  # (a, b) of table I; the small networks, which the paper has not, take those of ResNet18
    "resnet34": (0.8, 0.5),
}


def get_config(argument: str = "resnet18,wc"):
    config = default_config()
    config.dataset = "cifar10"
    config.model = argument.partition(",")[0]
    config.reparam.a, config.reparam.b = BEST.get(config.model, (1.0, 0.6))
    config.batch_size = 128
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.epochs = 200
    config.schedule = {"milestones": (90, 136), "factor": 0.1}
    return with_variant(config, argument)
