"""Convolutions that are as fast on a CPU as PyTorch's; on other devices they are XLA's.

`conv_general_dilated` replaces `jax.lax.conv_general_dilated`, for example in any Flax layer:
`nn.Conv(features, (3, 3), conv_general_dilated=wcjax.models.cpu_convolution.conv_general_dilated)`.

On a CPU each of the three results of a convolution (forward, gradient of the image, gradient of the kernel) is computed
in the form that is fastest for its shape. The forms are in `onednn`, `products` (of matrices) and `xla`:

- Kernels of 1x1 are matrix products. With AVX-512 so are the forward pass and the gradient of the image if the result
  has at most FEW_PIXELS pixels.
- Gradients of 3x3 kernels of stride 1 use Winograd's transforms, as matrix products, if both channel numbers are at
  least MANY_CHANNELS (with AVX-512, MANY_CHANNELS_AVX512).
- oneDNN does the rest, except for gradients of images where the stride is larger than the kernel, which XLA computes.

If oneDNN cannot be called (see `onednn.is_usable`), products serve kernel gradients of many channels and images of few
pixels, and XLA everything else. docs/performance_notes.md has the measurements behind the choice.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from wcjax.models.cpu_convolution import onednn, products, xla
from wcjax.models.cpu_convolution.window import Window
from wcjax.models.cpu_convolution.xla import LAYOUT

SWITCH = "WCJAX_CPU_CONVOLUTION"  # environment variable: 'xla' for lax.conv_general_dilated and nothing else
MANY_CHANNELS = 64  # from this number on, Winograd is the fastest for gradients of 3x3 kernels, and products beat XLA
MANY_CHANNELS_AVX512 = 160  # the same next to oneDNN with AVX-512
FEW_PIXELS = 4  # up to this number in the result, XLA takes up to 120 times as long as one product


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    **others: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with the same arguments, and the same results up to rounding.

    On a CPU this is faster for two-dimensional convolutions of (n, height, width, inputs) by (height, width, inputs,
    outputs) in float32 and bfloat16 (which is computed in float32 and rounded once), without dilation, feature groups
    or a precision. Every other convolution is computed by lax.conv_general_dilated itself, and so is every convolution
    inside shard_map and on a mesh with explicit axes.

    The faster ones are differentiable in reverse mode any number of times, and they work under vmap (oneDNN's calls run
    sequentially) and jax.checkpoint. Forward mode raises a TypeError (custom_vjp), unless the environment
    variable WCJAX_CPU_CONVOLUTION=xla is set before.
    """
    by_lax = functools.partial(lax.conv_general_dilated, lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation)
    jax.eval_shape(functools.partial(by_lax, **others))  # raises lax's errors; oneDNN would end the process
    dimension_numbers = others.pop("dimension_numbers", None)
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    plain = lhs.ndim == 4 and lhs.dtype == rhs.dtype and lhs.dtype in (jnp.float32, jnp.bfloat16) and not dilated
    plain &= not (_has_sharding_in_type(lhs) or _has_sharding_in_type(rhs))
    if os.environ.get(SWITCH) == "xla" or not plain or any(value not in (None, 1) for value in others.values()):
        return by_lax(dimension_numbers=dimension_numbers, **others)
    resolve_layout = functools.partial(lax.conv_dimension_numbers, lhs.shape, rhs.shape)
    if resolve_layout(dimension_numbers) != resolve_layout(LAYOUT):
        return by_lax(dimension_numbers=dimension_numbers)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    window = Window(lhs.shape[1:3], rhs.shape[:2], tuple(window_strides), tuple((low, high) for low, high in padding))
    narrow = all(0 <= min(pads) <= max(pads) < taps for pads, taps in zip(window.padding, window.size, strict=True))
    if not narrow or 0 in (*lhs.shape, *rhs.shape) or min(window.result) < 1:
        return by_lax(dimension_numbers=dimension_numbers)
    return convolve(window, lhs, rhs)


