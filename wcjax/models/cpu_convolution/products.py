"""A convolution and its two gradients by matrix products. All arrays are float32."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from wcjax.models.cpu_convolution.window import Window, image_gradient_of

# Winograd's transforms for F(3, 2), from the points 0, 1, −1 and ∞. Three taps of a kernel, each a sum over two
# neighbours, take four products instead of six (Lavin and Gray, arXiv 1509.09308).
_X = ((1, 0, -1, 0), (0, 0.5, 0.5, 0), (0, -0.5, 0.5, 0), (0, -1, 0, 1))
_DY = ((1, 0), (1, 1), (1, -1), (0, 1))
_BACK = ((1, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, 1))


def forward(window: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    """One product of w with the patch of x in the window at each pixel. Writes as many copies of x as w has taps."""
    patches = jnp.concatenate(_pixels_by_tap(window, x), axis=-1)
    return lax.dot_general(patches, w.reshape(-1, w.shape[3]), (((3,), (0,)), ((), ())))


image_gradient = image_gradient_of(forward)


def image_gradient_of_1x1(window: Window, dy: jax.Array, w: jax.Array) -> jax.Array:
    """dL/dx for a kernel of 1x1 pixels without padding: one product, and zeros for the pixels that strides skip."""
    dx = lax.dot_general(dy, w[0, 0], (((3,), (1,)), ((), ())))
    zeros = [
        (0, length - (pixels - 1) * stride - 1, stride - 1)
        for length, pixels, stride in zip(window.image, window.result, window.strides, strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *zeros, (0, 0, 0)))


def kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw by one product for each tap of the kernel."""
    products = jnp.array([_sum_over_pixels(pixels, dy) for pixels in _pixels_by_tap(window, x)])
    return products.reshape(*window.size, *products.shape[1:])


def winograd_kernel_gradient(window: Window, x: jax.Array, dy: jax.Array) -> jax.Array:
    """dL/dw of a 3x3 kernel of stride 1 by 16 products over a quarter of the pixels. dy has even height and width."""
    x = _padded(window, x)
    corner = [[x[:, i : i + dy.shape[1] : 2, j : j + dy.shape[2] : 2] for j in range(4)] for i in range(4)]
    pixel = [[dy[:, i::2, j::2] for j in range(2)] for i in range(2)]
    products = [
        [_sum_over_pixels(_combine(_X[p], _X[q], corner), _combine(_DY[p], _DY[q], pixel)) for q in range(4)]
        for p in range(4)
    ]
    return jnp.array([[_combine(row, column, products) for column in _BACK] for row in _BACK])


def _padded(window, x):
    return jnp.pad(x, ((0, 0), *window.padding, (0, 0)))


def _pixels_by_tap(window, x):
    """For each tap of the kernel, row by row, the pixels of x that it meets: [(n, h out, w out, c)]."""
    x, (height, width), (h, w) = _padded(window, x), window.size, window.strides
    last = [(x.shape[1] - height) // h * h + 1, (x.shape[2] - width) // w * w + 1]
    return [x[:, i : i + last[0] : h, j : j + last[1] : w] for i in range(height) for j in range(width)]


def _sum_over_pixels(x, dy):
    """Σ over images and pixels: (n, h, w, i), (n, h, w, o) -> (i, o)."""
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    product = lambda x, dy: lax.dot_general(x, dy, (((0,), (0,)), ((), ())))
    if x.shape[1] <= dy.shape[1]:
        return product(x, dy)
    # A product takes twice as long if its result has more rows than columns. XLA would turn it back without a barrier.
    return lax.optimization_barrier(product(dy, x)).T


def _combine(rows, columns, arrays):
    """Σᵢⱼ rowsᵢ·columnsⱼ·arraysᵢⱼ, without the terms that are zero."""
    terms = ((r * c, arrays[i][j]) for i, r in enumerate(rows) for j, c in enumerate(columns) if r * c)
    return functools.reduce(jnp.add, (x if factor == 1 else factor * x for factor, x in terms))
