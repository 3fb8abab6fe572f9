"""Convolutions that are as fast on a CPU as PyTorch's; on other devices they are XLA's.

`conv_general_dilated` replaces `jax.lax.conv_general_dilated`, for example in any Flax layer:
`nn.Conv(features, (3, 3), conv_general_dilated=wcjax.models.cpu_convolution.conv_general_dilated)`.

On a CPU each of the three results of a convolution (forward, gradient of the image, gradient of the kernel) is computed
in the form that is fastest for its shape. The table has the least CPU time in ms of several runs, on one core with AVX2
(AMD EPYC, 512 kB of L2 cache) that other programs used too, jaxlib 0.10.2, with huge pages. The runs differ by a factor
of up to 1.3.

    kernel /stride  channels   pixels batch | forward      | image         | kernel gradient
                                            | XLA   oneDNN | XLA    oneDNN | XLA   oneDNN  Winograd  products
    3x3             3 to 16    32x32  128   | 15.4     3.5 | 15.1      8.1 |  20.4     7.0
    3x3             16 to 16   32x32  128   | 18.4     7.5 | 13.9      7.6 | 104.9    17.0
    3x3             32 to 32   16x16  128   |  9.5     7.5 |  9.8      7.6 |  30.0    13.3     22.4
    3x3             64 to 64   8x8    128   | 11.6     8.8 | 11.8      8.8 |  20.4    12.1     10.0
    3x3             64 to 64   32x32  32    | 38.2    26.4 | 39.6     28.8 | 104.7    75.7     40.8
    3x3             128 to 128 16x16  32    | 33.2    25.1 | 43.3     28.7 | 102.2             33.1
    3x3             256 to 256 8x8    32    | 43.3    30.7 | 45.3     31.1 |  56.0             23.6
    3x3             512 to 512 4x4    32    | 44.0    36.7 | 49.3     27.5 |  40.5             23.9
    3x3             512 to 512 2x2    32    | 794     11.1 | 798      14.3 |  10.5     4.6     10.3
    3x3 /2          16 to 32   32x32  128   |  9.7     6.4 | 18.3      8.1 |  24.2     8.6               20.0
    3x3 /2          64 to 128  32x32  32    | 25.1    21.2 | 24.0     20.0 |  83.1    35.2               33.8
    3x3 /2          256 to 512 8x8    32    | 23.4    17.3 | 23.8     17.3 |  29.7    21.5               25.5
    7x7 /2          3 to 64    224x224 4    | 14.4    14.1 | 36.6     41.1 | 101.1    38.1              121.3
                                            | XLA product  | XLA   product |
    1x1             256 to 64  32x32  16    | 13.3    10.3 | 13.5     13.3 |  99.8                        16.6
    1x1             64 to 256  32x32  16    | 10.8     8.4 | 13.6     11.3 | 145.2                         8.6

The last products but one were measured before they were computed in the shape of the last ones. With AVX-512 (AMD
EPYC, 1 MB of L2 cache), oneDNN gains more than the products do:

    kernel /stride  channels   pixels batch | forward         | image           | kernel gradient
                                            | oneDNN product  | oneDNN product  | oneDNN  Winograd  products
    3x3             16 to 16   32x32  128   |  3.9    24.0    |  3.8    15.2    |  4.5     17.9      19.6
    3x3             64 to 64   32x32  32    |  9.9    30.2    | 10.0    23.3    | 14.6     20.1      37.6
    3x3             128 to 128 16x16  32    |  9.5    22.2    |  9.5    18.7    | 12.0     13.2      21.6
    3x3             160 to 160 32x32  4     |  7.7    15.1    |  7.5     9.5    |  8.8      6.4      12.4
    3x3             256 to 256 8x8    32    |  8.9    15.0    |  9.4    12.4    | 11.6      8.4      15.9
    3x3             512 to 512 4x4    32    | 12.1    12.8    | 13.4    11.3    | 11.7      8.3      13.9
    3x3             512 to 512 2x2    32    |  4.9     3.2    |  5.9     3.2    |  2.6      2.3       3.7
    1x1             256 to 64  32x32  16    |  3.1     3.4    |  2.5     2.6    |  5.1                3.0
    1x1             64 to 256  32x32  16    |  2.6     2.7    |  3.1     3.2    |  5.7                3.0

oneDNN is in `wcjax.models.onednn`, the rest in `wcjax.models.convolution_products`. If oneDNN cannot be called (see
`has_onednn`), products serve kernel gradients of many channels and images of few pixels, and XLA everything else.
"""

