"""The transforms that know Ψ, against NumPy by hand, optax on plain weights, and optax's own contract."""

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
from absl.testing import parameterized

from tests import numpy_reference as reference
from wcjax import Arctan, Arsinh, Erf, PowerProp, Reparameterized, WeightNorm, optim
from wcjax.params import is_weight

A, B = 0.7, 1.3
PSI = Arctan(A, B)
TRUTH = {  # Ψ and Ψ′ in NumPy
    PSI: reference.Arctan(A, B),
    Arsinh(A, B): reference.Arsinh(A, B),
    Erf(A, B): reference.Erf(A, B),
    PowerProp(1.5): reference.PowerProp(1.5),
}
OWN, CHANNEL, CROSSED = (-0.4, 0.9), (np.float32([0.3, -0.4, 0.5]), 0.9), reference.Arctan(-0.4, 0.9)
LR, DECAY = 0.05, 0.1


def pair_of(a, b, ndim):
    """Learned a and b of the rank of their weight; a learned a may have crossed zero."""
    array = lambda x: jnp.asarray(x, jnp.float32).reshape((1,) * (ndim - np.ndim(x)) + np.shape(x))
    return Arctan(array(a), array(b))


def network(psi=PSI, pair=None):
    """Two companded weights and two plain leaves; pair: 'own' (of conv), 'channel' (of conv) or 'shared' is learned."""
    draw = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)
    of = {"own": pair_of(*OWN, 3), "channel": pair_of(*CHANNEL, 3), "shared": None}
    params = {
        "conv": {"kernel": Reparameterized(draw(2, 2, 3), of.get(pair, psi)), "bias": draw(3)},
        "norm": {"scale": draw(3) + 2},
        "head": {"kernel": Reparameterized(0.5 - draw(2, 2, 3), None if pair == "shared" else psi)},
    }
    return params | {"pair": {"psi": pair_of(*OWN, 0)}} if pair == "shared" else params


def numpy_psis(psi, pair):
    """The Ψ of both weights in NumPy."""
    conv = {"channel": reference.Arctan(*CHANNEL)}.get(pair, CROSSED) if pair else TRUTH[psi]
    return {"conv": conv, "head": CROSSED if pair == "shared" else TRUTH[psi]}


def with_v(params, module, v):
    """params with another v in the weight of that module."""
    weight = dataclasses.replace(params[module]["kernel"], v=v)
    return params | {module: params[module] | {"kernel": weight}}


def as_float64(x):
    return np.asarray(x, np.float64)


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


