"""Weight compander, w = Ψ(v) = a·arctan(v / b), and its kin for JAX."""

from wcjax import optim
from wcjax.optim import compand
from wcjax.params import describe, fold, is_kernel, reparameterize
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp, WeightNorm

__version__ = "0.1.0"
__all__ = [
    "Arctan",
    "Arsinh",
    "Erf",
    "PowerProp",
    "WeightNorm",
    "compand",
    "describe",
    "fold",
    "is_kernel",
    "optim",
    "reparameterize",
]
