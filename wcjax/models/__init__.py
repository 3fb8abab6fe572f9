"""The networks of the paper in Flax Linen; every convolution and linear weight is companded on request.

In each the first layer is called 'stem' and the last 'head'.
"""

import flax.linen as nn
import jax.numpy as jnp

from wcjax.errors import InputError, unknown
from wcjax.models import layers, resnet
from wcjax.params import LEARN_NETWORK, check_learnable, check_psi

_RESNET_OPTIONS = {"stem": resnet.STEMS, "kernel_init": layers.KERNEL_INITS}
_NETWORKS = {  # name: (constructor, {option: allowed values})
    name: (getattr(resnet, name), _RESNET_OPTIONS)
    for name in ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50")
}
NAMES = tuple(_NETWORKS)


def options(name: str) -> dict[str, tuple]:
    """The options of the network called `name`, and the values that each may have."""
    return _NETWORKS[name][1]


def create(name: str, num_classes: int, reparam=None, learn: str = "none", dtype=jnp.float32, **chosen) -> nn.Module:
    """The network called `name`. model.apply(variables, images, train=bool) gives logits.

    Args:
      name: one of `NAMES`.
      num_classes: number of logits.
      reparam: the Ψ of every convolution and linear weight, WeightNorm() or None; batch norm and biases have none.
      learn: 'none'; 'fine', a learned (a, b) for each layer; 'coarse', one for the whole network.
      dtype: of the computation. Parameters and batch-norm statistics are float32, and so is Ψ.
      chosen: options of this network. ResNets: stem='cifar' | 'imagenet', kernel_init='kaiming' (uniform, gain √2) |
        'torch' (its default).

    Returns:
      A Flax module. Images (batch, height, width, channels), normalized floats; logits (batch, num_classes), float32.

    Raises:
      InputError (a ValueError): unknown name, option or value of one. ValueError: no Ψ, or one that cannot learn.
    """
    if name not in _NETWORKS:
        raise unknown("network", name, NAMES)
    constructor, allowed = _NETWORKS[name]
    for option, value in chosen.items():
        if option not in allowed:
            raise unknown(f"option of {name}", option, allowed)
        if value not in allowed[option]:
            raise InputError(f"{option} must be one of {', '.join(map(repr, allowed[option]))}, found {value!r}.")
    if reparam is not None:
        check_psi(reparam)
    check_learnable(reparam, learn, allowed=LEARN_NETWORK)
    return constructor(num_classes=num_classes, reparam=reparam, learn=learn, dtype=dtype, **chosen)
