"""What users of other projects reported, tried on the core: each test is one kind of fault, with the right value."""

import dataclasses
import pickle

import chex
import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import wcjax
from wcjax import Arctan, WeightNorm, compand, fold, linen, optim, reparameterize
from wcjax.companding import schedule_free_eval_params

A, B = 0.6, 0.7
PSI = Arctan(A, B)
W = np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
PARAMS = {"kernel": W, "bias": np.float32([0.1, -0.2, 0.3])}
KEY = jax.random.key(0, impl="rbg")


def inverse(w, a=A, b=B):
    return b * np.tan(np.asarray(w, np.float64) / a)


def psi(v, a=A, b=B):
    return a * np.arctan(v / b)


def slope(v, a=A, b=B):
    return a * b / (b**2 + v**2)


def sgd_step(w, gradient, rate, a=A, b=B):
    """w after one step of SGD on v, in float64."""
    v = inverse(w, a, b)
    return psi(v - rate * slope(v, a, b) * gradient, a, b)


def after_update(tx, params, grads, **extra):
    updates, _ = tx.update(grads, tx.init(params), params, **extra)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("inner", [optax.sgd(0.1), optax.adamw(0.1)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_float64_weights_stay_inside_the_float64_bound(inner, adaptive):
    with jax.enable_x64(True):
        start = {"kernel": jnp.asarray([[0.5, -0.5]], jnp.float64)}
        tx = compand(inner, Arctan(0.6, 0.6), adaptive=adaptive)
        state, outside = tx.init(start), {"kernel": jnp.asarray([[5.0, -5.0]], jnp.float64)}
        updates, state = tx.update(start, state, outside)
        w = np.asarray(optax.apply_updates(outside, updates)["kernel"])
    bound = 0.6 * np.pi / 2
    assert np.all(np.abs(w) < bound) and np.all(np.abs(w) > bound * (1 - 1e-13)), w


def test_numpy_float64_weights_without_x64_stay_inside_the_bound():
    tx = compand(optax.sgd(0.1), Arctan(0.6, 0.6))
    state = tx.init({"kernel": np.array([[0.5, -0.5]])})
    outside = {"kernel": np.array([[5.0, -5.0]])}
    updates, _ = tx.update({"kernel": np.ones((1, 2))}, state, outside)
    w = np.float64(outside["kernel"]) + np.float64(updates["kernel"])
    assert np.all(np.abs(w) < 0.6 * np.pi / 2) and np.all(np.abs(w) > 0.9424)


SAM = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2, opaque_mode=True)


def test_a_function_that_would_be_called_with_v_is_refused_by_name():
    quadratic = lambda params, i=0: jax.tree.map(lambda p: p - 0.1, params)
    params = jax.tree.map(jnp.asarray, PARAMS)
    for learn in ("none", "fine"):
        tx = compand(SAM, PSI, learn=learn)
        with pytest.raises(ValueError, match="grad_fn is a function.*with v.*adaptive=True"):
            tx.update(PARAMS, tx.init(params), params, grad_fn=quadratic)
    tx, nodes = optim.scale_by_derivative(optax.adam(0.1)), reparameterize(params, PSI)
    with pytest.raises(ValueError, match="value_fn is a function"):
        tx.update(nodes, tx.init(nodes), nodes, value_fn=lambda params: 0.0)


KEEPING = {
    "sam": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
    "madgrad": optax.contrib.madgrad(0.1),
    "mechanic": optax.contrib.mechanize(optax.sgd(0.1)),
    "cocob": optax.contrib.cocob(),
    "sam in a chain": optax.chain(optax.clip(1.0), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))),
}


@pytest.mark.parametrize("inner", KEEPING)
def test_adaptive_refuses_an_inner_that_returns_to_kept_weights(inner):
    params = jax.tree.map(jnp.asarray, PARAMS)
    with pytest.raises(ValueError, match="keeps weights and returns to them .*State.*adaptive=False"):
        compand(KEEPING[inner], PSI, adaptive=True).init(params)
    with pytest.raises(ValueError, match="keeps weights and returns to them"):
        optim.scale_by_derivative(KEEPING[inner]).init(reparameterize(params, PSI))
    compand(KEEPING[inner], PSI).init(params)


