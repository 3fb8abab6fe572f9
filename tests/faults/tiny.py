"""Config of a run that takes a second: train.py --config tests/faults/tiny.py"""

from tests.training import runs
from wcjax import models, training


def get_config():
    models._NETWORKS["tiny"], models.NAMES = runs.TINY, ("tiny",)
    config = training.default_config()
    config.update(runs.tiny(epochs=6))
    return config
