"""A convolution and its two gradients by oneDNN, which jaxlib for x86 contains but XLA seldom calls.

The call is private to XLA. Its configuration is the message OneDnnConvolutionConfig of
xla/service/cpu/onednn_config.proto in github.com/openxla/xla. A configuration that jaxlib cannot read ends the process,
and so does an array that oneDNN has no code for (float64; bfloat16 on a processor with AVX2).

All arrays are float32.
"""

import functools
import json
import logging
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wcjax.models.cpu_convolution.window import Window

JAX_VERSIONS = ((0, 10, 2), (0, 13))  # the call was tried from the first of these up to, but not including, the second
SIZE_AT_ONCE = 2**17  # elements of x or dy that a kernel gradient reads at a time; measured from 2**17 to 2**21
FEWEST_AT_ONCE = 8  # images, however large they are

log = logging.getLogger(__name__)


@functools.cache
def is_usable() -> bool:
    """Whether the call gives the right values, tried once in a process. If it does not, a warning is logged.

    With several CPU devices it is False without a trial, because XLA does not know how to share the call between them.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if not JAX_VERSIONS[0] <= jax.__version_info__ < JAX_VERSIONS[1]:
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
    forms = forward, image_gradient, kernel_gradient
    arguments = (x, w), (dy, w), (x, dy)
    compute = lambda arguments: [form(window, *arrays) for form, arrays in zip(forms, arguments, strict=True)]
    expected = y, dx[:, 1 : 1 + window.image[0], : window.image[1]], dw
    return all(map(np.array_equal, jax.jit(compute)(arguments), expected))


def forward(window: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution of x, (n, height, width, inputs), by w, (height, width, inputs, outputs)."""
    return _convolution(x, w, "HWIO", window.strides, window.padding)


def image_gradient(window: Window, dy: jax.Array, w: jax.Array) -> jax.Array:
    """dL/dx. The kernel is at least as large as the strides.

    Pixels of x whose row and column leave the same remainders by the strides see the same taps of the kernel, so each
    pair of remainders is one convolution of dy.
    """
    n, inputs = dy.shape[0], w.shape[2]
    pixels = tuple(-(-length // stride) for length, stride in zip(window.image, window.strides, strict=True))
    parts = []
    for row_taps, rows in _remainders(window, 0):
        for column_taps, columns in _remainders(window, 1):
            crop = ((0, 0, 0), *((min(low, 0), min(high, 0), 0) for low, high in (rows, columns)), (0, 0, 0))
            cropped = lax.pad(dy, jnp.zeros((), dy.dtype), crop)
            padding = tuple((max(low, 0), max(high, 0)) for low, high in (rows, columns))
            parts.append(_convolution(cropped, w[row_taps, column_taps][::-1, ::-1], "HWOI", padding=padding))
    dx = jnp.stack(parts).reshape(*window.strides, n, *pixels, inputs).transpose(2, 3, 0, 4, 1, 5)
    dx = dx.reshape(n, pixels[0] * window.strides[0], pixels[1] * window.strides[1], inputs)
    return dx[:, : window.image[0], : window.image[1]]


def _remainders(window, axis):
    """For each remainder by the stride: (slice of the taps, (zeros before, after dy); a negative number crops it)."""
    stride, taps, before = window.strides[axis], window.size[axis], window.padding[axis][0]
    pixels = -(-window.image[axis] // stride)
    for remainder in range(stride):
        first = (remainder + before) % stride
        last = first + (taps - 1 - first) // stride * stride
        low = (last - remainder - before) // stride
        high = pixels - window.result[axis] + (remainder + before - first) // stride
        yield slice(first, None, stride), (low, high)


def kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw, as a sum of convolutions, each of a few images.

    oneDNN is fast if the axis that it sums over is the last one of x, and if the images fit into the cache: hence
    SIZE_AT_ONCE.
    """
    n, size = x.shape[0], max(x.size, dy.size) // x.shape[0]
    at_once = min(n, max(FEWEST_AT_ONCE, _power_of_two(SIZE_AT_ONCE // size)))
    if n == at_once:
        return _kernel_gradient(window, x, dy)
    x, dy = (jnp.pad(array, ((0, -n % at_once), (0, 0), (0, 0), (0, 0))) for array in (x, dy))

    def add(part, dw):
        # A slice and not a reshape: XLA would compute x once more, in the shape of the parts.
        images = (lax.dynamic_slice_in_dim(array, part * at_once, at_once) for array in (x, dy))
        return dw + _kernel_gradient(window, *images)

    return lax.fori_loop(0, -(-n // at_once), add, jnp.zeros((*window.size, x.shape[-1], dy.shape[-1]), x.dtype))


def _power_of_two(n):
    """The largest power of two that is not above n; 0 for 0."""
    return (1 << n.bit_length()) >> 1


def _kernel_gradient(window, x, dy):
    """The convolution of x by dy: images are the channels to sum over, and channels of x are a third spatial axis."""
    pads = [
        (low, (result - 1) * stride + taps - pixels - low, 0)
        for pixels, taps, stride, (low, _), result in zip(*window, window.result, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    x, dy = x.transpose(1, 2, 3, 0)[None], dy.transpose(1, 2, 0, 3)[:, :, None]
    return _convolution(x, dy, "HWCIO", dilation=(*window.strides, 1))[0]


def _convolution(x, w, layout, strides=None, padding=None, dilation=None):
    """oneDNN's convolution of an image (n, *pixels, inputs) by a kernel of this layout. I and O are its channels."""
    axes = [axis for axis, letter in enumerate(layout) if letter not in "IO"]
    strides, dilation = (factors or (1,) * len(axes) for factors in (strides, dilation))
    padding = padding or ((0, 0),) * len(axes)
    pixels = [
        (length + sum(pads) - (w.shape[axis] - 1) * spread - 1) // stride + 1
        for length, axis, stride, pads, spread in zip(x.shape[1:-1], axes, strides, padding, dilation, strict=True)
    ]
    numbers = lambda values: [str(value) for value in values]
    dims = str(len(layout))
    images = {"batch_dim": "0", "feature_dim": str(len(axes) + 1), "spatial_dims": numbers(range(1, len(axes) + 1))}
    kernel = {
        "input_feature_dim": str(layout.index("I")),
        "output_feature_dim": str(layout.index("O")),
        "spatial_dims": numbers(axes),
        "shape": numbers(w.shape),
    }
    config = {
        "dims": dims,
        "input": {"dims": dims, "data": images},
        "kernel": {"dims": dims, "filter": kernel},
        "output": {"dims": dims, "data": images},
        "window": {
            "pad_left": numbers(low for low, _ in padding),
            "pad_right": numbers(high for _, high in padding),
            "strides": numbers(strides),
            "window_dilations": numbers(dilation),
        },
        "feature_groups": "1",
    }
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((x.shape[0], *pixels, w.shape[layout.index("O")]), x.dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, w)
