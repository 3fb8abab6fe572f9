"""Ψ, Ψ⁻¹ and Ψ′ of arrays, and the change of w for a step of v, against closed forms in float64."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.truth import PSIS, SIGMOIDS, Psi
from wcjax import Arctan, Arsinh, Erf, PowerProp, WeightNorm

pytestmark = pytest.mark.usefixtures("optimized")

V = np.concatenate([[0.0, 1e-20, 1e-4], np.linspace(0.01, 3, 50), [20.0, 1e4]])
V = np.concatenate([-V[:0:-1], V])
NUMBERS = [*PSIS, Psi("powerprop", 1.0), Psi("powerprop", 2.0)]
# Learned a and b may be negative. These are exact in float32.
CROSSED = [Psi(psi.name, a, b) for psi in SIGMOIDS for a in (0.625, -0.625) for b in (0.75, -0.75)]
ARRAYS = [*CROSSED, *NUMBERS[3:]]
each_psi = pytest.mark.parametrize("psi", PSIS, ids=str)
each_learned = pytest.mark.parametrize("psi", ARRAYS, ids=str)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def inside(psi, dtype, share=0.99):
    """As many w as there are v, because one shape everywhere needs fewer compilations."""
    limit = share * (psi.bound if math.isfinite(psi.bound) else 2.0)
    return np.linspace(-limit, limit, V.size).astype(dtype)


def learned(psi, dtype=jnp.float32):
    return psi.ours(lambda x: jnp.asarray(x, dtype))


@jax.jit
def values(psi, v, w):
    """Ψ(v), Ψ⁻¹(w), Ψ′(v) and the gradient of Ψ at v. Ψ of one class with arrays share a program."""
    (gradient,) = jax.vjp(psi, v)[1](jnp.ones_like(v))
    return psi(v), psi.inverse(w), psi.derivative(v), gradient


change = jax.jit(lambda psi, *arguments: psi.change(*arguments))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("psi, is_learned", [(p, False) for p in NUMBERS] + [(p, True) for p in ARRAYS], ids=str)
def test_psi_its_inverse_and_derivative_are_the_closed_forms(psi, is_learned, dtype):
    rtol = 4e-6 if dtype == np.float32 else 4e-14  # PowerProp's pow and Erf's exp at large arguments are the worst
    with jax.enable_x64(dtype == np.float64):
        v, w = V.astype(dtype), inside(psi, dtype, 0.97)
        expected = psi(v), psi.inverse(w), psi.derivative(v), psi.derivative(v)
        for x, right in zip(values(learned(psi, dtype) if is_learned else psi.ours(), v, w), expected, strict=True):
            assert x.dtype == dtype
            # Below the smallest normal number both flush to 0.
            np.testing.assert_allclose(np.float64(x), right, rtol, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("psi, dtype", [*((psi, jnp.bfloat16) for psi in PSIS), (PSIS[0], jnp.float16)], ids=str)
def test_half_precision_is_the_float32_result_cast_once(psi, dtype):
    v, w, ours = jnp.asarray(V, dtype), jnp.asarray(inside(psi, np.float32), dtype), psi.ours()
    for compute, x in ((ours, v), (ours.inverse, w), (ours.derivative, v)):
        chex.assert_trees_all_equal(compute(x), compute(x.astype(jnp.float32)).astype(dtype))
        for shape in ((), (0,), (2, 3, 4, 1)):
            x = jax.ShapeDtypeStruct(shape, dtype)
            assert jax.eval_shape(compute, x).update() == x


@each_psi
def test_gradients_of_a_b_and_alpha_are_finite_differences(psi, x64):
    v, h = np.linspace(-2, 2, 8), 1e-6
    loss = lambda psi, xp: xp.sum(xp.sin(psi(v) * np.arange(8)) + psi.derivative(v) ** 2)
    gradient = jax.tree.leaves(jax.grad(lambda psi: loss(psi, jnp))(learned(psi, jnp.float64)))
    for i, step in enumerate(h * np.eye(len(psi.numbers))):
        up, down = (loss(Psi(psi.name, *(psi.numbers + side * step)), np) for side in (1, -1))
        np.testing.assert_allclose(gradient[i], (up - down) / (2 * h), rtol=1e-6)


# v is ill-conditioned near the bound, by 1 / (1 − share of the bound); Ψ(Ψ⁻¹(w)) costs a few roundings everywhere.
SHARES = [0, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]  # of |w| / bound
WIDTHS = [0, 0.1, 1, 10, 20, 40, 80]  # of |w| / a, for Arsinh


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [psi.name for psi in SIGMOIDS])
def test_round_trip_keeps_w_over_the_whole_usable_range(name, dtype, x64):
    eps, bands = np.finfo(dtype).eps, np.array(WIDTHS if name == "arsinh" else SHARES)[:, None]
    draw = np.random.default_rng(0).uniform(bands[:-1], bands[1:], (len(bands) - 1, 500))
    draw = np.concatenate([draw, bands[1:], -draw], axis=1)
    steepness = 1 + bands[1:] if name == "arsinh" else 1 / (1 - bands[1:])
    for a, b in ((1.0, 1.0), (0.7, 1.3), (1.25, 1.0), (0.1, 3.0)):
        psi = Psi(name, a, b)
        w = ((psi.bound if math.isfinite(psi.bound) else a) * draw).astype(dtype)
        v = np.asarray(psi.ours().inverse(w))
        np.testing.assert_allclose(psi.ours()(v), w, rtol=(6 if dtype == np.float32 else 16) * eps)
        assert np.all(np.abs(v / psi.inverse(w) - 1) <= (16 + steepness) * eps)


@pytest.mark.parametrize("cls", [Arctan, Erf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_never_changes_sign_at_the_bound(cls, dtype, x64):
    eps, exact = np.finfo(dtype).eps, 3  # w / a is exact for the first three a
    a = np.array([1.0, 0.5, 0.25, 0.6, 0.7, 1.1, *np.random.default_rng(0).uniform(0.05, 3, 94)])[:, None]
    psi = cls(a, 0.9)
    at = psi.bound.astype(dtype)
    neighbours = np.concatenate([np.nextafter(at, dtype(0)), at, np.nextafter(at, dtype(9))], axis=1)
    beyond = at * np.array([1 + 4 * eps, 1.0001, 1.01, 1.5, 2, 3, 1e9, np.inf], dtype)
    below = at * np.array([1 - 4 * eps, 0.999], dtype)
    inverse = jax.jit(psi.inverse)
    for sign in (1, -1):
        v = sign * np.asarray(inverse(sign * np.concatenate([neighbours, beyond, below], axis=1)))
        near, beyond_v, below_v = np.split(v, [3, 11], axis=1)
        assert np.all(np.isnan(near) | (near > below_v[:, 1:]))  # w / a may round either way here
        assert np.all(np.isnan(near[:exact, 1:]))
        assert np.all(np.isnan(beyond_v))
        assert np.all(np.isfinite(below_v))


@pytest.mark.parametrize("alpha, slope", [(1.0, 1.0), (1.5, 0.0), (2.0, 0.0)])
def test_powerprop_at_zero_has_the_right_derivatives_and_no_nan(alpha, slope):
    zero = jnp.float32(0)
    for psi in (PowerProp(alpha), PowerProp(jnp.float32(alpha))):
        chex.assert_trees_all_equal((psi(zero), psi.inverse(zero)), (zero, zero))
        chex.assert_trees_all_equal((psi.derivative(zero), jax.grad(psi)(zero)), (jnp.float32(slope),) * 2)
        assert jax.grad(psi.derivative)(zero) == jax.grad(jax.grad(psi))(zero) == 0
        assert np.isfinite(jax.grad(lambda w, psi=psi: psi.change(w, jnp.float32(0.1)))(zero))
    chex.assert_tree_all_finite(jax.grad(lambda psi: psi(zero) + psi.derivative(zero))(psi))


@each_psi
def test_huge_v_and_a_pair_at_zero_give_no_nan(psi):
    v = np.where(V < 0, np.float32(-1e30), np.float32(1e30))
    compute = lambda ours: (ours(v), ours.derivative(v), jax.vjp(lambda v, p: p(v), v, ours)[1](v / 1e30))
    for ours in (psi.ours(), learned(psi)):
        w, *others = jax.jit(compute)(ours)
        assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves((w, others)))
        if math.isfinite(psi.bound):
            np.testing.assert_allclose(np.abs(w), psi.bound, rtol=1e-6)
    far = jnp.float32([0, 1e25, -1e25])
    assert np.all(np.isfinite(learned(psi).derivative(far) * learned(psi).reciprocal_derivative(far)))
    if psi.name != "powerprop":
        zero = learned(Psi(psi.name, 0, psi.numbers[1]))  # a learned a may come to 0
        assert not np.any(zero.derivative(far) * zero.reciprocal_derivative(far))


@each_psi
def test_numbers_are_structure_and_arrays_are_leaves(psi):
    numbers, arrays = psi.ours(), psi.ours(lambda x: np.full(2, x))
    names = [".alpha"] if psi.name == "powerprop" else [".a", ".b"]
    assert jax.tree.leaves(numbers) == []
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)] == names
    # A checkpoint of one Ψ does not load under another, and jit compiles again for another number.
    other = Psi(psi.name, *(2 * x for x in psi.numbers)).ours()
    assert jax.tree.structure(numbers) == jax.tree.structure(psi.ours()) != jax.tree.structure(other)
    assert (numbers, hash(numbers)) == (psi.ours(), hash(psi.ours())) and numbers != other
    for leaf in (None, True, -1.0, "label"):  # which equinox.partition, masks and labels put there
        assert jax.tree.leaves(jax.tree.map(lambda _, leaf=leaf: [leaf], arrays)) == [leaf] * len(names if leaf else [])
        assert jax.tree.map(lambda _, leaf=leaf: leaf, numbers) == numbers


@pytest.mark.parametrize("cls, field", [(Arctan, "a"), (Arctan, "b"), (Arsinh, "a"), (Erf, "b"), (PowerProp, "alpha")])
def test_numbers_out_of_range_and_complex_ones_are_refused(cls, field):
    for value in (0, -1, np.float32(-2), 1e9, math.nan, math.inf, True, None, "1"):
        with pytest.raises(ValueError, match=f"{cls.__name__}: {field} must be .*found .*{value}"):
            cls(**{field: value})
    with pytest.raises(ValueError, match="from 1 to .*found alpha=0.99"):
        PowerProp(0.99)
    for compute in (cls(), cls().inverse, cls().derivative):
        with pytest.raises(ValueError, match=f"{cls.__name__} is not defined for complex numbers, found complex64"):
            compute(jnp.ones(2, jnp.complex64))


def test_weight_norm_keeps_zeros_and_casts_bfloat16_once():
    random = np.random.default_rng(0)
    v, g = (jnp.float32(random.normal(size=shape)) for shape in ((3, 3, 4, 5), (1, 1, 1, 5)))
    half = jnp.bfloat16(v)
    chex.assert_trees_all_equal(WeightNorm(g)(half), WeightNorm(g)(jnp.float32(half)).astype(half.dtype))
    w, pullback = jax.vjp(lambda v, g: WeightNorm(g)(v), v.at[..., 2].set(0), g)
    assert not np.any(w[..., 2])
    chex.assert_tree_all_finite(pullback(v))


def moves(psi, dtype, share):
    """w, u, and Ψ(Ψ⁻¹(w) + u) − w for u of all sizes and both signs, and what one rounding of w does to the result."""
    u = np.logspace(-6, 6, 49).astype(dtype)
    w, u = np.meshgrid(inside(psi, dtype, share), np.concatenate([-u, u]))
    v, after = psi.inverse(w), psi.step(w, u)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = psi.derivative(v)
        amplified = np.where(slope == 0, 1, np.maximum(1, np.abs(psi.derivative(v + u) / slope)))
    return w, u, after - w, np.maximum(np.abs(after), np.abs(w)) * float(np.finfo(dtype).eps) * amplified


@each_learned
@pytest.mark.parametrize("dtype, share", [(np.float32, 0.9), (np.float32, 0.999), (np.float64, 0.99)])
def test_change_is_off_by_a_few_roundings_of_w_for_any_step(psi, dtype, share):
    stated = 10 if psi.name == "erf" and dtype == np.float64 else 5  # 8.2 and 4.1 were measured
    w, u, expected, rounding = moves(psi, dtype, share)
    with jax.enable_x64(dtype == np.float64):
        moved = np.asarray(change(learned(psi, dtype), w, u))
    assert moved.dtype == dtype
    assert np.max(np.abs(moved - expected) / np.where(rounding == 0, 1, rounding)) < stated
    if psi.name == "arctan" and share == 0.9:
        # A difference of two w would be off by 1e-7 of w, which is more than all of a small change.
        small = (np.abs(u) <= 1e-2) & (np.abs(expected) > 1e-12)
        np.testing.assert_allclose(np.float64(moved)[small], expected[small], 1.5e-6)


@each_learned
def test_a_zero_step_changes_nothing_and_any_step_is_finite(psi):
    w, far, ours = inside(psi, np.float32, 0.9), inside(psi, np.float32, 0.999), learned(psi)
    for dtype in (np.float32, jnp.bfloat16):
        np.testing.assert_array_equal(change(ours, w.astype(dtype), np.zeros(w.shape, dtype)), 0)
    if psi.name != "powerprop":
        rounding = 0 if psi.name == "arctan" else 4e-7
        assert np.all(np.abs(change(ours, w, np.zeros_like(w), ours)) <= rounding * np.abs(w))
    for u in (np.inf, -np.inf, 1e30, -1e30, 1e-38, -1e-38) if psi.name != "powerprop" else (1e15, -1e15):
        moved = change(ours, far, np.full_like(far, u))
        assert np.all(np.isfinite(moved)) and np.all(np.abs(far + moved) <= np.float32(psi.bound) * (1 + 1e-6))
    smallest = Arctan(0.6, 1e-8)
    assert np.all(np.isfinite(smallest.change(jnp.float32([0.3, -0.3, 0]), jnp.float32(1e30))))


@each_learned
def test_derivatives_computed_from_w_are_those_computed_from_v(psi, x64):
    w, v, ours = inside(psi, np.float64), np.linspace(0.1, 2, 21), learned(psi, jnp.float64)
    slope = psi.derivative(psi.inverse(w))
    np.testing.assert_allclose(ours.slope(w), slope, 1e-11)
    by_u = jax.grad(lambda u: jnp.sum(ours.change(w, u)))(np.zeros_like(w))
    np.testing.assert_allclose(by_u[w != 0], slope[w != 0], 1e-11)
    by_u_twice = jax.vmap(jax.grad(jax.grad(ours.change, 1), 1))(w, np.zeros_like(w))
    curvature = (psi.derivative(psi.inverse(w) + 1e-6) - psi.derivative(psi.inverse(w) - 1e-6)) / 2e-6
    np.testing.assert_allclose(by_u_twice[w != 0], curvature[w != 0], 1e-6, 1e-8)
    np.testing.assert_allclose(ours.reciprocal_derivative(v) * psi.derivative(v), 1, 1e-11)
    if psi.name != "powerprop":
        (a, b), v, h = psi.numbers, psi.inverse(w), 1e-6
        by_b = (Psi(psi.name, a, b + h)(v) - Psi(psi.name, a, b - h)(v)) / (2 * h)
        np.testing.assert_allclose(ours.slope_b(w), by_b, 1e-8, 1e-9)


@pytest.mark.parametrize("psi", CROSSED, ids=str)
def test_change_follows_the_step_and_a_new_pair(psi, x64):
    w = inside(psi, np.float64, 0.9)
    for u, *pair in ((0.4, 0.5, 0.8), (0.0, -1e-3, 0.75), (0.4, 0.625, -2.0), (0.4, -0.7, -0.1)):
        new = Psi(psi.name, *pair)
        expected = new(psi.inverse(w) + u) - w
        moved = change(learned(psi, jnp.float64), w, u, learned(new, jnp.float64))
        np.testing.assert_allclose(moved, expected, 1e-11, 1e-13)


@pytest.mark.parametrize("b, new_b, u", [(1e-20, 0.6, 1e10), (1e-8, 1e8, 1e30), (0.6, 1e-20, 1e30), (1e8, 1e-12, 1e30)])
def test_change_follows_a_learned_b_of_any_size(b, new_b, u):
    expected = 0.6 * np.arctan((b * np.tan(0.5) + u) / new_b) - 0.3
    moved = Arctan(jnp.float32(0.6), jnp.float32(b)).change(
        jnp.float32(0.3), u, Arctan(jnp.float32(0.6), jnp.float32(new_b))
    )
    np.testing.assert_allclose(moved, expected, 1e-6)


@pytest.mark.parametrize("psi", SIGMOIDS, ids=str)
def test_second_derivatives_are_finite_differences(psi, x64):
    v, h = np.linspace(-2, 2, 9), 1e-6
    expected = (psi.derivative(v + h) - psi.derivative(v - h)) / (2 * h)
    np.testing.assert_allclose(jax.vmap(jax.grad(psi.ours().derivative))(v), expected, 1e-7, 1e-9)
    chex.assert_tree_all_finite(jax.vmap(jax.grad(psi.ours().derivative))(jnp.float32([1e-30, 1e8, -1e12, 1e25])))