def test_opaque_sam_and_lookahead_go_where_they_work():
    params = jax.tree.map(jnp.asarray, PARAMS)
    opaque = optax.contrib.sam(optax.adam(0.1), optax.sgd(0.05), opaque_mode=True)
    tx = compand(opaque, PSI, adaptive=True)
    tx.update(params, tx.init(params), params, grad_fn=lambda params, i: params)  # which gets w
    both = optax.LookaheadParams.init_synced(params)
    with pytest.raises(ValueError, match="wrap compand in lookahead"):
        compand(optax.lookahead(optax.sgd(0.1), 5, 0.5), PSI).init(both)
    optax.lookahead(compand(optax.sgd(0.1), PSI), 5, 0.5).init(both)


def test_the_call_of_an_older_wcjax_says_that_psi_is_found():
    with pytest.raises(ValueError, match="finds each Ψ in the tree: leave Arctan.* out"):
        optim.add_decayed_weights(1e-4, PSI)
    with pytest.raises(ValueError, match="finds each Ψ in the tree: leave Arctan.* out"):
        optim.add_decayed_weights(PSI)  # which would pass for a schedule


def test_sam_with_outer_rate_0_returns_to_where_it_was():
    tx = compand(optax.contrib.sam(optax.sgd(0.0), optax.sgd(0.5), sync_period=2), PSI)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params, PARAMS, atol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: jax.Array
    key: jax.Array
    value: jax.Array


@pytest.mark.parametrize("owner", ["attn", "kernel"])
def test_an_attribute_called_value_is_a_leaf_like_any_other(owner):
    ones = jnp.full((2, 2), 0.0)
    params = {owner: Attention(ones, ones, ones)}
    seen = []

    def where(path, leaf):
        seen.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return seen[-1].rpartition("/")[2] in ("query", "key", "value")

    tx = compand(optax.sgd(1.0), Arctan(0.5, 1.0), where=where)
    updates, _ = tx.update({owner: Attention(*[jnp.full((2, 2), 0.25)] * 3)}, tx.init(params), params)
    assert seen == [f"{owner}/query", f"{owner}/key", f"{owner}/value"]
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, 0.5 * np.arctan(-0.125), rtol=1e-6)  # -0.0625 to first order
    nodes = reparameterize(params, Arctan(0.5, 1.0), where)
    assert all(isinstance(x, wcjax.Reparameterized) for x in vars(nodes[owner]).values())


class Named(nn.Module):
    """A companded layer beside a module whose own parameters are called a, b, v and g."""

    @nn.compact
    def __call__(self, x):
        for name in "abvg":
            x = x + self.param(name, nn.initializers.constant(0.5), ())
        return x


class Net(nn.Module):
    reparam: object = PSI

    @nn.compact
    def __call__(self, x):
        return Named(name="named")(linen.Dense(3, reparam=self.reparam, kernel_init=nn.initializers.normal(0.1))(x))


def test_parameters_called_a_b_v_and_g_are_left_alone():
    x = jnp.ones((2, 4))
    params = Net().init(KEY, x)["params"]
    plain = Net(None).init(KEY, x)["params"]
    chex.assert_trees_all_close(fold(params), plain, rtol=1e-6)
    decay = optim.add_decayed_weights(0.1)
    found, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    chex.assert_trees_all_close(found["named"], jax.tree.map(lambda p: 0.1 * p, params["named"]))
    v = np.asarray(params["Dense_0"]["kernel"].v, np.float64)
    np.testing.assert_allclose(found["Dense_0"]["kernel"].v, 0.1 * psi(v) * slope(v), rtol=1e-5)
    tree = {"v": jnp.ones((2, 2)), "a": jnp.ones(()), "b": jnp.ones(()), "g": jnp.ones(2), "kernel": jnp.asarray(W)}
    chex.assert_trees_all_close(fold(reparameterize(tree, PSI)), tree, rtol=1e-6)
    chex.assert_trees_all_equal_structs(fold(reparameterize(tree, WeightNorm())), tree)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.bool_], ids=lambda dtype: dtype.__name__)
def test_weights_that_are_not_real_floats_are_refused(dtype):
    leaf, where = jnp.ones((2, 3), dtype), lambda path, leaf: True
    for attempt in (
        lambda: compand(optax.sgd(0.1), PSI, where=where).init({"x": leaf}),
        lambda: reparameterize({"x": leaf}, PSI, where=where),
        lambda: reparameterize({"x": leaf}, WeightNorm(), where=where),
    ):
        with pytest.raises(ValueError, match=f"x has dtype {leaf.dtype}, but only arrays of real floats"):
            attempt()
    for reparam in (PSI, WeightNorm(), linen.LearnedPair(PSI)):
        layer = linen.Dense(3, param_dtype=dtype, reparam=reparam, kernel_init=lambda key, shape, dtype: leaf)
        with pytest.raises(ValueError, match=f"kernel has dtype {leaf.dtype}, but only arrays of real floats"):
            layer.init(KEY, jnp.ones((1, 2)))


