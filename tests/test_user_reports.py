"""Faults that users of other projects reported, tried on the core: each test is one kind, with the right value.

WeightNorm's axis in layers that have several or another one is a case of test_linen.py.
"""

import functools
import pickle
import subprocess
import sys

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
from tests.truth import PSIS, Psi
from wcjax import Arctan, WeightNorm, compand, fold, linen, optim, reparameterize
from wcjax.companding import schedule_free_eval_params

TRUTH = Psi("arctan", 0.6, 0.7)
PSI = TRUTH.ours()
W = np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
PARAMS = {"kernel": jnp.asarray(W), "bias": jnp.float32([0.1, -0.2, 0.3])}
KEY = jax.random.key(0, impl="rbg")
LEARN = ["none", "fine", "channel", "coarse"]
EVERY = lambda path, leaf: True
each_learn = pytest.mark.parametrize("learn", ["none", "channel", "coarse"])


def after_update(tx, params, grads, state=None):
    updates, _ = jax.jit(tx.update)(grads, tx.init(params) if state is None else state, params)
    return optax.apply_updates(params, updates)


INNER = {
    "sgd": optax.sgd(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.0),
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
}
BEYOND = [
    *(("sgd", kind, False, "none") for kind in ("float64", "NumPy float64", "float32")),
    ("adamw", "float32", True, "none"),
    ("schedule_free", "float32", False, "none"),
    ("sgd", "float32", False, "fine"),
    ("adamw", "float32", True, "coarse"),
]


@pytest.mark.parametrize("inner, kind, adaptive, learn", BEYOND)
def test_a_weight_beyond_the_bound_is_taken_just_inside(inner, kind, adaptive, learn):
    with jax.enable_x64(kind == "float64"):
        make = np.array if kind.startswith("NumPy") else functools.partial(jnp.asarray, dtype=kind)
        start, beyond = {"kernel": make([[0.5, -0.5]])}, {"kernel": make([[5.0, -5.0]])}
        tx = compand(INNER[inner], Arctan(0.6, 0.6), adaptive=adaptive, learn=learn)
        grads = jax.tree.map(jnp.ones_like if learn == "none" else jnp.zeros_like, start)
        update, add = jax.jit(tx.update), optax.apply_updates
        if kind.startswith("NumPy"):  # where x64 is off jit would make it float32
            update, add = tx.update, functools.partial(jax.tree.map, np.add)
        states = [jax.jit(tx.init)(beyond)]  # under jit init cannot check the values
        if inner in ("sgd", "adamw"):  # which do not return to the first weights
            states.append(tx.init(start))
        for state in states:
            w = np.float64(add(beyond, update(grads, state, beyond)[0])["kernel"])
            share = w / (0.6 * np.pi / 2) * [[1, -1]]
            assert np.all(share < 1) and np.all(share > 1 - (1e-13 if kind == "float64" else 1e-3)), w


def test_a_function_that_inner_would_call_with_v_is_refused():
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2, opaque_mode=True)
    cases = [(compand(sam, PSI, learn=learn), "grad_fn", PARAMS) for learn in ("none", "fine")]
    cases += [(compand(optax.lbfgs(), PSI), "value_fn", PARAMS)]
    cases += [(compand(optax.lbfgs(), PSI, adaptive=True, learn=learn), "value_fn", PARAMS) for learn in LEARN[1:]]
    cases += [(optim.scale_by_derivative(optax.adam(0.1)), "value_fn", reparameterize(PARAMS, PSI))]
    for tx, name, params in cases:
        with pytest.raises(ValueError, match=f"{name} is a function, .* with v instead of w. Use .*adaptive=True"):
            tx.update(params, tx.init(params), params, **{name: lambda params, i=0: params})