import functools
import logging
import math
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from wcjax.models import convolution_products as products
from wcjax.models import onednn
from wcjax.models.window import Window

SWITCH = "WCJAX_CPU_CONVOLUTION"  # environment variable: 'xla' for lax.conv_general_dilated and nothing else
JAXLIBS = ((0, 10, 2), (0, 13))  # oneDNN's call is tried from the first of these versions on, and below the second
LAYOUT = ("NHWC", "HWIO", "NHWC")
MANY_CHANNELS = 64  # from this number on, Winograd is the fastest for gradients of 3x3 kernels, and products beat XLA
MANY_CHANNELS_AVX512 = 160  # the same next to oneDNN with AVX-512
FEW_PIXELS = 4  # up to this number in the result, XLA takes up to 120 times as long as one product

log = logging.getLogger(__name__)


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
    outputs) in float32 and bfloat16 (which is computed in float32 and rounded once), without dilation, groups and a
    precision. Every other convolution is computed by lax.conv_general_dilated itself, and so is every convolution
    inside shard_map and on a mesh with explicit axes.

    The faster ones are differentiable in reverse mode any number of times, and they work under vmap (oneDNN's calls run
    one after the other) and jax.checkpoint. Forward mode raises a TypeError (custom_vjp), unless the environment
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
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != _layout(lhs, rhs):
        return by_lax(dimension_numbers=dimension_numbers)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    window = Window(lhs.shape[1:3], rhs.shape[:2], tuple(window_strides), tuple(map(tuple, padding)))
    narrow = all(0 <= min(pads) <= max(pads) < taps for pads, taps in zip(window.padding, window.size, strict=True))
    if not narrow or 0 in (*lhs.shape, *rhs.shape) or min(window.result) < 1:
        return by_lax(dimension_numbers=dimension_numbers)
    return convolve(window, lhs, rhs)


def _has_sharding_in_type(x):
    """Whether x is inside a shard_map, or on a mesh with explicit axes.

    Gradients of a custom_vjp would have other types there than their arguments.
    """
    return any(kind != AxisType.Auto for kind in jax.typeof(x).sharding.mesh.axis_types)


def _layout(lhs, rhs):
    return lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)


