"""Ψ, Ψ⁻¹ and Ψ′ against closed forms in float64, finite differences and each other."""

import dataclasses
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from absl.testing import parameterized

from tests import numpy_reference as reference
from wcjax import Arctan, Arsinh, Erf, PowerProp, WeightNorm

A, B = 0.7, 1.3
V = np.concatenate([[0.0, 1e-20, 1e-4], np.linspace(0.01, 3, 50), [20.0, 1e4]])
V = np.concatenate([-V[:0:-1], V])

CLOSED = {  # psi, Ψ and Ψ′ in NumPy, Ψ⁻¹ in NumPy
    "arctan": (Arctan(A, B), reference.Arctan(A, B), lambda w: B * np.tan(w / A)),
    "arsinh": (Arsinh(A, B), reference.Arsinh(A, B), lambda w: B * np.sinh(w / A)),
    "erf": (Erf(A, B), reference.Erf(A, B), lambda w: B * scipy.special.erfinv(w / A)),
} | {
    f"powerprop{p}": (PowerProp(p), reference.PowerProp(p), lambda w, p=p: np.sign(w) * np.abs(w) ** (1 / p))
    for p in (1.0, 1.5, 2.0)
}
PSIS = {name: closed[0] for name, closed in CLOSED.items()}
NAMES = {Arctan: ["a", "b"], Arsinh: ["a", "b"], Erf: ["a", "b"], PowerProp: ["alpha"]}
each_psi = pytest.mark.parametrize("psi", PSIS.values(), ids=PSIS.keys())


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def learned(psi, dtype=None):
    """psi with arrays in the place of its numbers."""
    return dataclasses.replace(psi, **{name: jnp.asarray(getattr(psi, name), dtype) for name in NAMES[type(psi)]})


def weights_inside(psi, dtype):
    limit = 0.99 * float(psi.bound) if math.isfinite(psi.bound) else 5.0
    return np.linspace(-limit, limit, V.size).astype(dtype)  # one shape everywhere: fewer compilations


class ClosedForm(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(name=list(CLOSED), dtype=(np.float32, np.float64), learn=(False, True))
    def test_psi_inverse_and_derivative_are_the_closed_forms(self, name, dtype, learn):
        psi, truth, inverse = CLOSED[name]
        rtol = 4e-6 if dtype == np.float32 else 2e-14  # PowerProp's pow and Erf's exp at large arguments are the worst
        with jax.enable_x64(dtype == np.float64):
            v, w = V.astype(dtype), weights_inside(psi, dtype)
            psi = learned(psi, dtype) if learn else psi
            out = self.variant(lambda psi, v, w: (psi(v), psi.inverse(w), psi.derivative(v)))(psi, v, w)
            chex.assert_trees_all_equal_dtypes(out, (v, w, v))
            v, w = v.astype(np.float64), w.astype(np.float64)
            for found, expected in zip(out, (truth(v), inverse(w), truth.slope(v)), strict=True):
                # Below the smallest normal number both flush to 0.
                np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol, atol=np.finfo(dtype).tiny)


@each_psi
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_the_float32_result_cast_once(psi, dtype):
    v, w = jnp.asarray(V, dtype), jnp.asarray(weights_inside(psi, np.float32), dtype)
    for compute, x in ((psi, v), (psi.inverse, w), (psi.derivative, v)):
        chex.assert_trees_all_equal(compute(x), compute(x.astype(jnp.float32)).astype(dtype))
        assert compute(x).dtype == dtype


@each_psi
def test_every_shape_and_float_dtype_is_kept(psi):
    for shape in ((), (0,), (5,), (2, 3, 4, 1)):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            x = jax.ShapeDtypeStruct(shape, dtype)
            for compute in (psi, psi.inverse, psi.derivative):
                chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(compute, x), x)


@each_psi
def test_psi_is_odd_and_increasing(psi):
    w = np.asarray(psi(V.astype(np.float32)))
    chex.assert_trees_all_close(w, -w[::-1], rtol=3e-7)  # to the bit, but for the rest of a vectorized loop
    assert np.all(np.diff(w) >= 0)


@each_psi
def test_derivative_is_the_gradient_and_the_finite_difference(psi, x64):
    v, h = np.where(V < 0, -1, 1) * np.linspace(0.2, 3, V.size), 1e-6
    chex.assert_trees_all_close(psi.derivative(v), jax.vjp(psi, v)[1](np.ones(v.shape))[0], rtol=1e-13)
    chex.assert_trees_all_close(psi.derivative(v), (psi(v + h) - psi(v - h)) / (2 * h), rtol=1e-6)