def test_a_leaf_that_is_no_array_is_refused_by_name():
    with pytest.raises(ValueError, match="kernel is a float, but only arrays"):
        compand(optax.sgd(0.1), PSI, where=lambda path, leaf: True).init({"kernel": 0.5})


FORMS = {
    "none": (PSI, "none"),
    "fine": (PSI, "fine"),
    "channel": (PSI, "channel"),
    "weightnorm": (WeightNorm(), "none"),
}


def stack_of(reparam, learn, axis, length=3, features=4):
    """A module that scans `length` Dense layers, stacked along `axis`."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            kernel_init = nn.initializers.uniform(0.5)
            return linen.Dense(features, reparam=reparam, learn=learn, kernel_init=kernel_init)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scanned = nn.scan(Layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=length)
            return scanned(name="layers")(x, None)[0]

    return Stack()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("form", FORMS)
def test_stacked_layers_are_folded_as_each_layer_by_itself(form, axis):
    (reparam, learn), x = FORMS[form], jnp.ones((2, 4))
    stack, plain = stack_of(reparam, learn, axis), stack_of(None, "none", axis)
    params = stack.init(KEY, x)["params"]
    moved = jax.tree.map(lambda p: 1.1 * p + 0.01 * jnp.arange(p.size).reshape(p.shape) / p.size, params)
    np.testing.assert_allclose(
        stack.apply({"params": moved}, x), plain.apply({"params": fold(moved)}, x), rtol=1e-5, atol=1e-6
    )
    stacked = 2 if axis == -1 else axis
    weight, w = moved["layers"]["Dense_0"]["kernel"], fold(moved)["layers"]["Dense_0"]["kernel"]
    for i in range(3):
        take = lambda x: np.take(np.asarray(x, np.float64), i, stacked)  # noqa: B023
        v = take(weight.v)
        if form == "weightnorm":
            g = take(weight.psi.g)
            expected = g * v / np.linalg.norm(v, axis=0, keepdims=True)
        else:
            a, b = (take(x) if np.ndim(x) else x for x in (weight.psi.a, weight.psi.b))
            expected = psi(v, a, b)
        np.testing.assert_allclose(take(w), expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("form", FORMS)
def test_reparameterize_under_vmap_gives_stacked_layers_their_own_pairs(form, axis):
    (reparam, learn), x = FORMS[form], jnp.ones((2, 4))
    stack, plain = stack_of(reparam, learn, axis), stack_of(None, "none", axis)
    weights = plain.init(KEY, x)["params"]["layers"]["Dense_0"]["kernel"]
    make = jax.vmap(lambda w: reparameterize({"kernel": w}, reparam, learn=learn), in_axes=axis, out_axes=axis)
    expected = stack.init(KEY, x)["params"]["layers"]["Dense_0"]["kernel"]
    chex.assert_trees_all_close(make(weights)["kernel"], expected, rtol=1e-5)


def test_an_array_of_a_per_channel_gets_a_gradient_for_each_channel():
    start = jnp.array([[0.6, 0.7, 0.8]])
    w, g = jnp.asarray(W) * 0.9, jnp.asarray(np.arange(6.0).reshape(2, 3), jnp.float32)
    tx = compand(optax.sgd(1.0), Arctan(a=start, b=B), learn="fine")
    state = tx.init({"kernel": w})
    _, state = tx.update({"kernel": g}, state, {"kernel": w})
    by_a = np.sum(np.asarray(g, np.float64) * w / np.asarray(start), axis=0, keepdims=True)
    np.testing.assert_allclose(state.pairs["kernel"]["a"], start - by_a, rtol=1e-5)
    nodes = reparameterize({"kernel": w}, Arctan(a=start, b=B))
    found = jax.grad(lambda nodes: jnp.vdot(fold(nodes)["kernel"], g))(nodes)
    np.testing.assert_allclose(found["kernel"].psi.a, by_a, rtol=1e-5)
    layer = linen.Dense(3, reparam=Arctan(a=start, b=B), learn="fine")
    assert layer.init(KEY, jnp.ones((1, 2)))["params"]["kernel"].psi.a.shape == (1, 3)
    with pytest.raises(ValueError, match="kernel: Arctan holds an array of shape .1, 5., which does not fit .2, 3."):
        compand(optax.sgd(1.0), Arctan(a=jnp.ones((1, 5)), b=B), learn="fine").init({"kernel": w})


def test_the_evaluation_weights_of_schedule_free_are_w():
    """As by hand: optax's schedule_free on v, and Ψ of its average."""
    inner = optax.contrib.schedule_free_sgd(0.3, b1=0.9)
    tx, params = compand(inner, PSI), {"kernel": jnp.asarray(W)}
    state, v = tx.init(params), jax.tree.map(lambda w: jnp.float32(inverse(w)), params)
    inner_state = inner.init(v)
    for i in range(5):
        grads = {"kernel": jnp.asarray(W) * (i - 2)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        steps, inner_state = inner.update(jax.tree.map(lambda g, v: g * slope(v), grads, v), inner_state, v)
        v = optax.apply_updates(v, steps)
    expected = psi(np.float64(optax.contrib.schedule_free_eval_params(inner_state, v)["kernel"]))
    found = schedule_free_eval_params(state, params)["kernel"]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert np.max(np.abs(found - params["kernel"])) > 1e-3, "an average that is the last w would say nothing"
    learned = compand(inner, PSI, learn="fine").init(params)
    with pytest.raises(ValueError, match="no evaluation weights with learned a and b: use learn='none'"):
        schedule_free_eval_params(learned, params)


def test_the_step_is_differentiable_where_the_angle_is_45_degrees():
    unit = Arctan(1.0, 1.0)
    w_of = lambda u: unit.change(jnp.zeros((1, 1)), jnp.full((1, 1), u))[0, 0]
    np.testing.assert_allclose(jax.grad(w_of)(1.0), 0.5, rtol=1e-6)
    tx = compand(optax.sgd(1.0), Arctan(1.0, 0.5))

    def w_after(rate):
        params = {"kernel": jnp.zeros((1, 1))}
        updates, _ = tx.update({"kernel": -rate * jnp.ones((1, 1))}, tx.init(params), params)
        return optax.apply_updates(params, updates)["kernel"][0, 0]

    # u = 2·rate, z = u / b = 4·rate: at rate 1/4 w = arctan(1), dw/drate = 4 / (1 + 1).
    np.testing.assert_allclose(jax.grad(w_after)(0.25), 2.0, rtol=1e-6)
    for angle in ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (2.0, 0.5), (0.0, 1.0), (1.0, 0.0)):
        by_y, by_x = jax.grad(wcjax.elementary.arctan2, (0, 1))(*map(jnp.float32, angle))
        y, x = angle
        np.testing.assert_allclose((by_y, by_x), (x / (x * x + y * y), -y / (x * x + y * y)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_huge_step_stops_at_the_bound_in_every_dtype(dtype, adaptive):
    params = {"kernel": jnp.asarray(W, dtype)}
    for size in (1e3, 6e4):
        w = after_update(
            compand(optax.sgd(100.0), PSI, adaptive=adaptive), params, {"kernel": jnp.full((2, 3), -size, dtype)}
        )
        w = np.asarray(w["kernel"], np.float64)
        assert np.all(w < PSI.bound) and np.all(w > 0.9 * PSI.bound), w


def state_of(tx, params):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tx.init(params))


@pytest.mark.parametrize("learn", ["none", "fine", "channel", "coarse"])
def test_init_takes_what_plain_optax_takes(learn):
    params = {"layer": jax.tree.map(jnp.asarray, PARAMS)}
    tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for of in (shapes, jax.eval_shape(lambda: params)):
        assert state_of(tx, of) == state_of(tx, params)
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda x: 2 * x + 1, state)
    adam = mapped.inner[0]
    chex.assert_trees_all_equal(
        jax.tree.leaves(adam.mu[0] if learn != "none" else adam.mu), [np.ones(3), np.ones((2, 3))]
    )
    if learn == "none":
        optax.tree.map_params(tx, lambda x, other: x + other, state, params)
    for label in ("biases", "nothing"):  # a group without a kernel, and a group without any leaf
        labels = {"layer": {"kernel": "plain", "bias": "wc" if label == "biases" else "plain"}}
        both = optax.partition({"wc": tx, "plain": optax.sgd(0.1)}, labels)
        updates, _ = both.update(params, both.init(params), params)
        np.testing.assert_allclose(updates["layer"]["kernel"], -0.1 * W, rtol=1e-6)
    nodes = reparameterize(params, PSI)
    scaled = optim.scale_by_derivative(optax.adam(0.1))
    optax.tree.map_params(scaled, lambda x, other: x + other, scaled.init(nodes), nodes)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        reparameterize(shapes, PSI, learn="none" if learn == "coarse" else learn),
        jax.eval_shape(lambda: reparameterize(params, PSI, learn="none" if learn == "coarse" else learn)),
    )


