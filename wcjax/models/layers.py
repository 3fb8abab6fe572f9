"""The layers of all networks: convolutions and linear layers with the paper's initial values, and batch norm."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax import linen
from wcjax.models import cpu_convolution
from wcjax.precision import widen
from wcjax.psi import Psi

Reparam = Psi | linen.LearnedPair | None

KERNEL_INITS = {
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),  # gain √2
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # torch's default: uniform in ±1/√fan_in
}


def layer_reparam(module: Any) -> tuple[Reparam, str]:
    """The reparam and the learn of all layers of `module`. If its learn is 'coarse', they share one LearnedPair."""
    if module.learn == "coarse":
        return linen.LearnedPair(module.reparam, name="pair"), "none"
    return module.reparam, module.learn


def conv(
    reparam: Reparam,
    learn: str,
    dtype: jax.typing.DTypeLike,
    initializer: nn.initializers.Initializer,
    use_bias: bool = False,
) -> Callable[..., nn.Module]:
    """A function make(features, size, stride, name=...) of layers that pad like padding=(size − 1) // 2 in torch."""

    def make(features: int, size: int, stride: int = 1, *, name: str) -> nn.Module:
        pad = (size - 1) // 2
        return linen.Conv(
            features,
            (size, size),
            (stride, stride),
            padding=((pad, pad), (pad, pad)),
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=initializer,
            conv_general_dilated=cpu_convolution.conv_general_dilated,
            reparam=reparam,
            learn=learn,
            name=name,
        )

    return make


class BatchNorm(nn.Module):
    """nn.BatchNorm over all axes but the last, with the same variables, as one product and one sum.

    y = x·s + (bias − mean·s) with s = scale / √(variance + epsilon). The form (x − mean)·s + bias of Flax has XLA write
    x − mean and dL/dy·s to memory for the backward pass. Statistics are computed in float32 (float64 if x has it).
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        x = widen(x)
        mean, variance = running_mean.value, running_variance.value
        if not self.use_running_average:
            mean = x.mean(axes)
            variance = jnp.maximum(0, jnp.square(x).mean(axes) - jnp.square(mean))
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_variance, variance)):
                    average = self.momentum * running.value + (1 - self.momentum) * value
                    running.value = average.astype(running.value.dtype)
        slope = scale * jax.lax.rsqrt(variance + self.epsilon)
        slope, shift = (jnp.expand_dims(vector, axes) for vector in (slope, bias - mean * slope))
        return (x * slope + shift).astype(self.dtype)


def norm(train: bool, dtype: jax.typing.DTypeLike) -> Callable[..., nn.Module]:
    """A function make(name=...) of batch norms with torch's epsilon and momentum (statistics move by 0.1)."""
    return functools.partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def dense(
    reparam: Reparam, learn: str, dtype: jax.typing.DTypeLike, kernel_init: str = "kaiming"
) -> Callable[..., jax.Array]:
    """A function apply(x, features, name=...), which applies a linear layer to x, (..., inputs).

    It does not return the layer, as that of `conv` does, because the bound of torch's bias needs the number of inputs.
    kernel_init: a key of KERNEL_INITS. The bias starts as in torch with 'torch', and at 0 otherwise.
    """

    def apply(x: jax.Array, features: int, *, name: str) -> jax.Array:
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

    return apply
