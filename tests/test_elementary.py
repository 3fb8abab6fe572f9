"""Polynomials for arctangent, sine and cosine, and the moves of w that stand on them, against float64 closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from wcjax import Arctan, Arsinh, Erf, PowerProp, elementary

STATED = 3e-7  # the relative error that elementary promises
TINY = float(np.finfo(np.float32).tiny)  # below it XLA flushes to 0


def normal_floats(largest, count):
    """0 and positive float32 up to `largest`, evenly spread over their bit patterns: every exponent has its share."""
    bits = np.linspace(np.float32(TINY).view(np.int32), np.float32(largest).view(np.int32), count).astype(np.int32)
    return np.concatenate([[np.float32(0)], bits.view(np.float32)])


def test_squares_and_product_of_sine_and_cosine_keep_the_stated_error_for_every_exponent_and_up_to_their_zeros():
    below = np.float32(math.pi / 2) - np.logspace(-7, 0, 5001, dtype=np.float32)
    x = np.concatenate([normal_floats(below.max(), 100_001), below])
    x = np.concatenate([-x, x])
    sin, cos = np.sin(x.astype(np.float64)), np.cos(x.astype(np.float64))
    for of, expected in {"sin_squared": sin**2, "cos_squared": cos**2, "sin_cos": sin * cos}.items():
        found = np.asarray(jax.jit(getattr(elementary, of))(x), np.float64)
        np.testing.assert_allclose(found, expected, STATED, TINY, err_msg=of)


def test_sin_cos_keeps_the_sign_of_zero_and_cos_squared_is_zero_beyond_its_zero():
    x = np.float32([0.0, -0.0, math.pi / 2, -math.pi / 2, 1.6])
    np.testing.assert_array_equal(np.signbit(jax.jit(elementary.sin_cos)(x[:2])), [False, True])
    np.testing.assert_array_equal(jax.jit(elementary.cos_squared)(x), [1, 1, 0, 0, 0])


def test_arctan2_keeps_the_stated_error_in_all_quadrants_over_the_whole_range():
    size = normal_floats(np.finfo(np.float32).max, 400)
    size = np.concatenate([size[1:], np.float32([1.0, np.nextafter(np.float32(1), 2), 3e-8])])
    y, x = np.meshgrid(np.concatenate([-size, size]), np.concatenate([-size, size]))
    found = jax.jit(elementary.arctan2)(y, x)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.arctan2(y.astype(np.float64), x.astype(np.float64)), STATED, TINY
    )


def test_arctan2_on_the_axes_and_at_infinity():
    y = np.float32([0, -0.0, 0, -0.0, 2, -2, 2, 1, -1, 1, 0, np.inf])
    x = np.float32([3, 3, -3, -3, 0, 0, -0.0, np.inf, -np.inf, -np.inf, 0, np.inf])
    expected = [0, 0, math.pi, math.pi, math.pi / 2, -math.pi / 2, math.pi / 2, 0, -math.pi, math.pi, np.nan, np.nan]
    np.testing.assert_allclose(jax.jit(elementary.arctan2)(y, x), expected, STATED)


def test_float64_is_exact_to_float64():
    with jax.enable_x64(True):
        x = np.linspace(-1.57, 1.57, 1001)
        found = elementary.sin_squared(x), elementary.cos_squared(x), elementary.sin_cos(x)
        y, x = np.meshgrid(np.linspace(-3, 3, 41), np.linspace(-3, 3, 40))
        np.testing.assert_allclose(elementary.arctan2(y, x), np.arctan2(y, x), 1e-15)
        x = np.linspace(-1.57, 1.57, 1001)
        sin, cos = np.sin(x), np.cos(x)
        np.testing.assert_allclose(found, (sin**2, cos**2, sin * cos), 1e-13)


# Ψ, Ψ⁻¹ and Ψ′ in NumPy.
CLOSED = {
    Arctan: (
        lambda v, a, b: a * np.arctan(v / b),
        lambda w, a, b: b * np.tan(w / a),
        lambda v, a, b: a / b / (1 + (v / b) ** 2),
    ),
    Arsinh: (
        lambda v, a, b: a * np.arcsinh(v / b),
        lambda w, a, b: b * np.sinh(w / a),
        lambda v, a, b: a / b / np.sqrt(1 + (v / b) ** 2),
    ),
    Erf: (
        lambda v, a, b: a * special.erf(v / b),
        lambda w, a, b: b * special.erfinv(w / a),
        lambda v, a, b: 2 / np.sqrt(np.pi) * a / b * np.exp(-((v / b) ** 2)),
    ),
    PowerProp: (
        lambda v, p: np.sign(v) * np.abs(v) ** p,
        lambda w, p: np.sign(w) * np.abs(w) ** (1 / p),
        lambda v, p: p * np.abs(v) ** (p - 1),
    ),
}
PAIRS = [(0.625, 0.75), (-0.625, 0.75), (0.625, -0.75), (-0.625, -0.75)]  # exact in float32; learned ones cross 0
SIGMOID = [(cls, pair) for cls in (Arctan, Arsinh, Erf) for pair in PAIRS]
ALL = [*SIGMOID, (PowerProp, (2.0,)), (PowerProp, (1.5,))]
name = lambda x: x.__name__ if isinstance(x, type) else ",".join(map(str, x))
each_psi = pytest.mark.parametrize(("cls", "pair"), ALL, ids=name)
each_sigmoid = pytest.mark.parametrize(("cls", "pair"), SIGMOID, ids=name)


def closed(cls, pair):
    return [lambda x, f=f: f(x, *pair) for f in CLOSED[cls]]


def made(cls, pair, dtype):
    return cls(*(jnp.asarray(x, dtype) for x in pair))


def weights(cls, pair, dtype, share=0.9, count=81):
    return np.linspace(-1, 1, count).astype(dtype) * np.abs(float(bound(cls, pair)) * share).astype(dtype)


def bound(cls, pair):
    limit = cls(*map(abs, pair)).bound
    return limit if math.isfinite(limit) else 2.0


def moves(cls, pair, dtype, share):
    """w, u, and Ψ(Ψ⁻¹(w) + u) − w in float64, for u of all sizes and both signs."""
    u = np.logspace(-6, 6, 49).astype(dtype)
    w, u = np.meshgrid(weights(cls, pair, dtype, share), np.concatenate([-u, u]))
    psi, inverse, slope = closed(cls, pair)
    v = inverse(w.astype(np.float64))
    after = psi(v + u)
    with np.errstate(divide="ignore", invalid="ignore"):
        amplified = np.where(slope(v) == 0, 1, np.maximum(1, np.abs(slope(v + u) / slope(v))))
    unit = np.maximum(np.abs(after), np.abs(w)) * float(np.finfo(dtype).eps) * amplified
    return w, u, after - w, unit


@each_psi
@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 0.9), (np.float32, 0.999), (np.float64, 0.99)])
def test_change_is_off_by_four_roundings_of_w_for_any_step(cls, pair, dtype, share):
    """In units of what one rounding of w itself does to the result: times Ψ′(v + u) / Ψ′(v) where that exceeds 1."""
    stated = 10 if cls is Erf and dtype == np.float64 else 4  # found: 8.2 and 3.2
    with jax.enable_x64(dtype == np.float64):
        w, u, expected, unit = moves(cls, pair, dtype, share)
        found = np.asarray(jax.jit(made(cls, pair, dtype).change)(w, u))
    assert found.dtype == dtype
    assert np.max(np.abs(found - expected) / unit) < stated


@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_small_changes_of_arctan_keep_a_small_relative_error(pair):
    # A difference of two w would be off by 1e-7 of w, which is more than all of such a change.
    w, u, expected, _ = moves(Arctan, pair, np.float32, 0.9)
    small = (np.abs(u) <= 1e-2) & (np.abs(expected) > 1e-12)
    found = np.asarray(jax.jit(made(Arctan, pair, np.float32).change)(w, u), np.float64)
    np.testing.assert_allclose(found[small], expected[small], 1.5e-6)


@each_psi
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_no_step_is_exactly_no_change(cls, pair, dtype):
    w = weights(cls, pair, dtype)
    np.testing.assert_array_equal(jax.jit(made(cls, pair, dtype).change)(w, jnp.zeros_like(w)), 0)


@each_psi
def test_a_change_is_finite_for_any_finite_step(cls, pair):
    w = weights(cls, pair, np.float32, share=0.999)
    psi = made(cls, pair, np.float32)
    for u in (1e30, -1e30, 1e-38, -1e-38) if cls is not PowerProp else (1e15, -1e15):
        found = psi.change(w, np.float32(u))
        assert np.all(np.isfinite(found))
        assert np.all(np.abs(w + found) <= np.abs(np.float32(psi.bound)) * (1 + 1e-6))


@each_psi
def test_slope_is_the_derivative_by_way_of_v(cls, pair):
    with jax.enable_x64(True):
        w = weights(cls, pair, np.float64, share=0.99)
        _, inverse, slope = closed(cls, pair)
        np.testing.assert_allclose(made(cls, pair, np.float64).slope(w), slope(inverse(w)), 1e-11)


@each_psi
def test_the_reciprocal_of_the_derivative_is_its_inverse_and_makes_no_nan_where_the_derivative_is_zero(cls, pair):
    with jax.enable_x64(True):
        v = np.linspace(0.1, 2, 21)
        of = made(cls, pair, np.float64)
        np.testing.assert_allclose(of.reciprocal_derivative(v) * closed(cls, pair)[2](v), 1, 1e-11)
    psi, far = made(cls, pair, np.float32), jnp.float32([0, 1e25, -1e25])
    assert np.all(np.isfinite(psi.derivative(far) * psi.reciprocal_derivative(far)))
    if cls is not PowerProp:
        psi = made(cls, (0, pair[1]), np.float32)  # a learned a may come to 0
        assert not np.any(psi.derivative(far) * psi.reciprocal_derivative(far))


@each_sigmoid
def test_the_derivative_by_b_is_the_finite_difference_at_fixed_v(cls, pair):
    with jax.enable_x64(True):
        psi, w, h = made(cls, pair, np.float64), weights(cls, pair, np.float64), 1e-6
        (forward, inverse, _), (a, b) = CLOSED[cls], pair
        v = inverse(w, a, b)
        by_b = (forward(v, a, b + h) - forward(v, a, b - h)) / (2 * h)
        np.testing.assert_allclose(psi.derivative_b(w), by_b, 1e-8, 1e-9)


@each_sigmoid
@pytest.mark.parametrize("u", [0.0, 0.4], ids=lambda u: f"u={u}")
@pytest.mark.parametrize("new", [(0.5, 0.8), (-1e-3, 0.75), (0.625, -2.0), (-0.7, -0.1)], ids=name)
def test_change_follows_the_step_and_a_new_pair(cls, pair, new, u):
    with jax.enable_x64(True):
        w = weights(cls, pair, np.float64)
        forward, inverse, _ = CLOSED[cls]
        expected = forward(inverse(w, *pair) + u, *new) - w
        found = jax.jit(made(cls, pair, np.float64).change)(w, u, made(cls, new, np.float64))
        np.testing.assert_allclose(found, expected, 1e-11, 1e-13)


@each_sigmoid
def test_the_same_pair_changes_nothing(cls, pair):
    w, psi = weights(cls, pair, np.float32), made(cls, pair, np.float32)
    off = np.abs(jax.jit(psi.change)(w, jnp.zeros_like(w), psi))
    assert np.all(off == 0 if cls is Arctan else off <= 4e-7 * np.abs(w))


def test_arctan_is_within_three_roundings_of_float64_and_its_derivative_is_exact():
    x = np.concatenate([sign * np.logspace(-37, 37, 20_001) for sign in (1, -1)]).astype(np.float32)
    expected = np.arctan(x.astype(np.float64))
    np.testing.assert_allclose(jax.jit(elementary.arctan)(x), expected, rtol=3e-7)
    slope = jax.jit(jax.vmap(jax.grad(elementary.arctan)))(x)
    np.testing.assert_allclose(
        slope, 1 / (1 + x.astype(np.float64) ** 2), rtol=3e-7, atol=1.2e-38
    )  # below that float32 is 0
    ends = elementary.arctan(jnp.float32([0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(ends, np.float32([0, -0.0, np.pi / 2, -np.pi / 2, np.nan]))