def test_a_function_that_sees_w_is_called():
    value = lambda params: jnp.sum((params["kernel"] - 0.3) ** 2) + jnp.sum(params["bias"] ** 2)
    tx = compand(optax.lbfgs(), PSI, adaptive=True)
    more = {"value": value(PARAMS), "grad": jax.grad(value)(PARAMS), "value_fn": value}
    updates, _ = jax.jit(lambda params: tx.update(more["grad"], tx.init(params), params, **more))(PARAMS)
    assert value(optax.apply_updates(PARAMS, updates)) < value(PARAMS)
    seen = []
    opaque = optax.contrib.sam(optax.adam(0.1), optax.sgd(0.05), opaque_mode=True)
    tx = compand(opaque, PSI, adaptive=True)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad_fn=lambda params, i: seen.append(params) or params)
    assert np.all(np.abs(seen[0]["kernel"] - W) < 0.06)


SAM = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))
KEEPING = {
    "sam": SAM,
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
    "madgrad": optax.contrib.madgrad(0.1),
    "mechanic": optax.contrib.mechanize(optax.sgd(0.1)),
    "cocob": optax.contrib.cocob(),
    "sam in a chain": optax.chain(optax.clip(1.0), SAM),
}


@pytest.mark.parametrize("inner", KEEPING)
def test_adaptive_refuses_an_inner_that_returns_to_kept_weights(inner):
    with pytest.raises(ValueError, match="keeps weights and returns to them .*State.*adaptive=False"):
        compand(KEEPING[inner], PSI, adaptive=True).init(PARAMS)
    with pytest.raises(ValueError, match="keeps weights and returns to them"):
        optim.scale_by_derivative(KEEPING[inner]).init(reparameterize(PARAMS, PSI))
    compand(KEEPING[inner], PSI).init(PARAMS)


def test_sam_and_lookahead_return_to_where_they_were():
    tx = compand(optax.contrib.sam(optax.sgd(0.0), optax.sgd(0.5), sync_period=2), PSI)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params, PARAMS, atol=1e-6)
    both = optax.LookaheadParams.init_synced(PARAMS)
    with pytest.raises(ValueError, match="wrap compand in lookahead"):
        compand(optax.lookahead(optax.sgd(0.1), 5, 0.5), PSI).init(both)
    optax.lookahead(compand(optax.sgd(0.1), PSI), 5, 0.5).init(both)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.bool_], ids=lambda dtype: dtype.__name__)
def test_weights_that_are_not_real_floats_are_refused(dtype):
    leaf = jnp.ones((2, 3), dtype)
    for attempt in (
        lambda: compand(optax.sgd(0.1), PSI, where=EVERY).init({"x": leaf}),
        lambda: reparameterize({"x": leaf}, PSI, where=EVERY),
        lambda: reparameterize({"x": leaf}, WeightNorm(), where=EVERY),
    ):
        with pytest.raises(ValueError, match=f"x has dtype {leaf.dtype}, but only arrays of real floats"):
            attempt()
    for reparam in (PSI, linen.LearnedPair(PSI)):
        layer = linen.Dense(3, param_dtype=dtype, reparam=reparam, kernel_init=lambda key, shape, dtype: leaf)
        with pytest.raises(ValueError, match=f"kernel has dtype {leaf.dtype}, but only arrays of real floats"):
            layer.init(KEY, jnp.ones((1, 2)))


def test_a_leaf_that_is_not_an_array_is_refused_by_name():
    for attempt in (compand(optax.sgd(0.1), PSI, where=EVERY).init, lambda tree: reparameterize(tree, PSI, EVERY)):
        with pytest.raises(ValueError, match="kernel is a float, but only arrays of real floats"):
            attempt({"kernel": 0.5})
    with pytest.raises(ValueError, match=r"t: largest \|w\| is 3, but .* in float32"):
        reparameterize({"t": np.float32(3.0)}, PSI, where=EVERY)  # a NumPy scalar is checked like an array


FORMS = {
    "none": (PSI, "none"),
    "fine": (PSI, "fine"),
    "channel": (PSI, "channel"),
    "weightnorm": (WeightNorm(), "none"),
}


