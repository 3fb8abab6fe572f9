"""The networks of the paper in Flax Linen, whose convolutions and linear weights can be companded.

In each network the first layer is called 'stem' and the last layer 'head'. To add a network, write a file with a
constructor that takes the keywords of `create`, and give it a line in `NETWORKS`.
"""

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wcjax.checks import check_learn, check_psi
from wcjax.errors import InputError, unknown
from wcjax.extras import needs
from wcjax.psi import LEARN_NETWORK, Psi

needs("wcjax.models", "flax")

import flax.linen as nn  # noqa: E402

from wcjax.models import layers, resnet, vgg, wide_resnet  # noqa: E402

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet.resnet8,
    "resnet20": resnet.resnet20,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "wrn28_10": wide_resnet.wrn28_10,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
}
NAMES = NETWORKS.keys()  # also of networks that are added later
_CHOICES = {"stem": resnet.STEMS, "kernel_init": tuple(layers.KERNEL_INITS)}
OPTIONS = (*_CHOICES, "dropout")


def options(name: str) -> tuple[str, ...]:
    """The names in OPTIONS that the network called `name` takes."""
    keywords = inspect.signature(NETWORKS[name]).parameters
    return tuple(option for option in OPTIONS if option in keywords)


def create(
    name: str,
    num_classes: int,
    reparam: Psi | None = None,
    learn: str = "none",
    dtype: jax.typing.DTypeLike = jnp.float32,
    **settings: Any,
) -> nn.Module:
    """The network called `name`. model.apply(variables, images, train=bool) gives logits.

    Args:
      name: a key of `NETWORKS`.
      num_classes: number of logits.
      reparam: the Ψ of every convolution and linear weight, WeightNorm() or None; batch norm and biases have none.
      learn: 'none'; 'fine', a learned (a, b) for each layer; 'channel', one for each output channel; 'coarse', one for
        the whole network.
      dtype: of the computation. Parameters and batch-norm statistics are float32, and so is Ψ.
      settings: options of this network. ResNets: stem='cifar' | 'imagenet'. ResNets and WRN: kernel_init='kaiming'
        (uniform, gain √2) | 'torch' (its default). WRN and VGG: dropout, a share; the defaults are 0.3 and 0.5.

    Returns:
      A Flax module. Images (batch, height, width, channels), normalized floats; logits (batch, num_classes), float32.

    Raises:
      InputError (a ValueError): unknown name, option or value of one. ValueError: reparam is not a Ψ, or has no
      a and b to learn.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NAMES)
    for option, value in settings.items():
        if option not in options(name):
            raise unknown(f"option of {name}", option, options(name))
        if option == "dropout":
            if not (isinstance(value, numbers.Real) and 0 <= float(value) < 1):
                raise InputError(f"dropout must be a number of at least 0 and below 1, found {value!r}.")
        elif value not in _CHOICES[option]:
            raise InputError(f"{option} must be one of {', '.join(map(repr, _CHOICES[option]))}, found {value!r}.")
    if reparam is not None:
        check_psi(reparam)
    check_learn(reparam, learn, LEARN_NETWORK)
    return NETWORKS[name](num_classes=num_classes, reparam=reparam, learn=learn, dtype=dtype, **settings)
