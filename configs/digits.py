"""scikit-learn's 1,797 handwritten digits, 8x8: the first run. Nothing is downloaded.

python train.py --config configs/digits.py --workdir runs/digits
python train.py --config configs/digits.py:resnet8,plain --workdir runs/digits_plain

"""

from wcjax.training import default_config, with_variant


def get_config(argument: str = "resnet8,wc"):
    """argument: 'model,variant'; variant is one of wcjax.training.config.VARIANTS, 'wc' where left out."""
    config = default_config()
    config.dataset = "digits"
    config.model = argument.partition(",")[0]
    config.augment = {"padding": 1, "flip": False}
    config.epochs = 10
    config.batch_size = 64
    config.learning_rate = 0.1
    config.schedule.milestones = (6, 8)
    config.weight_decay = 5e-4
    return with_variant(config, argument)