@functools.cache
def scanned(reparam, learn, axis, length):
    """(apply, params) of `length` Dense layers that nn.scan stacks along `axis`."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            kernel_init = nn.initializers.uniform(0.5)
            return linen.Dense(4, reparam=reparam, learn=learn, kernel_init=kernel_init, name="dense")(x), None

    stack = nn.scan(Layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=length)()
    x = jnp.ones((2, 4))
    params = jax.jit(lambda: stack.init(KEY, x, None)["params"])()
    return lambda params: stack.apply({"params": params}, x, None)[0], params


STACKS = [("none", -1, 3), ("fine", 0, 3), ("channel", 1, 4), ("weightnorm", 1, 4)]  # in 4 every size fits every axis


@pytest.mark.parametrize("form, axis, length", STACKS)
def test_stacked_layers_are_folded_as_each_layer_by_itself(form, axis, length):
    apply, start = scanned(*FORMS[form], axis, length)
    plain, weights = scanned(None, "none", axis, length)
    reparam, learn = FORMS[form]
    make = jax.vmap(lambda w: reparameterize({"kernel": w}, reparam, learn=learn), in_axes=axis, out_axes=axis)
    made = jax.jit(make)(weights["dense"]["kernel"])["kernel"]
    chex.assert_trees_all_close(made, start["dense"]["kernel"], rtol=1e-5)

    params = jax.tree.map(
        lambda p: np.float32(1.1 * np.asarray(p) + 0.01 * np.arange(p.size).reshape(p.shape) / p.size), start
    )
    outputs = jax.jit(lambda params: (apply(params), plain(fold(params)), fold(params)))
    y, by_fold, folded = outputs(params)
    np.testing.assert_allclose(y, by_fold, rtol=1e-5, atol=1e-6)
    weight, w = params["dense"]["kernel"], folded["dense"]["kernel"]
    for i in range(length):
        take = lambda x: np.take(np.float64(x), i, 2 if axis == -1 else axis) if np.ndim(x) else x  # noqa: B023
        v, psi = take(weight.v), jax.tree.map(take, weight.psi)
        if form == "weightnorm":
            expected = psi.g * v / np.linalg.norm(v, axis=0, keepdims=True)
        else:
            expected = Psi("arctan", psi.a, psi.b)(v)
        np.testing.assert_allclose(take(w), expected, rtol=1e-5)


def test_an_array_per_channel_gets_a_gradient_for_each_channel():
    start = jnp.array([[0.6, 0.7, 0.8]])
    w, g = PARAMS["kernel"] * 0.9, jnp.float32(np.arange(6.0).reshape(2, 3))
    psi = Arctan(a=start, b=0.7)
    tx = compand(optax.sgd(1.0), psi, learn="fine")
    _, state = tx.update({"kernel": g}, tx.init({"kernel": w}), {"kernel": w})
    by_a = np.sum(np.float64(g) * w / start, axis=0, keepdims=True)
    np.testing.assert_allclose(state.pairs["kernel"]["a"], start - by_a, rtol=1e-5)
    nodes = reparameterize({"kernel": w}, psi)
    gradient = jax.grad(lambda nodes: jnp.vdot(fold(nodes)["kernel"], g))(nodes)
    np.testing.assert_allclose(gradient["kernel"].psi.a, by_a, rtol=1e-5)
    layer = linen.Dense(3, reparam=psi, learn="fine")
    assert layer.init(KEY, jnp.ones((1, 2)))["params"]["kernel"].psi.a.shape == (1, 3)
    with pytest.raises(ValueError, match="kernel: Arctan holds an array of shape .1, 5., which does not fit .2, 3."):
        compand(optax.sgd(1.0), Arctan(a=jnp.ones((1, 5))), learn="fine").init({"kernel": w})


def test_the_evaluation_weights_of_schedule_free_are_w():
    """As by hand: optax's schedule_free on v, and Ψ of its average."""
    inner = optax.contrib.schedule_free_sgd(0.3, b1=0.9)
    tx, params = compand(inner, PSI), {"kernel": PARAMS["kernel"]}
    state, v = tx.init(params), jax.tree.map(lambda w: jnp.float32(TRUTH.inverse(w)), params)
    inner_state = inner.init(v)
    for i in range(5):
        grads = {"kernel": PARAMS["kernel"] * (i - 2)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        dv = jax.tree.map(lambda g, v: jnp.float32(g * TRUTH.derivative(v)), grads, v)
        steps, inner_state = inner.update(dv, inner_state, v)
        v = optax.apply_updates(v, steps)
    expected = TRUTH(optax.contrib.schedule_free_eval_params(inner_state, v)["kernel"])
    average = schedule_free_eval_params(state, params)["kernel"]
    np.testing.assert_allclose(average, expected, rtol=2e-5)
    assert np.max(np.abs(average - params["kernel"])) > 1e-3, "an average that is the last w would say nothing"
    with pytest.raises(ValueError, match="no evaluation weights with learned a and b: use learn='none'"):
        schedule_free_eval_params(compand(inner, PSI, learn="fine").init(params), params)


def test_the_step_is_differentiable_at_45_degrees():
    unit = Arctan(1.0, 1.0)
    w_of = lambda u: unit.change(jnp.zeros((1, 1)), jnp.full((1, 1), u))[0, 0]
    np.testing.assert_allclose(jax.jit(jax.grad(w_of))(1.0), 0.5, rtol=1e-6)
    tx = compand(optax.sgd(1.0), Arctan(1.0, 0.5))
    w_after = lambda rate: after_update(tx, {"w": jnp.zeros((1, 1))}, {"w": -rate * jnp.ones((1, 1))})["w"][0, 0]
    # u = 2·rate, z = u / b = 4·rate: at rate 1/4 w = arctan(1), dw/drate = 4 / (1 + 1).
    np.testing.assert_allclose(jax.jit(jax.grad(w_after))(0.25), 2.0, rtol=1e-6)
    y, x = np.float32([1, -1, 1, 2, 0, 1]), np.float32([1, 1, -1, 0.5, 1, 0])
    gradients = jax.jit(jax.vmap(jax.grad(wcjax.elementary.arctan2, (0, 1))))(y, x)
    np.testing.assert_allclose(gradients, (x / (x * x + y * y), -y / (x * x + y * y)), rtol=1e-6)


HUGE = {"float32": [3e37], "bfloat16": [3e37], "float16": [6e4, 1e3]}  # gradients, which the rate of 100 makes inf


@pytest.mark.parametrize("psi, adaptive", [*((psi, False) for psi in PSIS), (PSIS[0], True)], ids=str)
def test_a_huge_step_stops_at_the_bound_in_every_dtype(psi, adaptive):
    leaves = [jnp.full((2, 6), size, dtype) for dtype, sizes in HUGE.items() for size in sizes]
    params = [{"kernel": jnp.asarray([[0.0, 1e-30, 0.5, -0.5, 0.7, -0.7]] * 2, size.dtype)} for size in leaves]
    tx, side = compand(optax.sgd(100.0), psi.ours(), adaptive=adaptive), np.float32([[1], [-1]])
    step, state = jax.jit(tx.update), tx.init(params)
    for direction in (side, -side):
        for _ in range(20):
            grads = [{"kernel": -size * direction.astype(size.dtype)} for size in leaves]
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        for w in map(np.float64, jax.tree.leaves(params)):
            assert np.all(np.isfinite(w)) and np.all(np.abs(w) < psi.bound)
            if direction is side or psi.name != "arsinh":  # no step times Ψ′ moves Arsinh's v of 1e30 back
                assert np.all(np.sign(w[:, 2:]) == direction)  # a PowerProp that starts at 0 rests
            if psi.name == "arctan":
                assert np.all(w * direction > 0.9 * psi.bound)


def state_of(tx, params):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tx.init(params))


