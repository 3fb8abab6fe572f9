"""The networks of the paper in Flax Linen; every convolution and linear weight is companded on request.

In each the first layer is called 'stem' and the last 'head'.
"""

import numbers

import flax.linen as nn
import jax.numpy as jnp

from wcjax.checks import LEARN_NETWORK, check_learn, check_psi
from wcjax.errors import InputError, unknown
from wcjax.models import layers, resnet, vgg, wide_resnet

_NETWORKS = {  # name: (constructor, its options)
    **{
        name: (getattr(resnet, name), ("stem", "kernel_init"))
        for name in ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50")
    },
    "wrn28_10": (wide_resnet.wrn28_10, ("kernel_init", "dropout")),
    "vgg16_bn": (vgg.vgg16_bn, ("dropout",)),
    "vgg19_bn": (vgg.vgg19_bn, ("dropout",)),
}
_ALLOWED = {"stem": resnet.STEMS, "kernel_init": tuple(layers.KERNEL_INITS)}
NAMES = tuple(_NETWORKS)
OPTIONS = (*_ALLOWED, "dropout")


def options(name: str) -> tuple[str, ...]:
    """Which of OPTIONS the network called `name` has."""
    return _NETWORKS[name][1]


def create(name: str, num_classes: int, reparam=None, learn: str = "none", dtype=jnp.float32, **chosen) -> nn.Module:
    """The network called `name`. model.apply(variables, images, train=bool) gives logits.

    Args:
      name: one of `NAMES`.
      num_classes: number of logits.
      reparam: the Ψ of every convolution and linear weight, WeightNorm() or None; batch norm and biases have none.
      learn: 'none'; 'fine', a learned (a, b) for each layer; 'channel', one for each output channel; 'coarse', one for
        the whole network.
      dtype: of the computation. Parameters and batch-norm statistics are float32, and so is Ψ.
      chosen: options of this network. ResNets: stem='cifar' | 'imagenet'. ResNets and WRN: kernel_init='kaiming'
        (uniform, gain √2) | 'torch' (its default). WRN and VGG: dropout, a share (0.3 and 0.5 where left out).

    Returns:
      A Flax module. Images (batch, height, width, channels), normalized floats; logits (batch, num_classes), float32.

    Raises:
      InputError (a ValueError): unknown name, option or value of one. ValueError: no Ψ, or one that cannot learn.
    """
    if name not in _NETWORKS:
        raise unknown("network", name, NAMES)
    constructor, known = _NETWORKS[name]
    for option, value in chosen.items():
        if option not in known:
            raise unknown(f"option of {name}", option, known)
        if option == "dropout":
            if not (isinstance(value, numbers.Real) and 0 <= value < 1):
                raise InputError(f"dropout must be a number of at least 0 and below 1, found {value!r}.")
        elif value not in _ALLOWED[option]:
            raise InputError(f"{option} must be one of {', '.join(map(repr, _ALLOWED[option]))}, found {value!r}.")
    if reparam is not None:
        check_psi(reparam)
    check_learn(reparam, learn, LEARN_NETWORK)
    return constructor(num_classes=num_classes, reparam=reparam, learn=learn, dtype=dtype, **chosen)
