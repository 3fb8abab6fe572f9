"""Training runs: `train(config, workdir)`, and what reads the folder that a run leaves."""

import importlib

from wcjax.training.config import check_config, check_keys, default_config, with_variant

_LATER = {"train": "loop", "evaluate_folded": "evaluate", "load_folded": "evaluate"}  # these import Orbax and optax
__all__ = ["check_config", "check_keys", "default_config", "with_variant", *_LATER]


def __getattr__(name):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