class Mlp(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    activation: object = jax.nn.tanh

    def __call__(self, x):
        return self.last(self.activation(self.first(x)))


def test_frozen_leaves_without_gradient_stay_and_the_others_train():
    """The whole Equinox model as params, gradients None for frozen leaves and for functions."""
    keys = jax.random.split(KEY)
    model = Mlp(eqx.nn.Linear(3, 2, key=keys[0]), eqx.nn.Linear(2, 2, key=keys[1]))
    trainable = eqx.tree_at(
        lambda m: (m.last.weight, m.last.bias), jax.tree.map(eqx.is_inexact_array, model), (False, False)
    )
    part, frozen = eqx.partition(model, trainable)
    grads = jax.grad(lambda part: jnp.sum(eqx.combine(part, frozen)(jnp.ones(3)) ** 2))(part)
    for learn in ("none", "fine", "coarse"):
        tx = compand(optax.sgd(0.1), PSI, weight_decay=0.01, learn=learn)
        updates, _ = tx.update(grads, tx.init(model), model)
        assert updates.last.weight is None
        moved = eqx.apply_updates(model, updates)
        chex.assert_trees_all_equal(moved.last, model.last)
        if learn == "none":
            expected = sgd_step(model.first.weight, grads.first.weight + 0.01 * model.first.weight, 0.1)
            np.testing.assert_allclose(moved.first.weight, expected, rtol=1e-5)
    nodes = reparameterize(model, PSI)
    part, frozen = eqx.partition(nodes, jax.tree.map(eqx.is_inexact_array, nodes))
    loss = lambda part: jnp.sum(fold(eqx.combine(part, frozen))(jnp.ones(3)) ** 2)
    grads = eqx.tree_at(lambda m: m.last.weight.v, jax.grad(loss)(part), None)
    tx = optax.chain(optim.add_decayed_weights(0.01), optim.scale_by_derivative(optax.sgd(0.1)))
    updates, _ = tx.update(grads, tx.init(part), part)
    assert updates.last.weight.v is None and np.any(updates.first.weight.v != 0)


class OwnName(nn.Module):
    features: int = 2

    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.features))