@each_learn
def test_init_takes_what_plain_optax_takes(learn):
    params = {"layer": PARAMS}
    tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
    shapes = jax.eval_shape(lambda: params)
    assert state_of(tx, shapes) == state_of(tx, params)
    state = tx.init(params)
    adam = optax.tree.map_params(tx, lambda x: 2 * x + 1, state).inner[0]
    chex.assert_trees_all_equal(jax.tree.leaves(adam.mu)[:2], [np.ones(3), np.ones((2, 3))])
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


class Mlp(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    activation: object = jax.nn.tanh

    def __call__(self, x):
        return self.last(self.activation(self.first(x)))


def test_frozen_leaves_stay_and_the_others_train():
    """The whole Equinox model as params, gradients None for frozen leaves and for functions."""
    keys = jax.random.split(KEY)
    model = Mlp(eqx.nn.Linear(3, 2, key=keys[0]), eqx.nn.Linear(2, 2, key=keys[1]))
    trainable = eqx.tree_at(
        lambda m: (m.last.weight, m.last.bias), jax.tree.map(eqx.is_inexact_array, model), (False, False)
    )
    part, frozen = eqx.partition(model, trainable)
    grads = jax.grad(lambda part: jnp.sum(eqx.combine(part, frozen)(jnp.ones(3)) ** 2))(part)
    for learn in ("none", "coarse"):
        tx = compand(optax.sgd(0.1), PSI, weight_decay=0.01, learn=learn)
        updates, _ = tx.update(grads, tx.init(model), model)
        assert updates.last.weight is None
        moved, w = eqx.apply_updates(model, updates), np.float64(model.first.weight)
        chex.assert_trees_all_equal(moved.last, model.last)
        if learn == "none":
            dv = TRUTH.derivative(TRUTH.inverse(w)) * (grads.first.weight + 0.01 * w)
            np.testing.assert_allclose(moved.first.weight, TRUTH.step(w, -0.1 * dv), rtol=1e-5)
    nodes = reparameterize(model, PSI)
    part, frozen = eqx.partition(nodes, jax.tree.map(eqx.is_inexact_array, nodes))
    loss = lambda part: jnp.sum(fold(eqx.combine(part, frozen))(jnp.ones(3)) ** 2)
    grads = eqx.tree_at(lambda m: m.last.weight.v, jax.grad(loss)(part), None)
    tx = optax.chain(optim.add_decayed_weights(0.01), optim.scale_by_derivative(optax.sgd(0.1)))
    updates, _ = tx.update(grads, tx.init(part), part)
    assert updates.last.weight.v is None and np.any(updates.first.weight.v != 0)


class OwnName(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 2))