class DecayClosedForm(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*TRUTH)
    def test_decay_is_the_gradient_of_the_penalty_on_w(self, psi):
        params, truth, tx = network(psi), TRUTH[psi], optim.add_decayed_weights(DECAY)
        found, _ = self.variant(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        expected = jax.tree.map(lambda p: 1 + DECAY * p, params)
        for module in ("conv", "head"):
            v = as_float64(params[module]["kernel"].v)
            expected = with_v(expected, module, np.float32(1 + DECAY * truth(v) * truth.slope(v)))
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


MASKS = {
    "tree": jax.tree.map(lambda p: p.ndim > 1, network()),
    "prefix": {"conv": {"kernel": True, "bias": False}, "norm": False, "head": True},
    "function": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
}


@pytest.mark.parametrize("mask", MASKS)
def test_the_mask_chooses_what_decays(mask):
    expected = penalty(optim.add_decayed_weights(DECAY), network())
    expected["conv"]["bias"] *= 0
    expected["norm"]["scale"] *= 0
    chex.assert_trees_all_equal(penalty(optim.add_decayed_weights(DECAY, MASKS[mask]), network()), expected)


def test_the_decay_follows_its_schedule():
    once = penalty(optim.add_decayed_weights(DECAY), network())
    fourth = penalty(optim.add_decayed_weights(lambda count: DECAY * count), network(), 4)
    chex.assert_trees_all_close(fourth, jax.tree.map(lambda u: 3 * u, once), rtol=1e-6)


@pytest.mark.parametrize("pair", ["own", "channel", "shared"])
def test_with_a_learned_pair_v_decays_as_v_and_the_pair_not(pair):
    params = network(pair=pair)
    expected = jax.tree.map(lambda p: DECAY * p, params)
    rest = lambda x: jax.tree.map(jnp.zeros_like, x)
    if pair == "shared":
        expected["pair"] = rest(params["pair"])
    else:  # only conv learns its pair
        weight = expected["conv"]["kernel"]
        expected["conv"]["kernel"] = dataclasses.replace(weight, psi=rest(weight.psi))
        v = as_float64(params["head"]["kernel"].v)
        expected = with_v(expected, "head", np.float32(DECAY * TRUTH[PSI](v) * TRUTH[PSI].slope(v)))
    chex.assert_trees_all_close(penalty(optim.add_decayed_weights(DECAY), params), expected, rtol=1e-6)


def test_a_weight_normalized_network_is_treated_as_a_plain_one():
    g = jnp.float32([[[0.5, 2.0, -1.0]]])
    params = network(WeightNorm(g))
    leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(params))}
    grads, plain = gradients(params), optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))
    found = jax.tree.leaves(updates_of(WHOLE, params, grads, 3))
    expected = updates_of(plain, leaves, {str(i): g for i, g in enumerate(jax.tree.leaves(grads))}, 3)
    assert len(found) == 6
    chex.assert_trees_all_close({str(i): u for i, u in enumerate(found)}, expected, rtol=1e-5)
    decayed = penalty(optim.add_decayed_weights(DECAY), params)
    chex.assert_trees_all_close(decayed, jax.tree.map(lambda p: DECAY * p, params), rtol=1e-6)


def test_a_plain_tree_gets_what_optax_gives_it():
    params = {"kernel": jnp.float32([[0.5, -0.2]]), "v": jnp.float32([[0.3]]), "a": jnp.float32(2), "b": jnp.float32(3)}
    plain = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))
    grads = gradients(params)
    chex.assert_trees_all_close(updates_of(WHOLE, params, grads, 3), updates_of(plain, params, grads, 3), rtol=1e-6)


@pytest.mark.parametrize("pair", [None, "own", "channel", "shared"])
def test_boxed_params_get_the_updates_of_their_arrays(pair):
    params = network(pair=pair)
    boxed = jax.tree.map(lambda p: nn.Partitioned(p, (None,) * p.ndim), params)
    boxed["conv"]["kernel"] = dataclasses.replace(boxed["conv"]["kernel"], psi=params["conv"]["kernel"].psi)
    boxed["head"]["kernel"] = dataclasses.replace(boxed["head"]["kernel"], psi=params["head"]["kernel"].psi)
    boxed |= {name: params[name] for name in ("pair",) if name in params}
    found = updates_of(WHOLE, boxed, gradients(boxed), 2)
    assert isinstance(found["conv"]["kernel"].v, nn.Partitioned)
    chex.assert_trees_all_close(nn.unbox(found), updates_of(WHOLE, params, gradients(params), 2), rtol=1e-5)


STEPS = [*((psi, None) for psi in TRUTH), (PSI, "own"), (PSI, "channel"), (PSI, "shared")]