@pytest.mark.parametrize(
    "cls", [nn.Embed, nn.MultiHeadDotProductAttention, nn.LSTMCell, nn.GRUCell, nn.LayerNorm, nn.Sequential, nn.RNN]
)
def test_companded_refuses_flax_layers_without_their_own_kernel(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} has no parameter 'kernel' of its own; these have: Conv, .*"):
        linen.companded(cls)


@pytest.mark.parametrize("reparam", [PSI, "arctan"])
def test_companded_refuses_other_classes_without_a_kernel(reparam):
    layer = linen.companded(OwnName)(reparam=reparam)
    with pytest.raises(ValueError, match="no parameter 'kernel' of its own|psi must be"):
        layer.init(KEY, jnp.ones((1, 2)))
    plain = linen.companded(OwnName)()
    chex.assert_trees_all_equal(plain.init(KEY, jnp.ones((1, 2))), OwnName().init(KEY, jnp.ones((1, 2))))
    for thing in (None, nn.Dense(2), int):
        with pytest.raises(ValueError, match="takes a class of Flax Linen layers"):
            linen.companded(thing)


@pytest.mark.parametrize("learn", ["none", "fine", "channel", "coarse"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_strict_dtype_promotion_with_bfloat16_is_no_error(learn, adaptive):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    with jax.numpy_dtype_promotion("strict"):
        tx = compand(optax.sgd(0.1, momentum=0.9), PSI, adaptive=adaptive, learn=learn)
        moved = after_update(tx, params, params)
        assert moved["kernel"].dtype == jnp.bfloat16 and np.any(moved["kernel"] != params["kernel"])
        if learn != "coarse":
            nodes = reparameterize(params, PSI, learn=learn)
            tx = optim.scale_by_derivative(optax.sgd(0.1, momentum=0.9))
            grads = jax.grad(lambda p: jnp.sum(jnp.square(fold(p)["kernel"])))(nodes)
            assert after_update(tx, nodes, grads)["kernel"].v.dtype == jnp.bfloat16
        layer = linen.Dense(
            3, reparam=PSI, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, kernel_init=nn.initializers.zeros
        )
        layer.init(KEY, jnp.ones((1, 2), jnp.bfloat16))


@pytest.mark.parametrize("base", [nn.Dense, nn.Conv, nn.DenseGeneral, nn.ConvTranspose, nn.Einsum])
def test_companded_layers_and_their_classes_pickle(base):
    cls = linen.companded(base)
    assert pickle.loads(pickle.dumps(cls)) is cls is linen.companded(base)
    nodes = reparameterize(PARAMS, Arctan(jnp.ones(()), 0.5))
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(nodes)), nodes)
    layer = linen.Dense(3, reparam=PSI, learn="fine", kernel_init=nn.initializers.zeros)
    assert pickle.loads(pickle.dumps(layer)) == layer


