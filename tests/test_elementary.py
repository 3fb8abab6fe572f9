"""The polynomials for arctangent, sine and cosine against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wcjax import elementary

pytestmark = pytest.mark.usefixtures("optimized")

STATED = 3e-7  # the relative error that elementary promises
TINY = float(np.finfo(np.float32).tiny)  # below it XLA flushes to 0


def normal_floats(largest, count):
    """0 and positive float32 up to `largest`, evenly spread over their bit patterns: every exponent has its share."""
    bits = np.linspace(np.float32(TINY).view(np.int32), np.float32(largest).view(np.int32), count).astype(np.int32)
    return np.concatenate([[np.float32(0)], bits.view(np.float32)])


def test_sine_and_cosine_keep_the_stated_error():
    below = np.nextafter(np.float32(math.pi / 2), 0) - np.logspace(-7, 0, 5001, dtype=np.float32)  # to the zero of cos
    x = np.concatenate([normal_floats(below.max(), 100_001), below])
    x = np.concatenate([-x, x])
    np.testing.assert_allclose(np.float64(jax.jit(elementary.sin)(x)), np.sin(np.float64(x)), STATED, TINY)
    np.testing.assert_allclose(np.float64(jax.jit(elementary.cos)(x)), np.cos(np.float64(x)), STATED, TINY)
    x = np.float32([0.0, -0.0, math.pi / 2, -math.pi / 2])
    np.testing.assert_array_equal(np.signbit(jax.jit(elementary.sin)(x)), [False, True, False, True])
    np.testing.assert_allclose(jax.jit(elementary.cos)(x), [1, 1, 0, 0], rtol=0, atol=4.4e-8)  # float32 rounds π/2


def test_arctan2_keeps_the_stated_error():
    size = np.concatenate([normal_floats(1e37, 400)[1:], np.float32([1.0, np.nextafter(np.float32(1), 2), 3e-8])])
    y, x = np.meshgrid(np.concatenate([-size, size]), np.concatenate([-size, size]))
    values = np.float64(jax.jit(elementary.arctan2)(y, x))
    np.testing.assert_allclose(values, np.arctan2(np.float64(y), np.float64(x)), STATED, TINY)
    y = np.float32([0, -0.0, 0, -0.0, 2, -2, 2, 0, np.nan, 1])
    x = np.float32([3, 3, -3, -3, 0, 0, -0.0, 0, 1, np.nan])
    expected = [0, 0, math.pi, math.pi, math.pi / 2, -math.pi / 2, math.pi / 2, np.nan, np.nan, np.nan]
    np.testing.assert_allclose(jax.jit(elementary.arctan2)(y, x), expected, STATED)


def test_clip_keeps_nan_and_clips_infinity():
    x = np.float32([-np.inf, -2, 0.5, 2, np.inf, np.nan])
    np.testing.assert_array_equal(
        jax.jit(elementary.clip)(x, np.float32(-1), np.float32(1)), [-1, -1, 0.5, 1, 1, np.nan]
    )


def test_arctan_and_its_derivative_keep_the_stated_error():
    x = np.concatenate([sign * np.logspace(-37, 37, 20_001) for sign in (1, -1)]).astype(np.float32)
    np.testing.assert_allclose(jax.jit(elementary.arctan)(x), np.arctan(np.float64(x)), rtol=STATED)
    slope = jax.jit(jax.vmap(jax.grad(elementary.arctan)))(x)
    np.testing.assert_allclose(slope, 1 / (1 + np.float64(x) ** 2), STATED, TINY)
    y, x = np.float32([1, -1, 1, 2, 0, 1]), np.float32([1, 1, -1, 0.5, 1, 0])
    slopes = jax.jit(jax.vmap(jax.grad(elementary.arctan2, (0, 1))))(y, x)
    np.testing.assert_allclose(slopes, (x / (x * x + y * y), -y / (x * x + y * y)), rtol=1e-6)
    ends = elementary.arctan(jnp.float32([0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(ends, np.float32([0, -0.0, np.pi / 2, -np.pi / 2, np.nan]))
