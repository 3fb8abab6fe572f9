"""The arctangent, and the squares and the product of sine and cosine, in float32 by polynomials.

On jax 0.10, XLA's own functions take 10 to 20 ns per element on a CPU. These take 1 to 2 ns, with a relative error
below 3e-7. For every other dtype they call jax.numpy. The coefficients nearly minimize the largest relative error.

Most of the remaining cost is memory: an array that one loop writes and the next loop reads costs as much as a
polynomial. XLA recomputes a value in each loop that needs it only if its last operation takes one array and it contains
no quotient. The minimum and the clip below are there for that reason.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# sin² x = x²·S(x²) for |x| <= π/2.
_S = (0.999999986141, -0.333332977614, 0.0444429037977, -3.17209831351e-3, 1.39213920684e-4, -3.60956639123e-6)
# sin x·cos x = p·P(p) for p = x·(π/2 − x), 0 <= x <= π/2.
_P = (0.636619772993, 0.258012222672, 0.0371293924204, 2.75983805995e-3, 1.320571817e-4)
# arctan x = x·A(x²) for |x| <= 1.
_A = (
    0.999999984766,
    -0.333330733438,
    0.199926193652,
    -0.142036442539,
    0.106409331861,
    -0.075042927417,
    0.042691497962,
    -0.01606861581,
    0.002849886325,
)


_HALF_PI = float(np.float32(math.pi / 2))
_HALF_PI_REST = math.pi / 2 - _HALF_PI


def sin_squared(x: jax.Array) -> jax.Array:
    """sin² x for |x| <= π/2."""
    if x.dtype != jnp.float32:
        return jnp.square(jnp.sin(x))
    return jnp.minimum(x * x * _polynomial(_S, x * x), 1)


def cos_squared(x: jax.Array) -> jax.Array:
    """cos² x for |x| <= π/2, with a small relative error up to its zero; 0 beyond."""
    return sin_squared(_to_zero_of_cos(x)) if x.dtype == jnp.float32 else jnp.square(jnp.maximum(jnp.cos(x), 0))


def sin_cos(x: jax.Array) -> jax.Array:
    """sin x·cos x for |x| <= π/2, with a small relative error up to its zeros; 0 beyond."""
    if x.dtype != jnp.float32:
        return jnp.sin(x) * jnp.maximum(jnp.cos(x), 0)
    y = _to_zero_of_cos(x)
    return jnp.clip(x * y * _polynomial(_P, jnp.abs(x) * y), -0.5, 0.5)


def _to_zero_of_cos(x):
    """π/2 − |x| to the last bit, 0 where that is negative."""
    # The inner maximum prevents XLA from adding the two constants first.
    return jnp.maximum(jnp.maximum(_HALF_PI - jnp.abs(x), 0) + _HALF_PI_REST, 0)


@jax.custom_jvp
def arctan(x: jax.Array) -> jax.Array:
    """The angle in [−π/2, π/2] whose tangent is x."""
    return _arctan2(x, jnp.ones_like(x)) if x.dtype == jnp.float32 else jnp.arctan(x)


@arctan.defjvp
def _arctan_jvp(primals, tangents):
    ((x,), (dx,)) = primals, tangents
    return arctan(x), dx / (1 + jnp.square(x))


@jax.custom_jvp
def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of the point (x, y) in (−π, π], 0 where y = 0 and x > 0. nan at (0, 0) and where both are infinite."""
    return _arctan2(y, x) if x.dtype == jnp.float32 else jnp.arctan2(y, x)


@arctan2.defjvp
def _arctan2_jvp(primals, tangents):
    # The polynomial is not differentiated, because its maximum and minimum have no derivative where |y| = |x|.
    ((y, x), (dy, dx)) = primals, tangents
    length = jnp.maximum(jnp.abs(x), jnp.abs(y))  # so that no square overflows
    across, along = y / length, x / length
    return arctan2(y, x), (along * dy - across * dx) / (length * (jnp.square(along) + jnp.square(across)))


def _arctan2(y, x):
    long, short = jnp.maximum(jnp.abs(x), jnp.abs(y)), jnp.minimum(jnp.abs(x), jnp.abs(y))
    # short / long would be a quotient that is used twice. The scale keeps 1 / long from being denormal.
    scale = jnp.where(long > 1e30, 2.0**-60, 1)
    ratio = scale * short * (1 / (scale * long))
    angle = ratio * _polynomial(_A, ratio * ratio)
    angle = jnp.where(jnp.abs(y) > jnp.abs(x), math.pi / 2 - angle, angle)
    angle = jnp.where(x < 0, math.pi - angle, angle)
    return jnp.where(y < 0, -angle, angle)


def _polynomial(coefficients, x):
    """Horner's rule, the lowest coefficient first."""
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value
