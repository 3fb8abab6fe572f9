"""The transforms that know Ψ, against NumPy by hand, optax on plain weights, and optax's own contract."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from tests import numpy_reference as reference
from wcjax import Arctan, Arsinh, Erf, PowerProp, WeightNorm, optim

A, B = 0.7, 1.3
PSI = Arctan(A, B)
TRUTH = {  # Ψ and Ψ′ in NumPy
    PSI: reference.Arctan(A, B),
    Arsinh(A, B): reference.Arsinh(A, B),
    Erf(A, B): reference.Erf(A, B),
    PowerProp(1.5): reference.PowerProp(1.5),
}
LR, DECAY = 0.05, 0.1


def network(pair=None):
    """Two companded weights and two plain leaves; pair: 'own' or 'shared' puts a learned a and b there."""
    draw = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)
    learned = {"a": jnp.float32(-0.4), "b": jnp.float32(0.9)}  # a learned a may cross zero
    conv = {"v": draw(2, 2, 3), "bias": draw(3)}
    params = {"conv": conv, "norm": {"scale": draw(3) + 2}, "head": {"v:w": 0.5 - draw(2, 2, 3)}}
    if pair == "own":
        params["conv"] |= learned
    return params | {"pair": learned} if pair == "shared" else params


gradients = lambda params: jax.tree.map(lambda p: jnp.sin(3 * p) + 0.2, params)


@functools.partial(jax.jit, static_argnums=(0, 3))
def updates_of(tx, params, grads, times=1):
    state = tx.init(params)
    for _ in range(times):
        updates, state = tx.update(grads, state, params)
    return updates


penalty = lambda tx, params, times=1: updates_of(tx, params, jax.tree.map(jnp.zeros_like, params), times)


def adam_on(psi, learning_rate=LR, weight_decay=DECAY):
    adam = optim.scale_by_derivative(optax.adam(learning_rate), psi)
    return optax.chain(optim.add_decayed_weights(weight_decay, psi), adam)


WHOLE = adam_on(PSI)


class DecayClosedForm(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*TRUTH)
    def test_decay_is_the_gradient_of_the_penalty_on_w(self, psi):
        params, truth, tx = network(), TRUTH[psi], optim.add_decayed_weights(DECAY, psi)
        found, _ = self.variant(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        expected = jax.tree.map(lambda p: 1 + DECAY * p, params)
        for module, name in (("conv", "v"), ("head", "v:w")):
            v = np.asarray(params[module][name], np.float64)
            expected[module][name] = (1 + DECAY * truth(v) * truth.slope(v)).astype(np.float32)
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


MASKS = {
    "tree": {"conv": {"v": True, "bias": False}, "norm": {"scale": False}, "head": {"v:w": True}},
    "prefix": {"conv": {"v": True, "bias": False}, "norm": False, "head": True},
    "function": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
}


@pytest.mark.parametrize("mask", MASKS)
def test_the_mask_chooses_what_decays(mask):
    expected = penalty(optim.add_decayed_weights(DECAY, PSI), network())
    expected["conv"]["bias"] *= 0
    expected["norm"]["scale"] *= 0
    chex.assert_trees_all_equal(penalty(optim.add_decayed_weights(DECAY, PSI, MASKS[mask]), network()), expected)


def test_the_decay_follows_its_schedule():
    once = penalty(optim.add_decayed_weights(DECAY, PSI), network())
    fourth = penalty(optim.add_decayed_weights(lambda count: DECAY * count, PSI), network(), 4)
    chex.assert_trees_all_close(fourth, jax.tree.map(lambda u: 3 * u, once), rtol=1e-6)


@pytest.mark.parametrize("pair", ["own", "shared"])
def test_with_a_learned_pair_v_decays_as_v_and_the_pair_not_at_all(pair):
    params = network(pair)
    found = penalty(optim.add_decayed_weights(DECAY, PSI), params)
    home = "conv" if pair == "own" else "pair"
    assert found[home].pop("a") == 0 and found[home].pop("b") == 0
    del params[home]["a"], params[home]["b"]
    if pair == "own":  # only conv learns its pair
        v = np.asarray(params["head"].pop("v:w"))
        chex.assert_trees_all_close(found["head"].pop("v:w"), DECAY * TRUTH[PSI](v) * TRUTH[PSI].slope(v), rtol=1e-5)
    chex.assert_trees_all_close(found, jax.tree.map(lambda p: DECAY * p, params), rtol=1e-6)


def test_params_boxed_with_partitioning_names_are_known_by_their_names():
    params, boxed = network("own"), jax.tree.map(lambda p: nn.Partitioned(p, (None,) * p.ndim), network("own"))
    found = updates_of(WHOLE, boxed, gradients(boxed))
    chex.assert_trees_all_close(nn.unbox(found), updates_of(WHOLE, params, gradients(params)), rtol=1e-5)


@pytest.mark.parametrize("psi, pair", [*((psi, None) for psi in TRUTH), (PSI, "own"), (PSI, "shared")], ids=repr)
def test_a_step_of_adam_is_the_one_by_hand(psi, pair):  # whole runs: test_training_rules.py
    params = network(pair)
    grads, learned = gradients(params), {"own": ["conv"], "shared": ["conv", "head"]}.get(pair, [])
    found = updates_of(optim.scale_by_derivative(optax.adam(LR, eps=0.1), psi), params, grads)
    expected = jax.tree.map(lambda g: -LR * g / (jnp.abs(g) + 0.1), grads)  # learned a and b too
    for module, name in (("conv", "v"), ("head", "v:w")):
        slope = (reference.Arctan(-0.4, 0.9) if module in learned else TRUTH[psi]).slope(
            np.asarray(params[module][name])
        )
        g = np.asarray(grads[module][name]) / slope
        expected[module][name] = -LR * g / (np.abs(g) + 0.1) * slope
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_inner_sees_w_and_its_gradient_under_the_name_v():
    record = lambda grads, state, params: (grads, state | {"params": params, "grads": grads})
    recorder = optax.GradientTransformation(lambda params: {"at init": params}, record)
    params, truth = network(), TRUTH[PSI]
    grads, tx = gradients(params), optim.scale_by_derivative(recorder, PSI)
    updates, seen = tx.update(grads, tx.init(params), params)
    expected, expected_grads = (jax.tree.map(np.asarray, tree) for tree in (params, grads))
    for module, name in (("conv", "v"), ("head", "v:w")):
        v = expected[module][name]
        expected[module][name], expected_grads[module][name] = truth(v), grads[module][name] / truth.slope(v)
    chex.assert_trees_all_close(seen, {"at init": expected, "params": expected, "grads": expected_grads}, rtol=1e-5)
    chex.assert_trees_all_close(updates, grads, rtol=1e-5)  # divided, then multiplied


def test_powerprop_at_zero_rests_without_nan():
    params = {"v": jnp.array([[0.0, 0.5]])}
    steps = updates_of(optim.scale_by_derivative(optax.adam(LR), PowerProp(2.0)), params, {"v": jnp.ones((1, 2))}, 2)
    assert steps["v"][0, 0] == 0 and steps["v"][0, 1] < 0


def test_bfloat16_params_stay_bfloat16_and_near_the_float32_step():
    half = jax.tree.map(jnp.bfloat16, network("own"))
    found, wide = updates_of(WHOLE, half, gradients(half), 2), jax.tree.map(jnp.float32, half)
    chex.assert_trees_all_equal_dtypes(found, half)
    expected = updates_of(WHOLE, wide, gradients(wide), 2)
    chex.assert_trees_all_close(jax.tree.map(jnp.float32, found), expected, atol=0.1 * LR)


WRAPPERS = {
    "schedule": adam_on(PSI, lambda count: LR + 0 * count),
    "inject_hyperparams": optax.inject_hyperparams(adam_on, static_args=("psi",))(PSI, LR, DECAY),
    "apply_if_finite": optax.apply_if_finite(WHOLE, 3),
    "multi_transform": optax.multi_transform(
        {"wc": WHOLE, "plain": optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR))},
        {"conv": "wc", "norm": "plain", "head": "wc", "pair": {"a": "wc", "b": "wc"}},
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_by_optax_the_steps_are_the_same_under_jit_with_donated_state(wrapper):
    params, tx = network("shared"), WRAPPERS[wrapper]
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


ADAM = lambda psi=PSI: optim.scale_by_derivative(optax.adam(LR), psi)
PARTED = optax.multi_transform(  # a and b go to another optimizer than their v
    {"pair": optax.sgd(LR), "rest": ADAM()},
    lambda params: jax.tree_util.tree_map_with_path(lambda p, _: "pair" if p[-1].key in "ab" else "rest", params),
)
MISUSES = {
    "decay without params": (lambda: optim.add_decayed_weights(0.1, PSI).update({}, optax.EmptyState()), "params"),
    "adam without params": (lambda: ADAM().update({}, ADAM().init({})), "needs the parameters"),
    "decay of WeightNorm": (lambda: optim.add_decayed_weights(0.1, WeightNorm()), "found WeightNorm"),
    "adam of WeightNorm": (lambda: ADAM(WeightNorm()), "found WeightNorm"),
    "adam of None": (lambda: ADAM(None), "psi must be .* found None"),
    "psi not static": (lambda: optax.inject_hyperparams(adam_on)(PSI).init(network()), "static_args=.'psi'"),
    "own pair hidden": (lambda: PARTED.init(network("own")), "hides the learned a and b"),
    "shared pair hidden": (lambda: PARTED.init(network("shared")), "hides the learned a and b"),
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
@pytest.mark.parametrize("psi", [Arctan(1.0, 1.0), Arsinh(0.5, 0.5), Erf(1.0, 1.0), PowerProp(2.0)], ids=repr)
def test_contract_of_optax_holds_for_every_psi_and_inner_optimizer(psi, optimizer):
    start, goal = jnp.array([[-0.5, 0.8, 0.3]]), jnp.array([[0.4, -0.3, 0.6]])
    if isinstance(psi, PowerProp):  # Ψ′(0) = 0 keeps the sign of w
        goal = jnp.abs(goal) * jnp.sign(start)
    params = {"v": psi.inverse(start), "bias": jnp.array([-0.5, 0.7])}
    loss = lambda p: jnp.sum((psi(p["v"]) - goal) ** 2) + jnp.sum((p["bias"] - 0.5) ** 2)
    tx = optax.chain(optim.add_decayed_weights(1e-5, psi), optim.scale_by_derivative(OPTIMIZERS[optimizer], psi))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, an_unexpected_extra_argument=1)
        return (optax.apply_updates(params, updates), state), None

    state = optax.tree.map_params(tx, lambda x: x, tx.init(params))
    (new, new_state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1000))((params, state))
    chex.assert_trees_all_equal_shapes_and_dtypes((new, new_state), (params, state))
    chex.assert_trees_all_close((psi(new["v"]), new["bias"]), (goal, jnp.full(2, 0.5)), atol=3e-2)
