"""Weight compander, w = Ψ(v) = a·arctan(v / b), and other weight reparameterizations for JAX."""

import importlib
import types

from wcjax import optim
from wcjax.companding import compand
from wcjax.description import describe
from wcjax.params import Reparameterized, fold, is_kernel, reparameterize
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp, WeightNorm

# Imported on first use, because they import Flax, or more. Not in __all__, because an extra may be missing.
_LAZY = ("analysis", "config", "data", "exchange", "linen", "models", "run_folder", "training")

__version__ = "0.1.0"
__all__ = [
    "Arctan",
    "Arsinh",
    "Erf",
    "PowerProp",
    "Reparameterized",
    "WeightNorm",
    "compand",
    "describe",
    "fold",
    "is_kernel",
    "optim",
    "reparameterize",
]


def __getattr__(name: str) -> types.ModuleType:
    if name not in _LAZY:
        raise AttributeError(f"module 'wcjax' has no attribute {name!r}")
    return importlib.import_module(f"wcjax.{name}")


def __dir__() -> list[str]:
    return [*__all__, *_LAZY]