def test_the_error_of_the_bound_says_what_the_dtype_reaches():
    params = {"kernel": jnp.full((2, 2), 0.9219, jnp.bfloat16)}
    for attempt in (
        lambda: compand(optax.sgd(0.1), Arctan(0.6, 0.6)).init(params),
        lambda: reparameterize(params, Arctan(0.6, 0.6)),
    ):
        with pytest.raises(ValueError, match=r"largest \|w\| is 0.921875, but .* \|w\| < 0.9130.. in bfloat16"):
            attempt()
    reparameterize(jax.tree.map(lambda w: w.astype(jnp.float32), params), Arctan(0.6, 0.6))


WEIGHT_NORM_AXES = {
    "ConvTranspose": (linen.companded(nn.ConvTranspose)(5, (2,), transpose_kernel=True), (1, 4, 3), (1, 5, 1), (0, 2)),
    "DenseGeneral": (linen.companded(nn.DenseGeneral)((2, 3)), (1, 4), (1, 2, 3), (0,)),
    "DenseGeneral of two axes": (linen.companded(nn.DenseGeneral)(3, axis=(-2, -1)), (1, 4, 2), (1, 1, 3), (0, 1)),
    "Conv": (linen.Conv(5, (2, 2)), (1, 4, 4, 3), (1, 1, 1, 5), (0, 1, 2)),
}


@pytest.mark.parametrize("name", WEIGHT_NORM_AXES)
def test_weight_norm_has_a_norm_for_each_output_channel(name):
    layer, shape, norms, summed = WEIGHT_NORM_AXES[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    params = layer.clone(reparam=WeightNorm()).init(KEY, x)["params"]
    plain = layer.init(KEY, x)["params"]
    g = params["kernel"].psi.g
    assert g.shape == norms
    np.testing.assert_allclose(
        g,
        np.linalg.norm(plain["kernel"].reshape(-1), axis=None)
        if False
        else np.sqrt(np.sum(np.square(plain["kernel"]), axis=summed, keepdims=True)),
        rtol=1e-6,
    )
    params["kernel"] = dataclasses.replace(params["kernel"], psi=WeightNorm(g=2 * g))
    plain["kernel"] = 2 * plain["kernel"]
    chex.assert_trees_all_close(
        layer.clone(reparam=WeightNorm()).apply({"params": params}, x), layer.apply({"params": plain}, x), rtol=1e-5
    )
    pairs = layer.clone(reparam=Arctan(3.0, 1.0), learn="channel").init(KEY, x)["params"]["kernel"].psi
    assert pairs.a.shape == pairs.b.shape == norms
    named = reparameterize({"kernel": plain["kernel"]}, WeightNorm(axis=(0, -1)))["kernel"].psi.g
    assert named.shape == (plain["kernel"].shape[0], *[1] * (plain["kernel"].ndim - 2), plain["kernel"].shape[-1])


@pytest.mark.parametrize("learn", ["none", "fine", "channel", "coarse"])
def test_flax_serialization_restores_nodes_and_states_to_the_bit(learn):
    params = {"layer": jax.tree.map(jnp.asarray, PARAMS)}
    tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
    _, state = tx.update(params, tx.init(params), params)
    for tree in (state, Net(linen.LearnedPair(PSI)).init(KEY, jnp.ones((1, 2)))["params"]) + (
        () if learn == "coarse" else (reparameterize(params, PSI, learn=learn), reparameterize(params, WeightNorm()))
    ):
        blank = jax.tree.map(jnp.zeros_like, tree)
        restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(tree))
        chex.assert_trees_all_equal(restored, tree)


