"""A convolution and its two gradients as XLA computes them, which every device and dtype has."""

import jax
from jax import lax

from wcjax.models.cpu_convolution.window import Window, image_gradient_of

LAYOUT = ("NHWC", "HWIO", "NHWC")  # of the image, the kernel and the result


def forward(window: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution of x, (n, height, width, inputs), by w, (height, width, inputs, outputs)."""
    return lax.conv_general_dilated(x, w, window.strides, window.padding, dimension_numbers=LAYOUT)


image_gradient = image_gradient_of(forward)


def kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw, as the transpose of the convolution."""
    w = jax.ShapeDtypeStruct((*window.size, x.shape[3], dy.shape[3]), x.dtype)
    (dw,) = jax.linear_transpose(lambda w: forward(window, x, w), w)(dy)
    return dw