@pytest.mark.parametrize("psi, pair", STEPS, ids=str)
def test_a_step_of_adam_is_the_one_by_hand(psi, pair):  # whole runs: test_training_rules.py
    params = network(psi, pair)
    grads = gradients(params)
    found = updates_of(optim.scale_by_derivative(optax.adam(LR, eps=0.1)), params, grads)
    expected = jax.tree.map(lambda g: -LR * g / (jnp.abs(g) + 0.1), grads)  # learned a and b too
    for module, own in numpy_psis(psi, pair).items():
        slope = own.slope(as_float64(params[module]["kernel"].v))
        g = as_float64(grads[module]["kernel"].v) / slope
        expected = with_v(expected, module, np.float32(-LR * g / (np.abs(g) + 0.1) * slope))
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("pair", [None, "own", "channel", "shared"])
def test_inner_sees_w_and_its_gradient_where_v_stood(pair):
    record = lambda grads, state, params: (grads, state | {"params": params, "grads": grads})
    recorder = optax.GradientTransformation(lambda params: {"at init": params}, record)
    params = network(pair=pair)
    grads, tx = gradients(params), optim.scale_by_derivative(recorder)
    updates, seen = tx.update(grads, tx.init(params), params)
    w, grads_of_w = params, grads
    for module, own in numpy_psis(PSI, pair).items():
        v = as_float64(params[module]["kernel"].v)
        w = with_v(w, module, np.float32(own(v)))
        grads_of_w = with_v(grads_of_w, module, np.float32(as_float64(grads[module]["kernel"].v) / own.slope(v)))
    expected = {"at init": w, "params": w, "grads": grads_of_w}
    chex.assert_trees_all_equal_structs(seen, expected)
    chex.assert_trees_all_close(seen, expected, rtol=1e-5)
    chex.assert_trees_all_close(updates, grads, rtol=1e-5)  # divided, then multiplied


def test_powerprop_at_zero_rests_without_nan():
    params = {"kernel": Reparameterized(jnp.array([[0.0, 0.5]]), PowerProp(2.0))}
    grads = jax.tree.map(jnp.ones_like, params)
    steps = updates_of(optim.scale_by_derivative(optax.adam(LR)), params, grads, 2)["kernel"].v
    assert steps[0, 0] == 0 and steps[0, 1] < 0


@pytest.mark.parametrize("pair", ["own", "channel", "shared"])
def test_bfloat16_params_stay_bfloat16_and_near_the_float32_step(pair):
    half = jax.tree.map(jnp.bfloat16, network(pair=pair))
    found, wide = updates_of(WHOLE, half, gradients(half), 2), jax.tree.map(jnp.float32, half)
    chex.assert_trees_all_equal_dtypes(found, half)
    expected = updates_of(WHOLE, wide, gradients(wide), 2)
    chex.assert_trees_all_close(jax.tree.map(jnp.float32, found), expected, atol=0.1 * LR)