@each_psi
def test_gradients_of_a_b_and_alpha_are_finite_differences(psi, x64):
    v, h = np.linspace(-2, 2, 8), 1e-6
    loss = jax.jit(lambda psi: jnp.sum(jnp.sin(psi(v) * np.arange(8)) + psi.derivative(v) ** 2))
    psi = learned(psi)
    gradient = jax.grad(loss)(psi)
    for name in NAMES[type(psi)]:
        x = getattr(psi, name)
        up, down = (loss(dataclasses.replace(psi, **{name: x + step})) for step in (h, -h))
        np.testing.assert_allclose(getattr(gradient, name), (up - down) / (2 * h), rtol=1e-6)


# Largest relative error found with 20,000 random |w| in each band and five pairs (a, b), on jax 0.10.2 and 0.12.0.
# The round trip of w costs a few roundings everywhere; v itself is ill-conditioned near the bound, by 1 / (1 - share).
#
#   |w| / bound up to        .1      .5      .9      .99     .999    .9999   .99999  .999999
#   Ψ(Ψ⁻¹(w))
#     Arctan float32       3.7e-7  3.1e-7  3.5e-7  1.3e-7  9.6e-8  9.5e-8  9.5e-8  9.5e-8
#     Erf    float32       4.4e-7  4.8e-7  3.5e-7  2.6e-7  2.9e-7  2.9e-7  2.9e-7  2.6e-7
#     Arctan float64       6.3e-16 6.2e-16 5.9e-16 2.2e-16 2.0e-16 2.0e-16 2.0e-16 2.0e-16
#     Erf    float64       6.6e-16 8.3e-16 3.0e-15 3.5e-16 1.8e-16 1.8e-16 1.8e-16 1.8e-16
#   Ψ⁻¹(w) against SciPy
#     Arctan float32       1.7e-7  1.6e-7  5.8e-7  5.4e-6  5.4e-5  5.4e-4  5.1e-3  4.5e-2
#     Erf    float32       2.6e-7  3.2e-7  3.0e-7  7.6e-7  5.3e-6  2.9e-5  2.5e-4  1.9e-3
#     Arctan float64       5.8e-16 5.8e-16 1.7e-15 1.4e-14 1.4e-13 1.4e-12 1.4e-11 1.4e-10
#     Erf    float64       7.4e-16 8.3e-16 3.8e-15 2.1e-15 1.2e-14 8.6e-14 6.7e-13 5.5e-12
#
#   |w| / a up to            .1      1       10      20      40      80
#   Ψ(Ψ⁻¹(w))
#     Arsinh float32       4.6e-7  4.4e-7  2.2e-7  1.5e-7  1.2e-7  1.2e-7
#     Arsinh float64       8.3e-16 7.3e-16 4.2e-16 4.0e-16 3.7e-16 2.2e-16
#   Ψ⁻¹(w) against NumPy
#     Arsinh float32       4.2e-7  3.9e-7  1.2e-6  1.5e-6  4.2e-6  6.9e-6
#     Arsinh float64       8.6e-16 8.3e-16 2.0e-15 5.6e-15 9.0e-15 1.3e-14
SHARES = [0, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
WIDTHS = [0, 0.1, 1, 10, 20, 40, 80]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cls", [Arctan, Erf, Arsinh])
def test_round_trip_keeps_w_over_the_whole_usable_range(cls, dtype, x64):
    eps, bands = np.finfo(dtype).eps, np.array(WIDTHS if cls is Arsinh else SHARES)[:, None]
    inverse = {Arctan: np.tan, Erf: scipy.special.erfinv, Arsinh: np.sinh}[cls]
    draw = np.random.default_rng(0).uniform(bands[:-1], bands[1:], (len(bands) - 1, 500))
    draw = np.concatenate([draw, bands[1:], -draw], axis=1)
    steepness = 1 + bands[1:] if cls is Arsinh else 1 / (1 - bands[1:])
    for a, b in ((1.0, 1.0), (0.7, 1.3), (1.25, 1.0), (0.1, 3.0)):
        psi = cls(a, b)
        w = ((psi.bound if math.isfinite(psi.bound) else a) * draw).astype(dtype)
        v = np.asarray(psi.inverse(w))
        np.testing.assert_allclose(psi(v), w, rtol=(6 if dtype == np.float32 else 16) * eps)
        exact = b * inverse(w.astype(np.float64) / a)
        assert np.all(np.abs(v / exact - 1) <= (16 + steepness) * eps)


@pytest.mark.parametrize("cls", [Arctan, Erf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_never_comes_back_on_the_other_side_of_the_bound(cls, dtype, x64):
    eps, exact = np.finfo(dtype).eps, 3  # w / a is exact for the first three a
    a = np.array([1.0, 0.5, 0.25, 0.6, 0.7, 1.1, *np.random.default_rng(0).uniform(0.05, 3, 94)])[:, None]
    psi = cls(a, 0.9)
    at = psi.bound.astype(dtype)
    neighbours = np.concatenate([np.nextafter(at, dtype(0)), at, np.nextafter(at, dtype(9))], axis=1)
    beyond = at * np.array([1 + 4 * eps, 1.0001, 1.01, 1.5, 2, 3, 1e9, np.inf], dtype)
    for sign in (1, -1):
        near = sign * np.asarray(psi.inverse(sign * neighbours))
        assert np.all(np.isnan(near) | (near > psi.inverse(at * dtype(0.999))))  # w / a may round either way here
        assert np.all(np.isnan(near[:exact, 1:]))
        assert np.all(np.isnan(psi.inverse(sign * beyond)))
        assert np.all(np.isfinite(psi.inverse(sign * at * dtype(1 - 4 * eps))))


@pytest.mark.parametrize("alpha, slope", [(1.0, 1.0), (1.5, 0.0), (2.0, 0.0)])
def test_powerprop_at_zero_has_the_right_derivative_and_no_nan(alpha, slope):
    zero = jnp.float32(0)
    for psi in (PowerProp(alpha), PowerProp(jnp.float32(alpha))):
        chex.assert_trees_all_equal((psi(zero), psi.inverse(zero)), (zero, zero))
        chex.assert_trees_all_equal((psi.derivative(zero), jax.grad(psi)(zero)), (jnp.float32(slope),) * 2)
    chex.assert_tree_all_finite(jax.grad(lambda psi: psi(zero) + psi.derivative(zero))(psi))


@each_psi
def test_huge_v_gives_no_nan(psi):
    v = np.where(V < 0, np.float32(-1e30), np.float32(1e30))
    of = lambda psi: (psi(v), psi.derivative(v), jax.vjp(lambda v, psi: psi(v), v, psi)[1](v / 1e30))
    found = jax.jit(of)(psi), jax.jit(of)(learned(psi))
    assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves(found)), found
    if math.isfinite(psi.bound):
        np.testing.assert_allclose(np.abs(psi(v)), psi.bound, rtol=1e-6)


@each_psi
def test_numbers_are_constants_and_arrays_are_leaves(psi):
    assert jax.tree.leaves(psi) == []
    names = NAMES[type(psi)]
    for some in (names, names[:1]):
        leaves = jax.tree_util.tree_leaves_with_path(
            dataclasses.replace(psi, **{name: jnp.float32(1.5) for name in some})
        )
        assert [jax.tree_util.keystr(path) for path, _ in leaves] == [f".{name}" for name in some]
    leaf = np.ones(2, np.float32)
    assert jax.tree.leaves(dataclasses.replace(psi, **{names[0]: leaf}))[0] is leaf  # NumPy's arrays are leaves too


@each_psi
def test_constants_are_part_of_the_structure(psi):
    # So a checkpoint of one Ψ does not load under another, and jit compiles again for another number.
    other = dataclasses.replace(psi, **{NAMES[type(psi)][0]: np.float32(1.75)})
    assert jax.tree.structure(psi) == jax.tree.structure(dataclasses.replace(psi)) != jax.tree.structure(other)
    assert psi == dataclasses.replace(psi) != other and hash(psi) == hash(dataclasses.replace(psi))
    v = jnp.linspace(-1, 1, 5)
    chex.assert_trees_all_close(jax.jit(lambda psi: psi(v))(other), other(v), rtol=1e-6)
    with pytest.raises(ValueError, match="different pytree metadata"):
        jax.tree.map(lambda x, y: x, psi, other)


@each_psi
def test_learned_arrays_can_be_mapped_and_traced_once(psi):
    v, psi = jnp.linspace(-1, 1, 5), learned(psi)
    rows = jax.vmap(lambda psi: psi(v))(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), psi))
    chex.assert_trees_all_close(rows[0], psi(v))
    chex.assert_trees_all_close(rows[1], jax.tree.map(lambda x: 2 * x, psi)(v))

    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(lambda psi, v: psi(v), n=1))
    for factor in (1.0, 2.0, 3.0):
        traced_once(jax.tree.map(lambda x, factor=factor: jnp.float32(x * factor), psi), v)


