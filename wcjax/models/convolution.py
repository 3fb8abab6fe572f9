"""Convolution that is fast on CPUs where XLA's is not; everywhere else it is XLA's.

XLA's CPU back end computes dL/dw as a convolution whose window is as large as the image. Matrix products over all
pixels are 1.3 to 12 times faster for 64 channels and more. Images of 2x2 pixels it convolves 4 (64 channels) to 120
times (512) slower than one product does: docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
MANY_CHANNELS = 64  # below that XLA's form of 3x3 kernels is faster (measured at 16, 32, 64, 128, 256, 512)
FEW_PIXELS = 4  # of an image of the result; from 3x3 on one product takes 0.5 to 2.3 times XLA's time, without a rule

# Winograd's transforms for F(3, 2), from the points 0, 1, −1 and ∞: the sums over two neighbours that make three taps
# of a kernel, by four products in place of six (Lavin and Gray, arXiv 1509.09308).
_OF_X = ((1, 0, -1, 0), (0, 0.5, 0.5, 0), (0, -0.5, 0.5, 0), (0, -1, 0, 1))
_OF_DY = ((1, 0), (1, 1), (1, -1), (0, 1))
_BACK = ((1, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x, w, strides, padding):
    """x * w. Reverse-mode differentiable; for forward mode use lax.conv_general_dilated.

    x: (n, height, width, inputs). w: (size, size, inputs, outputs). strides: (int, int).
    padding: ((int, int), (int, int)). Returns (n, height out, width out, outputs).
    """
    by_xla = _by_xla(strides, padding)
    if _has_few_pixels(jax.eval_shape(by_xla, x, w)):
        return lax.platform_dependent(x, w, cpu=_by_patches(strides, padding), default=by_xla)
    return by_xla(x, w)


def _forward(x, w, strides, padding):
    return convolve(x, w, strides, padding), (x, w)


def _backward(strides, padding, saved, dy):
    x, w = saved
    by_xla = _by_xla(strides, padding)
    if _has_few_pixels(dy):
        pullback = lambda convolve: lambda x, w, dy: jax.vjp(convolve, x, w)[1](dy)
        by_patches = _by_patches(strides, padding)
        return lax.platform_dependent(x, w, dy, cpu=pullback(by_patches), default=pullback(by_xla))
    (dx,) = jax.vjp(lambda x: by_xla(x, w), x)[1](dy)

    def dw_by_xla(x, dy):
        return jax.vjp(lambda w: by_xla(x, w), w)[1](dy)[0]

    def dw_by_products(x, dy):
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        square = w.shape[:2] == (3, 3) and strides == (1, 1)
        if square and dy.shape[1] % 2 == dy.shape[2] % 2 == 0:
            dw = _by_winograd(padded.astype(jnp.promote_types(x.dtype, jnp.float32)), dy)
        else:
            dw = _by_products(padded, dy, w.shape[:2], strides)
        return dw.astype(w.dtype)

    if w.shape[:2] == (1, 1) or min(w.shape[2:]) >= MANY_CHANNELS:
        return dx, lax.platform_dependent(x, dy, cpu=dw_by_products, default=dw_by_xla)
    return dx, dw_by_xla(x, dy)


convolve.defvjp(_forward, _backward)


def _has_few_pixels(y):
    return y.shape[1] * y.shape[2] <= FEW_PIXELS


def _by_xla(strides, padding):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)


def _by_patches(strides, padding):
    """The same as one product, of all that the window sees at each pixel with w. Writes as many copies of x."""

    def convolve(x, w):
        wide = jnp.promote_types(x.dtype, jnp.float32)  # the gradient of x is a sum over the copies
        padded = jnp.pad(x.astype(wide), ((0, 0), *padding, (0, 0)))
        patches = jnp.concatenate(_places(padded, w.shape[:2], strides), axis=-1)
        y = lax.dot_general(patches, w.astype(wide).reshape(-1, w.shape[3]), (((3,), (0,)), ((), ())))
        return y.astype(x.dtype)

    return convolve


def _places(x, size, strides):
    """For each place in the window, row by row, the pixels of x that it sees: [(n, h out, w out, c)]; x is padded."""
    last = [(x.shape[1 + i] - size[i]) // strides[i] * strides[i] + 1 for i in range(2)]
    return [
        x[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1]] for i in range(size[0]) for j in range(size[1])
    ]


def _over_pixels(x, dy):
    """Σ over images and pixels: (n, h, w, i), (n, h, w, o) -> (i, o)."""
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


def _by_products(x, dy, size, strides):
    """dL/dw by one product for each place in the window; x is padded."""
    products = jnp.array([_over_pixels(pixels, dy) for pixels in _places(x, size, strides)])
    return products.reshape(*size, *products.shape[1:])


def _by_winograd(x, dy):
    """dL/dw of a 3x3 kernel by 16 products over a quarter of the pixels; x is padded, dy of even height and width."""
    dy = dy.astype(x.dtype)
    corner = [[x[:, i : i + dy.shape[1] : 2, j : j + dy.shape[2] : 2] for j in range(4)] for i in range(4)]
    pixel = [[dy[:, i::2, j::2] for j in range(2)] for i in range(2)]
    products = [
        [_over_pixels(_combine(_OF_X[p], _OF_X[q], corner), _combine(_OF_DY[p], _OF_DY[q], pixel)) for q in range(4)]
        for p in range(4)
    ]
    return jnp.array([[_combine(row, column, products) for column in _BACK] for row in _BACK])


def _combine(rows, columns, of):
    """Σᵢⱼ rowsᵢ·columnsⱼ·ofᵢⱼ, without the terms that are zero."""
    terms = ((r * c, of[i][j]) for i, r in enumerate(rows) for j, c in enumerate(columns) if r * c)
    return functools.reduce(jnp.add, (x if factor == 1 else factor * x for factor, x in terms))


def conv_general_dilated(x, w, strides, padding, **others):
    """`convolve` as the `conv_general_dilated` of a flax.linen.Conv without groups and dilation."""
    return convolve(x, w, tuple(strides), tuple(map(tuple, padding)))
