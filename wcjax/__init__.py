"""Weight compander, w = Ψ(v) = a·arctan(v / b), and its kin for JAX."""

import importlib

from wcjax import optim
from wcjax.companding import compand
from wcjax.description import describe
from wcjax.params import Reparameterized, fold, is_kernel, reparameterize
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp, WeightNorm

_LATER = ("analysis", "data", "io", "linen", "models", "training")  # these import Flax, or more

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
    *_LATER,
]


def __getattr__(name):
    if name not in _LATER:
        raise AttributeError(f"module 'wcjax' has no attribute {name!r}")
    return importlib.import_module(f"wcjax.{name}")
