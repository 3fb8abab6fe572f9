"""Training runs: `train(config, workdir)`, and what reads a finished run folder."""

import importlib

from wcjax.extras import needs

needs("wcjax.training", "train")

_MODULES = {  # imported when they are needed, because Orbax takes seconds
    "train": "wcjax.training.loop",
    "load_folded": "wcjax.training.result",
    "evaluate_folded": "wcjax.training.evaluate",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
