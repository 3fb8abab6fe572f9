"""The transforms that know Ψ: what the inner optimizer sees, and optax's own contract, which both doors keep.

Whole runs by hand, with decay: test_training_rules.py.
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
from tests.truth import PSIS, Psi
from wcjax import Arctan, PowerProp, Reparameterized, optim
from wcjax.params import is_weight

PSI = PSIS[0]
CROSSED = Psi("arctan", -0.4, 0.9)  # a learned a may have crossed zero
CHANNEL = Psi("arctan", np.float32([0.3, -0.4, 0.5]), 0.9)
PAIRS = {None: PSI, "own": CROSSED, "channel": CHANNEL, "shared": CROSSED}  # the Ψ of conv
LR, DECAY = 0.05, 0.1
each_case = pytest.mark.parametrize("psi, pair", [*((p, None) for p in PSIS), *((PSI, p) for p in PAIRS if p)], ids=str)


def learned(psi, ndim):
    """psi with arrays of the rank of their weight."""
    return psi.ours(lambda x: jnp.asarray(x, jnp.float32).reshape((1,) * (ndim - np.ndim(x)) + np.shape(x)))


def network(psi=PSI, pair=None):
    """Two companded weights and two plain leaves; pair: 'own' (of conv), 'channel' (of conv) or 'shared' is learned."""
    draw = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)
    conv, head = psi.ours() if pair is None else learned(PAIRS[pair], 3), psi.ours()
    if pair == "shared":
        conv = head = None
    params = {
        "conv": {"kernel": Reparameterized(draw(2, 2, 3), conv), "bias": draw(3)},
        "norm": {"scale": draw(3) + 2},
        "head": {"kernel": Reparameterized(0.5 - draw(2, 2, 3), head)},
    }
    return params | {"pair": {"psi": learned(CROSSED, 0)}} if pair == "shared" else params


def replaced(tree, psi, pair, make):
    """tree with make(Ψ in NumPy, v in float64) in the place of each v."""
    own = {"conv": PAIRS[pair] if pair else psi, "head": CROSSED if pair == "shared" else psi}
    for module, x in own.items():
        weight = tree[module]["kernel"]
        v = jnp.float32(make(x, module))
        tree = tree | {module: tree[module] | {"kernel": dataclasses.replace(weight, v=v)}}
    return tree


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


WHOLE = adam_on()


@pytest.mark.parametrize("is_function", [False, True])
def test_the_mask_and_the_schedule_choose_what_decays(is_function):
    prefix = {"conv": {"kernel": True, "bias": False}, "norm": False, "head": True}
    mask = (lambda params: jax.tree.map(lambda p: p.ndim > 1, params)) if is_function else prefix
    expected = penalty(optim.add_decayed_weights(DECAY), network())
    expected["conv"]["bias"] *= 0
    expected["norm"]["scale"] *= 0
    fourth = penalty(optim.add_decayed_weights(lambda count: DECAY * count / 3, mask), network(), 4)
    chex.assert_trees_all_close(fourth, expected, rtol=1e-6)


@each_case
def test_inner_sees_w_and_dl_dw_and_its_step_is_scaled(psi, pair):
    step = lambda grads, state, params: (jax.tree.map(jnp.ones_like, grads), state | {"w": params, "dw": grads})
    recorder = optax.GradientTransformation(lambda params: {"at init": params}, step)
    params = network(psi, pair)
    grads, tx = gradients(params), optim.scale_by_derivative(recorder)
    updates, seen = tx.update(grads, tx.init(params), params)
    v, dv = ({m: np.float64(tree[m]["kernel"].v) for m in ("conv", "head")} for tree in (params, grads))
    w = replaced(params, psi, pair, lambda psi, module: psi(v[module]))
    dw = replaced(grads, psi, pair, lambda psi, module: dv[module] / psi.derivative(v[module]))
    chex.assert_trees_all_close(seen, {"at init": w, "w": w, "dw": dw}, rtol=1e-5)
    ones = jax.tree.map(jnp.ones_like, params)  # learned a and b get the step itself
    expected = replaced(ones, psi, pair, lambda psi, module: psi.derivative(v[module]))
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_powerprop_at_zero_rests_without_nan():
    params = {"kernel": Reparameterized(jnp.array([[0.0, 0.5]]), PowerProp(2.0))}
    grads = jax.tree.map(jnp.ones_like, params)
    steps = updates_of(optim.scale_by_derivative(optax.adam(LR)), params, grads, 2)["kernel"].v
    assert steps[0, 0] == 0 and steps[0, 1] < 0


@pytest.mark.parametrize("pair", [None, "shared"])
def test_boxed_params_get_the_updates_of_their_arrays(pair):
    params = network(pair=pair)
    box = lambda p: nn.Partitioned(p, (None,) * p.ndim)
    box_v = lambda x: dataclasses.replace(x, v=box(x.v)) if is_weight(x) else box(x)
    boxed = {k: x if k == "pair" else jax.tree.map(box_v, x, is_leaf=is_weight) for k, x in params.items()}
    updates = updates_of(WHOLE, boxed, gradients(boxed), 2)
    assert isinstance(updates["conv"]["kernel"].v, nn.Partitioned)
    chex.assert_trees_all_close(nn.unbox(updates), updates_of(WHOLE, params, gradients(params), 2), rtol=1e-5)


def companded(learning_rate=LR, weight_decay=DECAY):
    adam = optax.adam(learning_rate)
    return wcjax.compand(adam, PSI.ours(), adaptive=True, weight_decay=weight_decay, learn="coarse")


SHARED = network(pair="shared")
DOORS = {"layers": (adam_on, WHOLE, SHARED), "compand": (companded, companded(), wcjax.fold(SHARED))}
each_door = pytest.mark.parametrize("door", DOORS)
PLAIN = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))
labels = lambda params: {name: "plain" if name == "norm" else "wc" for name in params}
SCHEDULES = (lambda count: LR + 0 * count, lambda count: DECAY + 0 * count)
WRAPPERS = {
    "a chain": lambda make: optax.chain(optax.clip_by_global_norm(1e9), make(*SCHEDULES), optax.identity()),
    "apply_if_finite": lambda make: optax.apply_if_finite(optax.inject_hyperparams(make)(LR, DECAY), 3),
    "multi_transform": lambda make: optax.multi_transform({"wc": make(), "plain": PLAIN}, labels),
}


@each_door
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_by_optax_the_steps_are_the_same(wrapper, door):
    make, alone, params = DOORS[door]
    tx, grads = WRAPPERS[wrapper](make), gradients(params)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=1)
    state = tx.init(params)
    for _ in range(3):
        updates, state = step(grads, state, params)
        leaves, structure = jax.tree.flatten(state)  # as through a checkpoint
        state = structure.unflatten([jnp.asarray(np.array(x)) for x in leaves])
    chex.assert_trees_all_close(updates, updates_of(alone, params, grads, 3), rtol=1e-5, atol=1e-7)


def test_params_rest_while_gradients_are_accumulated_or_nan():
    _, alone, params = DOORS["compand"]
    zero, grads, accumulating = jax.tree.map(jnp.zeros_like, params), gradients(params), optax.MultiSteps(alone, 2)
    chex.assert_trees_all_equal(updates_of(accumulating, params, grads), zero)
    once, twice = updates_of(alone, params, grads), updates_of(accumulating, params, grads, 2)
    chex.assert_trees_all_close(twice, once, rtol=1e-5)
    nan = jax.tree.map(lambda g: g * jnp.nan, grads)
    chex.assert_trees_all_equal(updates_of(optax.apply_if_finite(alone, 3), params, nan), zero)


ADAM = optim.scale_by_derivative(optax.adam(LR))
PAIR_APART = {"pair": optax.sgd(LR), "rest": ADAM}
is_pair = lambda path, _: "pair" if jax.tree_util.keystr(path[-1:]) in (".a", ".b") else "rest"
BY_LEAF = optax.multi_transform(PAIR_APART, lambda params: jax.tree_util.tree_map_with_path(is_pair, params))
BY_MODULE = optax.multi_transform(PAIR_APART, dict.fromkeys(("conv", "norm", "head"), "rest") | {"pair": "pair"})
MISUSES = {
    "decay without params": (lambda: optim.add_decayed_weights(0.1).update({}, optax.EmptyState()), "params"),
    "adam without params": (lambda: ADAM.update({}, ADAM.init({})), "needs the parameters"),
    "own pair hidden": (lambda: BY_LEAF.init(network(pair="own")), "hides the learned a and b"),
    "shared pair hidden": (lambda: BY_LEAF.init(network(pair="shared")), "hides the learned a and b"),
    "module of the pair hidden": (lambda: BY_MODULE.init(network(pair="shared")), "holds 0 pairs.* one optimizer"),
    "a Ψ, as in older versions": (lambda: optim.add_decayed_weights(1e-4, Arctan()), "finds each Ψ in the tree"),
    "a Ψ for a schedule": (lambda: optim.add_decayed_weights(Arctan()), "finds each Ψ in the tree: leave Arctan.* out"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_an_error_that_says_what_to_do(misuse):
    call, message = MISUSES[misuse]
    with pytest.raises(ValueError, match=message):
        call()


RATE = optax.linear_schedule(0.1, 0.0, 300)
OPTIMIZERS = {  # (optimizer, adaptive); SGD and Adam are those of test_training_rules.py
    "nesterov": (optax.sgd(RATE, momentum=0.9, nesterov=True), False),
    "adamw": (optax.adamw(RATE), True),
    "lamb": (optax.lamb(RATE), True),
    "lion": (optax.lion(RATE), True),
    "rmsprop": (optax.rmsprop(RATE), True),
    "muon": (optax.contrib.muon(RATE), True),
}
CASES = [("compand", PSI, optimizer) for optimizer in OPTIMIZERS]
CASES += [("layers", psi, name) for psi, name in zip(PSIS, ("muon", "nesterov", "lion", "adamw"), strict=True)]


@pytest.mark.parametrize("door, psi, optimizer", CASES, ids=str)
def test_an_optimizer_finds_the_minimum(door, psi, optimizer):
    inner, adaptive = OPTIMIZERS[optimizer]
    start = jnp.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
    params = {"kernel": start, "bias": jnp.array([-0.5, 0.7, 0.3])}
    goal = {"kernel": jnp.sign(start) * 0.4, "bias": jnp.full(3, 0.5)}  # no sign changes: PowerProp's Ψ′(0) is 0
    fold, tx = lambda p: p, wcjax.compand(inner, psi.ours(), adaptive=adaptive)
    if door == "layers":
        fold, params = wcjax.fold, wcjax.reparameterize(params, psi.ours())
        tx = optim.scale_by_derivative(inner) if adaptive else inner
    tx = optax.chain(optax.with_extra_args_support(tx))

    def loss(params):
        return sum(jax.tree.leaves(jax.tree.map(lambda p, g: jnp.sum(jnp.square(p - g)), fold(params), goal)))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, an_unexpected_extra_argument=1)
        return (optax.apply_updates(params, updates), state), None

    state = optax.tree.map_params(tx, lambda x: x, tx.init(params))
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))((params, state))
    chex.assert_trees_all_close(fold(params), goal, rtol=0, atol=3e-2)