INSIDE_AT_ONCE = {
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
    "madgrad": optax.contrib.madgrad(0.1),
    "dog": optax.contrib.dog(),
    "sgd": optax.sgd(0.1),
}


@pytest.mark.parametrize("inner", INSIDE_AT_ONCE)
def test_weights_beyond_the_bound_under_a_jitted_init_come_inside(inner):
    tx, params = compand(INSIDE_AT_ONCE[inner], Arctan(0.6, 0.6)), {"kernel": jnp.array([[5.0, 0.1]])}
    updates, _ = tx.update({"kernel": jnp.ones((1, 2))}, jax.jit(tx.init)(params), params)
    w = optax.apply_updates(params, updates)["kernel"]
    assert np.all(np.isfinite(w)) and 0.9 < w[0, 0] < 0.6 * np.pi / 2


def test_a_numpy_scalar_is_checked_like_an_array():
    with pytest.raises(ValueError, match=r"t: largest \|w\| is 3, but .* in float32"):
        reparameterize({"t": np.float32(3.0)}, PSI, where=lambda *_: True)


class Softsign(wcjax.psi.Elementwise):
    bound = 1.0

    def __call__(self, v):
        return v / (1 + jnp.abs(v))

    def inverse(self, w):
        return w / (1 - jnp.abs(w))

    def derivative(self, v):
        return 1 / jnp.square(1 + jnp.abs(v))


def test_a_psi_of_the_users_own_is_checked_and_trained():
    params = {"kernel": jnp.asarray(W)}
    with pytest.raises(ValueError, match=r"kernel: largest \|w\| is 2.1, but Softsign\(\) only reaches .* smaller"):
        reparameterize({"kernel": 3 * jnp.asarray(W)}, Softsign())
    with pytest.raises(ValueError, match="Softsign has no a and b to learn"):
        compand(optax.sgd(0.1), Softsign(), learn="fine")
    chex.assert_trees_all_close(fold(reparameterize(params, Softsign())), params, rtol=1e-6)
    v = W / (1 - np.abs(W)) - 0.1 / (1 + np.abs(W / (1 - np.abs(W)))) ** 2
    moved = after_update(compand(optax.sgd(0.1), Softsign()), params, {"kernel": jnp.ones((2, 3))})
    np.testing.assert_allclose(moved["kernel"], v / (1 + np.abs(v)), rtol=1e-5)


@pytest.mark.parametrize("psi", [Arctan(0.9, B), wcjax.Erf(2.0, B), Arctan(jnp.float32(A), B)])
def test_flax_serialization_refuses_another_psi(psi):
    saved = flax.serialization.to_bytes(reparameterize(PARAMS, PSI))
    with pytest.raises(ValueError, match="the state holds Arctan .*'a': 0.6, 'b': 0.7.*, but the target has"):
        flax.serialization.from_bytes(reparameterize(PARAMS, psi), saved)


@pytest.mark.parametrize(
    "around", [lambda p: (p, {}), lambda p: [p], lambda p: {"deep": {"er": p}}], ids=["tuple", "list", "dict"]
)
def test_a_shared_pair_leaves_any_tree_that_is_folded(around):
    params = Net(linen.LearnedPair(PSI, name="pair")).init(KEY, jnp.ones((1, 4)))["params"]
    plain = Net(None).init(KEY, jnp.ones((1, 4)))["params"]
    chex.assert_trees_all_equal_structs(fold(around(params)), around(plain))


def test_describe_names_a_psi_in_the_wrong_place_and_knows_negative_bounds(capsys):
    with pytest.raises(ValueError, match="`where` must be a function"):
        wcjax.describe(PARAMS, PSI)
    with pytest.raises(ValueError, match="psi must be"):
        wcjax.describe(PARAMS, psi=Arctan)
    wcjax.describe(reparameterize({"kernel": jnp.full((2, 2), 0.3)}, Arctan(jnp.float32(-0.6), 0.6)))
    assert "31.8%" in capsys.readouterr().out