def test_arrays_may_leave_the_range_that_numbers_may_not():
    v = jnp.linspace(-1, 1, 5)
    negative = jax.tree.map(jnp.negative, learned(Arctan(A, B)))
    chex.assert_trees_all_close(negative(v), A * jnp.arctan(v / B), rtol=1e-6)  # both signs flip
    chex.assert_trees_all_close(dataclasses.replace(negative, b=B)(v), -A * jnp.arctan(v / B), rtol=1e-6)


@pytest.mark.parametrize("stand_in", [None, True, -1.0, "label"], ids=repr)
def test_tree_functions_may_put_anything_in_place_of_the_arrays(stand_in):
    # Masks hold bools, labels strings, and equinox.partition puts None.
    for psi in PSIS.values():
        found = jax.tree.map(lambda _: stand_in, learned(psi))
        assert [getattr(found, name) for name in NAMES[type(psi)]] == [stand_in] * len(NAMES[type(psi)])
        assert jax.tree.map(lambda _: stand_in, psi) == psi
    half = jax.tree.map(lambda _: stand_in, Arctan(jnp.float32(A), B))
    assert (half.a, half.b) == (stand_in, B)


KERNEL = jax.ShapeDtypeStruct((3, 3, 4, 5), jnp.bfloat16)
FORMS = {  # psi, learn, axes: the shapes of a and b, None for a constant
    "none": (Arctan(A, B), "none", {3}, (None, None)),
    "fine": (Arctan(A, B), "fine", {3}, ((1, 1, 1, 1),) * 2),
    "channel": (Arctan(A, B), "channel", {3}, ((1, 1, 1, 5),) * 2),
    "channel of two axes": (Arctan(A, B), "channel", {0, 3}, ((3, 1, 1, 5),) * 2),
    "an array stays learned": (Arctan(jnp.float32(A), B), "none", {3}, ((1, 1, 1, 1), None)),
    "an array of channels": (Arctan(jnp.full(5, A), B), "fine", {3}, ((1, 1, 1, 5), (1, 1, 1, 1))),
    "an array for each weight": (Arctan(np.full((3, 3, 4, 5), A), B), "channel", {3}, ((3, 3, 4, 5), (1, 1, 1, 5))),
}