# A convolution and its two gradients are one sum over three arrays, so the gradients of each are the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(window: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    """x * w: x (n, *window.image, inputs), w (*window.size, inputs, outputs) -> (n, *window.result, outputs)."""
    return _by_platform(_cpu_forward(window), _xla_forward, window, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def image_gradient(window: Window, dy: jax.Array, w: jax.Array) -> jax.Array:
    """dL/dx from dL/dy, for the x and the result of `convolve`."""
    return _by_platform(_cpu_image_gradient(window), _xla_image_gradient, window, dy, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw from dL/dy, for the w and the result of `convolve`."""
    form = _cpu_kernel_gradient(window, x.shape[3], dy.shape[3])
    return _by_platform(form, _xla_kernel_gradient, window, x, dy)


def _differentiable(function, gradient_a, gradient_b):
    """Defines the gradients of function(window, a, b): gradient_a(window, gradient, a, b) and gradient_b(...)."""

    def backward(window, arrays, gradient):
        return gradient_a(window, gradient, *arrays), gradient_b(window, gradient, *arrays)

    function.defvjp(lambda window, a, b: (function(window, a, b), (a, b)), backward)


_differentiable(
    convolve,
    lambda window, dy, x, w: image_gradient(window, dy, w),
    lambda window, dy, x, w: kernel_gradient(window, x, dy),
)
_differentiable(
    image_gradient,
    lambda window, x, dy, w: convolve(window, x, w),
    lambda window, x, dy, w: kernel_gradient(window, x, dy),
)
_differentiable(
    kernel_gradient,
    lambda window, w, x, dy: image_gradient(window, dy, w),
    lambda window, w, x, dy: convolve(window, x, w),
)


def _by_platform(on_cpu, default, window, a, b):
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


def _is_one_product(window):
    return window.is_1x1 or (_has_few_pixels(window) and (has_avx512() or not has_onednn()))


def _cpu_forward(window):
    if _is_one_product(window):
        return products.forward
    return onednn.forward if has_onednn() else _xla_forward


def _cpu_image_gradient(window):
    if window.is_1x1:
        return products.image_gradient_of_1x1
    if _is_one_product(window):
        return products.image_gradient
    if has_onednn() and all(taps >= stride for taps, stride in zip(window.size, window.strides, strict=True)):
        return onednn.image_gradient
    return products.image_gradient if _has_few_pixels(window) else _xla_image_gradient


def _cpu_kernel_gradient(window, inputs, outputs):
    channels = min(inputs, outputs)
    is_square = window.size == (3, 3) and window.strides == (1, 1)
    is_even = all(pixels % 2 == 0 for pixels in window.result)
    least = MANY_CHANNELS_AVX512 if has_onednn() and has_avx512() else MANY_CHANNELS
    if channels >= least and is_square and is_even and not _has_few_pixels(window):
        return products.winograd_kernel_gradient
    if not window.is_1x1 and has_onednn():
        return onednn.kernel_gradient
    if window.is_1x1 or channels >= MANY_CHANNELS or _has_few_pixels(window):
        return products.kernel_gradient
    return _xla_kernel_gradient


def _xla_forward(window, x, w):
    return lax.conv_general_dilated(x, w, window.strides, window.padding, dimension_numbers=LAYOUT)


def _xla_image_gradient(window, dy, w):
    x = jax.ShapeDtypeStruct((dy.shape[0], *window.image, w.shape[2]), dy.dtype)
    (dx,) = jax.linear_transpose(lambda x: _xla_forward(window, x, w), x)(dy)
    return dx


def _xla_kernel_gradient(window, x, dy):
    w = jax.ShapeDtypeStruct((*window.size, x.shape[3], dy.shape[3]), x.dtype)
    (dw,) = jax.linear_transpose(lambda w: _xla_forward(window, x, w), w)(dy)
    return dw


@functools.cache
def has_onednn() -> bool:
    """Whether oneDNN's call gives the right values, tried once in a process. If it does not, one line of log says so.

    With several CPU devices it is False without a trial, because XLA does not know how to share the call between them.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if not JAXLIBS[0] <= jax.__version_info__ < JAXLIBS[1]:
        problem = f"jax {jax.__version__} was not tried"
    else:
        # jaxlib cannot serialize the call, so JAX's persistent cache stores no program with it, and warns each time.
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .* MemoryError")
        try:
            with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
                problem = "" if _agrees() else "oneDNN gives wrong values"
        except Exception as error:  # a jaxlib that was built in another way may raise anything
            problem = (str(error) or repr(error)).splitlines()[0]
    if problem:
        log.warning("Convolutions on this CPU are slower than they could be: %s.", problem)
    return not problem


def _agrees() -> bool:
    """Whether each form of oneDNN gives exactly the values of NumPy's sums. All values are small integers."""
    window = Window((5, 6), (3, 3), (2, 1), ((1, 1), (0, 2)))
    shapes = (2, *window.image, 8), (3, 3, 8, 16), (2, *window.result, 16)
    x, w, dy = ((np.arange(math.prod(shape), dtype=np.float32) * 7 % 5 - 2).reshape(shape) for shape in shapes)
    padded, y, dw = np.pad(x, ((0, 0), *window.padding, (0, 0))), np.zeros_like(dy), np.zeros_like(w)
    dx, (height, width) = np.zeros_like(padded), window.result
    for i, j in np.ndindex(*window.size):
        pixels = np.s_[:, i : i + 2 * height : 2, j : j + width]
        y += padded[pixels] @ w[i, j]
        dx[pixels] += dy @ w[i, j].T
        dw[i, j] = np.tensordot(padded[pixels], dy, ((0, 1, 2), (0, 1, 2)))
    forms = onednn.forward, onednn.image_gradient, onednn.kernel_gradient
    arguments = (x, w), (dy, w), (x, dy)
    compute = lambda arguments: [form(window, *arrays) for form, arrays in zip(forms, arguments, strict=True)]
    expected = y, dx[:, 1 : 1 + window.image[0], : window.image[1]], dw
    return all(map(np.array_equal, jax.jit(compute)(arguments), expected))
