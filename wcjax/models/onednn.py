"""A convolution and its two gradients by oneDNN, which jaxlib for x86 contains but XLA seldom calls.

The call is private to XLA. Its configuration is the message OneDnnConvolutionConfig of
xla/service/cpu/onednn_config.proto in github.com/openxla/xla. A configuration that jaxlib cannot read ends the process,
and so does an array that oneDNN has no code for (float64; bfloat16 on a processor with AVX2).

All arrays are float32. window: a `wcjax.models.cpu_convolution.Window`.
"""

import json

import jax
import jax.numpy as jnp
from jax import lax


def forward(window, x, w):
    """The convolution of x, (n, height, width, inputs), by w, (height, width, inputs, outputs)."""
    return _convolution(x, w, "HWIO", window.strides, window.padding)


def image_gradient(window, dy, w):
    """dL/dx. The kernel is at least as large as the strides.

    Pixels of x whose row and column leave the same remainders by the strides see the same taps of the kernel, so each
    pair of remainders is one convolution of dy.
    """
    n, inputs = dy.shape[0], w.shape[2]
    pixels = tuple(-(-length // stride) for length, stride in zip(window.image, window.strides, strict=True))
    parts = []
    for row_taps, *rows in _remainders(window, 0):
        for column_taps, *columns in _remainders(window, 1):
            crop = ((0, 0, 0), *((min(low, 0), min(high, 0), 0) for low, high in (rows, columns)), (0, 0, 0))
            cropped = lax.pad(dy, jnp.zeros((), dy.dtype), crop)
            padding = tuple((max(low, 0), max(high, 0)) for low, high in (rows, columns))
            parts.append(_convolution(cropped, w[row_taps, column_taps][::-1, ::-1], "HWOI", (1, 1), padding))
    dx = jnp.stack(parts).reshape(*window.strides, n, *pixels, inputs).transpose(2, 3, 0, 4, 1, 5)
    dx = dx.reshape(n, pixels[0] * window.strides[0], pixels[1] * window.strides[1], inputs)
    return dx[:, : window.image[0], : window.image[1]]


def _remainders(window, axis):
    """For each remainder by the stride: (slice of the taps, zeros before and after dy; fewer than 0 cut it)."""
    stride, taps, before = window.strides[axis], window.size[axis], window.padding[axis][0]
    pixels = -(-window.image[axis] // stride)
    for remainder in range(stride):
        first = (remainder + before) % stride
        last = first + (taps - 1 - first) // stride * stride
        low = (last - remainder - before) // stride
        high = pixels - window.result[axis] + (remainder + before - first) // stride
        yield slice(first, None, stride), low, high


def kernel_gradient(window, x, dy):
    """dL/dw, as a convolution of x by dy along rows alone, for each column of the kernel.

    What oneDNN takes for columns are the channels of x, and what it takes for channels, and sums over, are the columns
    and the images. It is fast only if these come last, so x is transposed.
    """
    (taps, taps_of_row), (stride, stride_of_row) = window.size, window.strides
    n, height, width, outputs = dy.shape
    lengths = (height - 1) * stride + taps, (width - 1) * stride_of_row + taps_of_row
    pads = [
        (low, length - pixels - low, 0)
        for (low, _), pixels, length in zip(window.padding, window.image, lengths, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    transposed = [x[:, :, first::stride_of_row].transpose(1, 3, 0, 2) for first in range(stride_of_row)]
    transposed = lax.optimization_barrier(transposed)  # without it XLA transposes once for each column of the kernel
    columns = [transposed[tap % stride_of_row][..., tap // stride_of_row :][..., :width] for tap in range(taps_of_row)]
    columns = jnp.stack(columns).reshape(taps_of_row, lengths[0], -1, n * width)
    dy = dy.transpose(1, 0, 2, 3).reshape(height, 1, n * width, outputs)
    dw = _convolution(columns, dy, "HWIO", (1, 1), ((0, 0), (0, 0)), dilation=(stride, 1))
    return dw.transpose(1, 0, 2, 3)


def _convolution(x, w, layout, strides, padding, dilation=(1, 1)):
    """oneDNN's convolution of an NHWC image by a kernel of this layout; padding >= 0."""
    at = {of: layout.index(of) for of in layout}
    size = w.shape[at["H"]], w.shape[at["W"]]
    pixels = [
        (length + sum(pads) - (taps - 1) * spread - 1) // stride + 1
        for length, taps, stride, pads, spread in zip(x.shape[1:3], size, strides, padding, dilation, strict=True)
    ]
    numbers = lambda values: [str(value) for value in values]
    images = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    kernel = {
        "input_feature_dim": str(at["I"]),
        "output_feature_dim": str(at["O"]),
        "spatial_dims": numbers((at["H"], at["W"])),
        "shape": numbers(w.shape),
    }
    config = {
        "dims": "4",
        "input": images,
        "kernel": {"dims": "4", "filter": kernel},
        "output": images,
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
        jax.ShapeDtypeStruct((x.shape[0], *pixels, w.shape[at["O"]]), x.dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, w)