PLAIN = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))
WRAPPERS = {
    "schedule": adam_on(lambda count: LR + 0 * count),
    "inject_hyperparams": optax.inject_hyperparams(adam_on)(LR, DECAY),
    "apply_if_finite": optax.apply_if_finite(WHOLE, 3),
    "multi_transform": optax.multi_transform(
        {"wc": WHOLE, "plain": PLAIN}, {"conv": "wc", "norm": "plain", "head": "wc", "pair": "wc"}
    ),
    "labels of leaves": optax.multi_transform(
        {"wc": WHOLE, "plain": PLAIN},
        lambda params: jax.tree.map(
            lambda x: jax.tree.map(lambda _: "wc" if is_weight(x) or not x.shape else "plain", x),
            params,
            is_leaf=is_weight,
        ),
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_by_optax_the_steps_are_the_same_under_jit_with_donated_state(wrapper):
    params, tx = network(pair="shared"), WRAPPERS[wrapper]
    chex.clear_trace_counter()

    @functools.partial(jax.jit, donate_argnums=1)
    @chex.assert_max_traces(n=1)
    def step(grads, state, params):
        return tx.update(grads, state, params)

    grads, state = gradients(params), tx.init(params)
    for _ in range(3):
        updates, state = step(grads, state, params)
        leaves, structure = jax.tree.flatten(state)  # as through a checkpoint
        state = structure.unflatten([jnp.asarray(np.array(x)) for x in leaves])
    chex.assert_trees_all_close(updates, updates_of(WHOLE, params, grads, 3), rtol=1e-5, atol=1e-7)


def test_accumulation_and_skipping_of_nan_leave_params_at_rest():
    params, zero = network(), jax.tree.map(jnp.zeros_like, network())
    grads, accumulating = gradients(params), optax.MultiSteps(WHOLE, 2)
    once = updates_of(WHOLE, params, grads)
    chex.assert_trees_all_equal(updates_of(accumulating, params, grads), zero)
    chex.assert_trees_all_close(updates_of(accumulating, params, grads, 2), once, rtol=1e-5)
    nan = jax.tree.map(lambda g: g * jnp.nan, grads)
    chex.assert_trees_all_equal(updates_of(optax.apply_if_finite(WHOLE, 3), params, nan), zero)


ADAM = optim.scale_by_derivative(optax.adam(LR))


def apart(label):
    """a and b go to another optimizer than their v. label: a function of the key path and what stands there."""
    transforms = {"pair": optax.sgd(LR), "rest": ADAM}
    return optax.multi_transform(transforms, lambda params: jax.tree_util.tree_map_with_path(label, params))


LEAVES_APART = apart(lambda path, _: "pair" if jax.tree_util.keystr(path[-1:]) in (".a", ".b") else "rest")
MODULE_APART = optax.multi_transform(
    {"pair": optax.sgd(LR), "rest": ADAM}, {"conv": "rest", "norm": "rest", "head": "rest", "pair": "pair"}
)
CALLING = functools.partial(ADAM.update, value_fn=lambda params: 0.0)
MISUSES = {
    "decay without params": (lambda: optim.add_decayed_weights(0.1).update({}, optax.EmptyState()), "params"),
    "adam without params": (lambda: ADAM.update({}, ADAM.init({})), "needs the parameters"),
    "own pair hidden": (lambda: LEAVES_APART.init(network(pair="own")), "hides the learned a and b"),
    "shared pair hidden": (lambda: LEAVES_APART.init(network(pair="shared")), "hides the learned a and b"),
    "module of the pair hidden": (lambda: MODULE_APART.init(network(pair="shared")), "holds 0 pairs.* one optimizer"),
    "function of v": (lambda: CALLING(network(), ADAM.init(network()), network()), "value_fn is a function"),
    "keeps weights": (
        lambda: optim.scale_by_derivative(optax.contrib.schedule_free_adamw(LR)).init(network()),
        "keeps weights and returns to them .ScheduleFreeState",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_an_error_that_says_what_to_do(misuse):
    call, message = MISUSES[misuse]
    with pytest.raises(ValueError, match=message):
        call()


SHRINKING = optax.exponential_decay(0.03, 150, 0.6)
OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "adam": optax.adam(SHRINKING),
    "adamw": optax.adamw(SHRINKING, weight_decay=1e-4),
    "lion": optax.lion(SHRINKING),
    "rmsprop": optax.rmsprop(SHRINKING),
    "lamb": optax.lamb(SHRINKING),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("psi", [Arctan(1.0, 1.0), Arsinh(0.5, 0.5), Erf(1.0, 1.0), PowerProp(2.0)], ids=str)
def test_contract_of_optax_holds_for_every_psi_and_inner_optimizer(psi, optimizer):
    start, goal = jnp.array([[-0.5, 0.8, 0.3]]), jnp.array([[0.4, -0.3, 0.6]])
    if isinstance(psi, PowerProp):  # Ψ′(0) = 0 keeps the sign of w
        goal = jnp.abs(goal) * jnp.sign(start)
    params = {"kernel": Reparameterized(psi.inverse(start), psi), "bias": jnp.array([-0.5, 0.7])}
    loss = lambda p: jnp.sum((p["kernel"].w - goal) ** 2) + jnp.sum((p["bias"] - 0.5) ** 2)
    tx = optax.chain(optim.add_decayed_weights(1e-5), optim.scale_by_derivative(OPTIMIZERS[optimizer]))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, an_unexpected_extra_argument=1)
        return (optax.apply_updates(params, updates), state), None

    state = optax.tree.map_params(tx, lambda x: x, tx.init(params))
    (new, new_state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1000))((params, state))
    chex.assert_trees_all_equal_shapes_and_dtypes((new, new_state), (params, state))
    chex.assert_trees_all_close((new["kernel"].w, new["bias"]), (goal, jnp.full(2, 0.5)), atol=3e-2)