def _has_sharding_in_type(x):
    """Whether x is inside a shard_map, or on a mesh with explicit axes.

    Gradients of a custom_vjp would have other types there than their arguments.
    """
    return any(kind != AxisType.Auto for kind in jax.typeof(x).sharding.mesh.axis_types)


# A convolution and its two gradients are one sum over three arrays, so the gradients of each are the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(window: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    """x * w: x (n, *window.image, inputs), w (*window.size, inputs, outputs) -> (n, *window.result, outputs)."""
    return _by_platform(_choose_cpu_forward(window), xla.forward, window, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def image_gradient(window: Window, dy: jax.Array, w: jax.Array) -> jax.Array:
    """dL/dx from dL/dy, for the x and the result of `convolve`."""
    return _by_platform(_choose_cpu_image_gradient(window), xla.image_gradient, window, dy, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw from dL/dy, for the w and the result of `convolve`."""
    on_cpu = _choose_cpu_kernel_gradient(window, x.shape[3], dy.shape[3])
    return _by_platform(on_cpu, xla.kernel_gradient, window, x, dy)


def _define_gradients(function, gradient_a, gradient_b):
    """Defines the gradients of function(window, a, b): gradient_a(window, gradient, a, b) and gradient_b(...)."""

    def backward(window, arrays, gradient):
        return gradient_a(window, gradient, *arrays), gradient_b(window, gradient, *arrays)

    function.defvjp(lambda window, a, b: (function(window, a, b), (a, b)), backward)


_define_gradients(
    convolve,
    lambda window, dy, x, w: image_gradient(window, dy, w),
    lambda window, dy, x, w: kernel_gradient(window, x, dy),
)
_define_gradients(
    image_gradient,
    lambda window, x, dy, w: convolve(window, x, w),
    lambda window, x, dy, w: kernel_gradient(window, x, dy),
)
_define_gradients(
    kernel_gradient,
    lambda window, w, x, dy: image_gradient(window, dy, w),
    lambda window, w, x, dy: convolve(window, x, w),
)


def _by_platform(on_cpu, default, window, a, b):
    """on_cpu(window, a, b) in float32 on a CPU, and default(window, a, b) on other devices."""

    def in_float32(a, b):
        return on_cpu(window, a.astype(jnp.float32), b.astype(jnp.float32)).astype(a.dtype)

    return lax.platform_dependent(a, b, cpu=in_float32, default=functools.partial(default, window))


def _has_few_pixels(window):
    return window.num_pixels <= FEW_PIXELS


@functools.cache
def has_avx512() -> bool:
    """Whether the processor has AVX-512; False if the system does not tell."""
    try:
        return "avx512f" in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _choose_cpu_forward(window):
    if window.is_1x1 or (_has_few_pixels(window) and (has_avx512() or not onednn.is_usable())):
        return products.forward
    return onednn.forward if onednn.is_usable() else xla.forward


def _choose_cpu_image_gradient(window):
    if window.is_1x1:
        return products.image_gradient_of_1x1
    is_covered = all(taps >= stride for taps, stride in zip(window.size, window.strides, strict=True))
    by_onednn = onednn.is_usable() and is_covered
    if _has_few_pixels(window) and (has_avx512() or not by_onednn):
        return products.image_gradient
    return onednn.image_gradient if by_onednn else xla.image_gradient


def _choose_cpu_kernel_gradient(window, inputs, outputs):
    channels = min(inputs, outputs)
    # Winograd's F(3, 2): 3x3, stride 1, an even number of rows and columns.
    is_even = all(pixels % 2 == 0 for pixels in window.result)
    has_winograd = window.size == (3, 3) and window.strides == (1, 1) and is_even
    least = MANY_CHANNELS_AVX512 if onednn.is_usable() and has_avx512() else MANY_CHANNELS
    if has_winograd and channels >= least and not _has_few_pixels(window):
        return products.winograd_kernel_gradient
    if not window.is_1x1 and onednn.is_usable():
        return onednn.kernel_gradient
    if window.is_1x1 or channels >= MANY_CHANNELS or _has_few_pixels(window):
        return products.kernel_gradient
    return xla.kernel_gradient
