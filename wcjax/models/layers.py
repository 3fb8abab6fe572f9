"""What the networks share: companded convolutions and linear layers with the paper's initial values, and batch norm."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax import linen
from wcjax.models import cpu_convolution

KERNEL_INITS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),  # gain √2
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # torch's default: uniform in ±1/√fan_in
}


def shared(module: nn.Module):
    """The reparam to hand to the layers of `module`, and their learn: one LearnedPair for all where learn='coarse'."""
    if module.learn == "coarse":
        return linen.LearnedPair(module.reparam, name="pair"), "none"
    return module.reparam, module.learn


def conv(reparam, learn, dtype, kernel_init, use_bias=False):
    """Convolution padded like torch's padding=(size − 1) // 2: conv(features, size, stride, name=...)."""

    def make(features: int, size: int, stride: int = 1, *, name: str):
        pad = (size - 1) // 2
        return linen.Conv(
            features,
            (size, size),
            (stride, stride),
            padding=((pad, pad), (pad, pad)),
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=kernel_init,
            conv_general_dilated=cpu_convolution.conv_general_dilated,
            reparam=reparam,
            learn=learn,
            name=name,
        )

    return make


def norm(train: bool, dtype):
    """Batch norm with torch's momentum (statistics move by 0.1) and epsilon, 1e-5; statistics are float32."""
    return functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def dense(x, features: int, reparam, learn, dtype, kernel_init="kaiming", *, name: str):
    """Applies a linear layer with bias to x, (..., inputs) -> (..., features). Its bias starts at 0, or as in torch."""
    bound = 1 / math.sqrt(x.shape[-1])

    def torch_bias(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return linen.Dense(
        features,
        dtype=dtype,
        kernel_init=KERNEL_INITS[kernel_init],
        bias_init=torch_bias if kernel_init == "torch" else nn.initializers.zeros,
        reparam=reparam,
        learn=learn,
        name=name,
    )(x)