def test_companded_refuses_layers_without_their_own_kernel():
    attention, recurrent = nn.MultiHeadDotProductAttention, (nn.LSTMCell, nn.GRUCell, nn.RNN)
    for cls in (nn.Embed, attention, *recurrent, nn.LayerNorm, nn.Sequential):
        with pytest.raises(ValueError, match=f"{cls.__name__} has no parameter 'kernel' of its own; these have: Conv,"):
            linen.companded(cls)
    for reparam in (PSI, "arctan"):
        with pytest.raises(ValueError, match="no parameter 'kernel' of its own|psi must be"):
            linen.companded(OwnName)(reparam=reparam).init(KEY, jnp.ones((1, 2)))
    plain = linen.companded(OwnName)()
    chex.assert_trees_all_equal(plain.init(KEY, jnp.ones((1, 2))), OwnName().init(KEY, jnp.ones((1, 2))))
    for thing in (None, nn.Dense(2), int):
        with pytest.raises(ValueError, match="takes a class of Flax Linen layers"):
            linen.companded(thing)


@pytest.mark.parametrize("learn, adaptive", [("channel", True), ("coarse", False)])
def test_strict_dtype_promotion_with_bfloat16_is_not_an_error(learn, adaptive):
    half = jax.tree.map(jnp.bfloat16, PARAMS)
    sgd = optax.sgd(0.1, momentum=0.9)
    tx = compand(sgd, PSI, adaptive=adaptive, learn=learn)
    expected = after_update(tx, PARAMS, PARAMS)["kernel"]
    with jax.numpy_dtype_promotion("strict"):
        w = after_update(tx, half, half)["kernel"]
        assert w.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(w), expected, atol=4e-3)
        if learn != "coarse" and adaptive:
            nodes = reparameterize(half, PSI, learn=learn)
            grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(fold(p)["kernel"])) / 2))(nodes)
            nodes = after_update(optim.scale_by_derivative(sgd), nodes, grads)
            assert nodes["kernel"].v.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.float32(fold(nodes)["kernel"]), expected, atol=2e-2)
        layer = linen.Dense(3, reparam=PSI, param_dtype="bfloat16", dtype="bfloat16", kernel_init=nn.initializers.zeros)
        jax.eval_shape(layer.init, KEY, jnp.ones((1, 2), jnp.bfloat16))


