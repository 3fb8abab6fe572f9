"""The transforms that know Ψ: masks, boxes, optax's wrappers, and misuse. Both ways keep optax's contract.

What they compute, in whole runs by hand: test_training_rules.py.
"""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import wcjax
from tests.truth import PSIS
from wcjax import Arctan, PowerProp, Reparameterized, fold, optim
from wcjax.params import is_reparameterized

PSI = PSIS[0]
LR, DECAY = 0.05, 0.1


def learned(*shape):
    return Arctan(*(jnp.full(shape, x, jnp.float32) for x in (-0.4, 0.9)))  # a learned a may have crossed zero


def network(pair=None):
    """Two companded weights and two plain leaves; pair: 'own' (of conv) or 'shared' is learned."""
    draw = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)
    conv, head = {None: (PSI.ours(),) * 2, "own": (learned(1, 1, 1), PSI.ours()), "shared": (None, None)}[pair]
    params = {
        "conv": {"kernel": Reparameterized(draw(2, 2, 3), conv), "bias": draw(3)},
        "norm": {"scale": draw(3) + 2},
        "head": {"kernel": Reparameterized(0.5 - draw(2, 2, 3), head)},
    }
    return params | {"pair": {"psi": learned()}} if pair == "shared" else params


gradients = lambda params: jax.tree.map(lambda p: jnp.sin(3 * p) + 0.2, params)


@functools.partial(jax.jit, static_argnums=(0, 3))
def updates_of(tx, params, grads, times=1):
    state = tx.init(params)
    for _ in range(times):
        updates, state = tx.update(grads, state, params)
    return updates


penalty = lambda tx, params, times=1: updates_of(tx, params, jax.tree.map(jnp.zeros_like, params), times)


def adam_on(learning_rate=LR, weight_decay=DECAY):
    adam = optim.scale_by_derivative(optax.adam(learning_rate))
    return optax.chain(optim.add_decayed_weights(weight_decay), adam)


ADAM_ON_W = adam_on()


def decayed_by_compand(weight_decay, mask=None):
    return wcjax.compand(optax.sgd(1.0), PSI.ours(), weight_decay=weight_decay, mask=mask)


DECAYING = {"layers": (optim.add_decayed_weights, network()), "compand": (decayed_by_compand, fold(network()))}


@pytest.mark.parametrize("way", DECAYING)
@pytest.mark.parametrize("is_function", [False, True])
def test_the_mask_and_the_schedule_choose_what_decays(is_function, way):
    make, params = DECAYING[way]
    prefix = {"conv": {"kernel": True, "bias": False}, "norm": False, "head": True}
    mask = (lambda params: jax.tree.map(lambda p: p.ndim > 1, params)) if is_function else prefix
    expected = penalty(make(DECAY), params)
    expected["conv"]["bias"] *= 0
    expected["norm"]["scale"] *= 0
    fourth = penalty(make(lambda count: DECAY * count / 3, mask), params, 4)
    chex.assert_trees_all_close(fourth, expected, rtol=1e-6)


def test_inner_sees_w_at_init_and_at_each_update():
    recorder = optax.GradientTransformation(lambda params: params, lambda grads, state, params: (grads, params))
    params, tx = network(), optim.scale_by_derivative(recorder)
    state = tx.init(params)
    for seen in (state, tx.update(params, state, params)[1]):
        for module in ("conv", "head"):
            np.testing.assert_allclose(seen[module]["kernel"].v, PSI(params[module]["kernel"].v), rtol=1e-5)


FLAT_PSIS = [(PowerProp(2.0), np.float32([[0.0, 0.5]])), (Arctan(0.6, 0.6), np.float16([[200.0, 0.5]]))]


@pytest.mark.parametrize("psi, v", FLAT_PSIS, ids=["zero", "float16"])
def test_a_step_where_psi_is_flat_is_finite(psi, v):  # 1 / Ψ′(200) is 111,112 and beyond float16
    params = {"kernel": Reparameterized(v, psi)}
    adam = optim.scale_by_derivative(optax.adam(LR, eps=1e-3))
    grads = [jax.tree.map(lambda v, g=g: jnp.full_like(v, g), params) for g in (0, 1)]
    rest, steps = (updates_of(adam, params, g, 2)["kernel"].v for g in grads)
    assert not np.any(rest)
    assert -1e-6 < steps[0, 0] <= 0 and np.isfinite(steps[0, 1]) and steps[0, 1] < 0


def test_a_derivative_beyond_float16_is_finite():
    params = {"kernel": Reparameterized(np.float16([[0.5, 0.0]]), Arctan(1e5, 1.0))}  # Ψ′(0) is 100,000
    adam = optim.scale_by_derivative(optax.adam(LR, eps=1e-3))
    assert not np.any(updates_of(adam, params, jax.tree.map(jnp.zeros_like, params), 2)["kernel"].v)