@pytest.mark.parametrize("form", FORMS)
def test_learned_arrays_have_the_rank_of_their_weight(form):
    psi, learn, axes, shapes = FORMS[form]
    found = psi.for_weight(KERNEL, learn, axes)
    for x, start, shape in zip((found.a, found.b), (A, B), shapes, strict=True):
        if shape is None:
            assert x == start and isinstance(x, float)
        else:  # float32 at least, though the weight is bfloat16
            assert x.shape == shape and x.dtype == jnp.float32
            np.testing.assert_allclose(x, np.float32(start))


def test_learned_arrays_of_a_float64_weight_are_float64(x64):
    own = Arctan(A, B).for_weight(np.ones((2, 3)), "channel", {1})
    assert (own.a.dtype, own.a.shape) == (jnp.float64, (1, 3)) and np.all(own.a == A)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 3, 3, 4, 5)], ids=str)
def test_an_array_that_does_not_fit_its_weight_is_an_error(shape):
    with pytest.raises(ValueError, match=f"Arctan holds an array of shape {re.escape(str(shape))}, which does not fit"):
        Arctan(jnp.ones(shape), B).for_weight(KERNEL, "none", {3})


BAD = [0, 0.0, -1, np.float32(-2), math.nan, math.inf, -math.inf, True, None, "1"]


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("cls, field", [(Arctan, "a"), (Arctan, "b"), (Arsinh, "a"), (Erf, "b"), (PowerProp, "alpha")])
def test_a_number_out_of_range_is_an_error_that_names_it(cls, field, value):
    with pytest.raises(ValueError, match=f"{cls.__name__}: {field} must be .*found .*{value}"):
        cls(**{field: value})