def test_companded_layers_and_their_classes_pickle():
    for base in (nn.Dense, nn.ConvTranspose):
        cls = linen.companded(base)
        assert pickle.loads(pickle.dumps(cls)) is cls is linen.companded(base)
    nodes = reparameterize(PARAMS, Arctan(jnp.ones(()), 0.5))
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(nodes)), nodes)
    layer = linen.Dense(3, reparam=PSI, learn="fine", kernel_init=nn.initializers.zeros)
    assert pickle.loads(pickle.dumps(layer)) == layer


@each_learn
def test_flax_serialization_restores_to_the_bit_or_refuses(learn):
    params = {"layer": PARAMS}
    tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
    _, state = tx.update(params, tx.init(params), params)
    layer = linen.Dense(3, reparam=linen.LearnedPair(PSI), kernel_init=nn.initializers.zeros)
    trees = [state, layer.init(KEY, jnp.ones((1, 2)))["params"]]
    if learn != "coarse":
        trees += [reparameterize(params, PSI, learn=learn), reparameterize(params, WeightNorm())]
    for tree in trees:
        blank = jax.tree.map(jnp.zeros_like, tree)
        chex.assert_trees_all_equal(flax.serialization.from_bytes(blank, flax.serialization.to_bytes(tree)), tree)
    saved = flax.serialization.to_bytes(reparameterize(PARAMS, PSI))
    for other in (Arctan(0.9, 0.7), wcjax.Erf(2.0, 0.7), Arctan(jnp.float32(0.6), 0.7)):
        with pytest.raises(ValueError, match="the state holds Arctan .*'a': 0.6, 'b': 0.7.*, but the target has"):
            flax.serialization.from_bytes(reparameterize(PARAMS, other), saved)


class Softsign(wcjax.psi.Elementwise):
    bound = 1.0

    def __call__(self, v):
        return v / (1 + jnp.abs(v))

    def inverse(self, w):
        return w / (1 - jnp.abs(w))

    def derivative(self, v):
        return 1 / jnp.square(1 + jnp.abs(v))


def test_a_psi_of_the_users_own_is_checked_and_trained():
    with pytest.raises(ValueError, match=r"kernel: largest \|w\| is 2.1, but Softsign\(\) only reaches .* smaller"):
        reparameterize({"kernel": 3 * PARAMS["kernel"]}, Softsign())
    with pytest.raises(ValueError, match="Softsign has no a and b to learn"):
        compand(optax.sgd(0.1), Softsign(), learn="fine")
    chex.assert_trees_all_close(fold(reparameterize(PARAMS, Softsign())), PARAMS, rtol=1e-6)
    v = W / (1 - np.abs(W)) - 0.1 / (1 + np.abs(W / (1 - np.abs(W)))) ** 2
    moved = after_update(compand(optax.sgd(0.1), Softsign()), PARAMS, jax.tree.map(jnp.ones_like, PARAMS))
    np.testing.assert_allclose(moved["kernel"], v / (1 + np.abs(v)), rtol=1e-5)


FLAX_AFTER_WCJAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
import wcjax

assert "flax" not in sys.modules
params = wcjax.reparameterize({"kernel": jnp.full((2, 2), 0.1)}, wcjax.Arctan(0.6, 0.6), learn="fine")
import flax.serialization
restored = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, params), flax.serialization.to_bytes(params))
assert jax.tree.structure(restored) == jax.tree.structure(params)
assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(params)))
"""


def test_flax_serialization_may_be_imported_afterwards():
    subprocess.run([sys.executable, "-c", FLAX_AFTER_WCJAX], check=True)
