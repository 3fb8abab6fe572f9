"""Config of a run that takes a second: train.py --config tests/faults/tiny.py"""

from tests.training import runs
from wcjax.config import default_config


def get_config():
    config = default_config()
    config.update(runs.tiny(epochs=6))
    return config