def test_alpha_below_one_is_an_error_and_one_is_the_identity():
    with pytest.raises(ValueError, match="at least 1, found alpha=0.99"):
        PowerProp(0.99)
    chex.assert_trees_all_equal(PowerProp(1)(V.astype(np.float32)), V.astype(np.float32))


@pytest.mark.parametrize("cls", [Arctan, Arsinh, Erf, PowerProp])
def test_complex_numbers_are_refused(cls):
    for compute in (cls(), cls().inverse, cls().derivative):
        with pytest.raises(ValueError, match=f"{cls.__name__} is not defined for complex numbers, found complex64"):
            compute(jnp.ones(2, jnp.complex64))


def weight_norm_case():
    v, g = (np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in ((3, 3, 4, 5), (1, 1, 1, 5)))
    return jnp.asarray(v), jnp.asarray(g)


def test_weight_norm_is_the_closed_form_with_norms_g():
    v, g = weight_norm_case()
    w = np.asarray(WeightNorm(g)(v))
    np.testing.assert_allclose(w, reference.WeightNorm()(np.float64(v), np.float64(g)), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(w.reshape(-1, 5), axis=0), np.abs(g.ravel()), rtol=1e-6)
    half, rounded = v.astype(jnp.bfloat16), WeightNorm(g)(v.astype(jnp.bfloat16).astype(jnp.float32))
    chex.assert_trees_all_equal(WeightNorm(g)(half), rounded.astype(jnp.bfloat16))


@pytest.mark.parametrize("axes", [{3}, {0}, {0, 3}, {1, 2, 3}, set()], ids=str)
def test_weight_norm_starts_at_w_for_any_output_axes(axes):
    w, _ = weight_norm_case()
    own = WeightNorm().for_weight(w, "none", axes)
    summed = tuple(axis for axis in range(4) if axis not in axes)
    np.testing.assert_allclose(own.g, np.sqrt(np.sum(np.float64(w) ** 2, axis=summed, keepdims=True)), rtol=1e-6)
    assert own.g.ndim == 4 and jax.tree.leaves(own) == [own.g]
    chex.assert_trees_all_close(own(own.inverse(w)), w, rtol=1e-6)
    chex.assert_trees_all_close(own(3 * w), w, rtol=1e-6)  # only the direction of v counts


def test_weight_norm_before_its_first_weight_has_no_leaves():
    assert jax.tree.leaves(WeightNorm(axis=(0, 1))) == []
    assert jax.tree.structure(WeightNorm(axis=0)) != jax.tree.structure(WeightNorm(axis=1))


def test_weight_norm_gradients_are_those_by_hand():
    (v, g), cotangent = weight_norm_case(), np.sin(np.arange(180.0, dtype=np.float32)).reshape(3, 3, 4, 5)
    gradient_of = jax.jit(lambda v, g: jax.vjp(lambda v, g: WeightNorm(g)(v), v, g)[1](cotangent))
    by_v, by_g = gradient_of(v, g)
    expected_v, expected_g = reference.WeightNorm().backward(*map(np.float64, (v, g, cotangent)))
    np.testing.assert_allclose(by_v, expected_v, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_g, np.reshape(expected_g, (1, 1, 1, 5)), rtol=1e-4, atol=1e-6)
    assert np.abs(by_v).max() > 0.1
    np.testing.assert_allclose(np.sum(by_v * v, (0, 1, 2)), 0, atol=1e-5)  # orthogonal to v
    zero = v.at[..., 2].set(0)
    chex.assert_trees_all_equal(WeightNorm(g)(zero)[..., 2], jnp.zeros((3, 3, 4)))
    chex.assert_tree_all_finite(gradient_of(zero, g))


def test_weight_norm_of_stacked_weights_is_the_stack_of_its_weights():
    # As nn.scan and vmap make it: the first axis is no output axis of one weight, but its g has that axis.
    v, _ = weight_norm_case()
    stacked = jax.vmap(lambda w: WeightNorm().for_weight(w, "none", {2}))(v)
    assert stacked.g.shape == (3, 1, 1, 5)
    moved = v + jnp.arange(5.0)
    rows = [WeightNorm(g)(x) for g, x in zip(stacked.g, moved, strict=True)]
    chex.assert_trees_all_close(stacked(moved), jnp.stack(rows), rtol=1e-6)