@pytest.mark.parametrize("pair", [None, "shared"])
def test_boxed_params_get_the_updates_of_their_arrays(pair):
    params = network(pair=pair)
    box = lambda p: nn.Partitioned(p, (None,) * p.ndim)
    box_v = lambda x: dataclasses.replace(x, v=box(x.v)) if is_reparameterized(x) else box(x)
    boxed = {k: x if k == "pair" else jax.tree.map(box_v, x, is_leaf=is_reparameterized) for k, x in params.items()}
    updates = updates_of(ADAM_ON_W, boxed, gradients(boxed), 2)
    assert isinstance(updates["conv"]["kernel"].v, nn.Partitioned)
    chex.assert_trees_all_close(nn.unbox(updates), updates_of(ADAM_ON_W, params, gradients(params), 2), rtol=1e-5)


def companded(learning_rate=LR, weight_decay=DECAY):
    adam = optax.adam(learning_rate)
    return wcjax.compand(adam, PSI.ours(), adaptive=True, weight_decay=weight_decay, learn="coarse")


SHARED = network(pair="shared")
WAYS = {"layers": (adam_on, ADAM_ON_W, SHARED), "compand": (companded, companded(), wcjax.fold(SHARED))}
PLAIN = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))
labels = lambda params: {name: "plain" if name == "norm" else "wc" for name in params}
SCHEDULES = (lambda count: LR + 0 * count, lambda count: DECAY + 0 * count)
WRAPPERS = {
    "a chain": lambda make: optax.chain(optax.clip_by_global_norm(1e9), make(*SCHEDULES), optax.identity()),
    "apply_if_finite": lambda make: optax.apply_if_finite(optax.inject_hyperparams(make)(LR, DECAY), 3),
    "multi_transform": lambda make: optax.multi_transform({"wc": make(), "plain": PLAIN}, labels),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_optax_leave_the_steps_unchanged(wrapper, way):
    make, alone, params = WAYS[way]
    tx, grads = WRAPPERS[wrapper](make), gradients(params)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=1)
    state = tx.init(params)
    for _ in range(3):
        updates, state = step(grads, state, params)
        leaves, structure = jax.tree.flatten(state)  # as through a checkpoint
        state = structure.unflatten([jnp.asarray(np.array(x)) for x in leaves])
    chex.assert_trees_all_close(updates, updates_of(alone, params, grads, 3), rtol=1e-5, atol=1e-7)


NET, ADAM = network(), optim.scale_by_derivative(optax.adam(LR))
SCHEDULE_FREE = optim.scale_by_derivative(optax.contrib.schedule_free_sgd(LR))
PAIR_APART = {"pair": optax.sgd(LR), "rest": ADAM}
is_pair = lambda path, _: "pair" if jax.tree_util.keystr(path[-1:]) in (".a", ".b") else "rest"
BY_LEAF = optax.multi_transform(PAIR_APART, lambda params: jax.tree_util.tree_map_with_path(is_pair, params))
BY_MODULE = optax.multi_transform(PAIR_APART, dict.fromkeys(("conv", "norm", "head"), "rest") | {"pair": "pair"})
SEARCH = optim.scale_by_derivative(optax.chain(optax.adam(LR), optax.scale_by_backtracking_linesearch(5)))
MISUSES = {
    "decay without params": (lambda: optim.add_decayed_weights(0.1).update({}, optax.EmptyState()), "params"),
    "adam without params": (lambda: ADAM.update({}, ADAM.init({})), "needs the parameters"),
    "no optimizer": (
        lambda: optim.scale_by_derivative(optax.adam),
        "inner must be an optax optimizer, .* found <function adam",
    ),
    "a function": (
        lambda: SEARCH.update(NET, SEARCH.init(NET), NET, value=0.0, grad=NET, value_fn=jnp.sum),
        "inner optimizer calls value_fn, .* w instead of v",
    ),
    "plain gradients": (
        lambda: ADAM.update(fold(NET), ADAM.init(NET), NET),
        "params are Reparameterized, but updates are plain",
    ),
    "an inner that keeps weights": (lambda: SCHEDULE_FREE.init(NET), "keeps weights and returns to them"),
    "own pair hidden": (lambda: BY_LEAF.init(network(pair="own")), "hides the learned a and b"),
    "shared pair hidden": (lambda: BY_LEAF.init(network(pair="shared")), "hides the learned a and b"),
    "module of the pair hidden": (lambda: BY_MODULE.init(network(pair="shared")), "holds 0 pairs.* one optimizer"),
    "a Ψ for a schedule": (lambda: optim.add_decayed_weights(Arctan()), "or a schedule of it, found Arctan"),
}


@pytest.mark.parametrize("call, message", MISUSES.values(), ids=MISUSES)
def test_misuse_is_an_error_that_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
