"""The window of a two-dimensional convolution, and the transpose of one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax


class Window(NamedTuple):
    """A convolution apart from its arrays and their channels."""

    image: tuple[int, ...]  # height and width of x
    size: tuple[int, ...]  # height and width of the kernel
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # zeros above and below, left and right, each fewer than the size

    @property
    def result(self) -> tuple[int, ...]:
        """Height and width of the result."""
        axes = zip(self.image, self.size, self.strides, self.padding, strict=True)
        return tuple((pixels + sum(pads) - taps) // stride + 1 for pixels, taps, stride, pads in axes)

    @property
    def num_pixels(self) -> int:
        """The number of pixels of the result."""
        return math.prod(self.result)

    @property
    def is_1x1(self) -> bool:
        return self.size == (1, 1)


def image_gradient_of(forward: Callable[[Window, jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """(window, dy, w) -> dL/dx of the convolution forward(window, x, w), as its transpose."""

    def image_gradient(window: Window, dy: jax.Array, w: jax.Array) -> jax.Array:
        x = jax.ShapeDtypeStruct((dy.shape[0], *window.image, w.shape[2]), dy.dtype)
        (dx,) = jax.linear_transpose(lambda x: forward(window, x, w), x)(dy)
        return dx

    return image_gradient
