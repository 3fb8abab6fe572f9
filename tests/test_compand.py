"""compand: the run of the layers from an optimizer, around any optax optimizer, in any wrapper, safe at the bound."""

import functools
import os
import re
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec

import wcjax
import wcjax.linen
from benchmarks import compand_gap
from tests import numpy_reference as reference
from tests import test_training_rules as rules
from wcjax import Arctan, Arsinh, Erf, PowerProp, compand

PSIS = {"arctan": Arctan(0.9, 0.6), "arsinh": Arsinh(0.7, 0.6), "erf": Erf(1.4, 0.6), "powerprop": PowerProp(2.0)}
PSI = PSIS["arctan"]
each_psi = pytest.mark.parametrize("psi", PSIS.values(), ids=PSIS)
KERNEL = np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
PARAMS = {"conv": {"kernel": KERNEL, "bias": np.float32([0.1, -0.2, 0.3])}, "out": {"kernel": -KERNEL}}
TARGET = {"conv": {"kernel": np.sign(KERNEL) * 0.4, "bias": -np.ones(3)}, "out": {"kernel": -np.sign(KERNEL) * 0.5}}


def parabola(params, target=TARGET):
    return sum(jax.tree.leaves(jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), params, target)))


def train(optimizer, params, gradient, batches):
    """(params, state) after one step on each batch; the step is traced once."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(grads, state, params):
        updates, new_state = optimizer.update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes((updates, new_state), (params, state))
        return optax.apply_updates(params, updates), new_state

    params, state = jax.tree.map(jnp.asarray, (params, optimizer.init(params)))
    for batch in batches:
        params, state = step(gradient(params, *batch), state, params)
    return params, state


def descend(optimizer, steps=10):
    return train(optimizer, PARAMS, jax.jit(jax.grad(parabola)), [()] * steps)


@rules.runs(rules.ELEMENTWISE + rules.LEARNED)
def test_the_run_is_the_one_by_hand_and_so_that_of_the_layers(name, learn, optimizer, decay):
    (psi, truth), expected = rules.PAIRS[name], rules.by_hand(name, learn, optimizer, decay)  # test_training_rules.py
    with jax.enable_x64(True):
        inner = rules.inner(optimizer, learn)
        tx = compand(inner, psi, adaptive=optimizer == "adam", weight_decay=decay, learn=learn)
        start = reference.folded(rules.initial(name, learn), truth)
        params, step = rules.nested(start, "none", "none"), jax.jit(tx.update)
        state = tx.init(params)
        for count, (batch, (_, by_hand)) in enumerate(zip(rules.batches(), expected, strict=True), 1):
            _, grads = rules.loss_and_gradients("none", "none")(params, *batch)
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
            found = rules.flat(params) | rules.flat({"pair": state.pairs} if learn == "coarse" else state.pairs)
            by_hand = reference.folded(by_hand, truth) | {k: x for k, x in by_hand.items() if k[-2:] in ("/a", "/b")}
            assert found.keys() == by_hand.keys()
            for leaf, value in found.items():
                assert (value.dtype, value.shape) == (jnp.float64, by_hand[leaf].shape), leaf
                np.testing.assert_allclose(value, by_hand[leaf], rtol=0, atol=1e-9, err_msg=f"{leaf}, step {count}")


@pytest.mark.long
def test_in_float32_the_run_strays_no_further_than_ten_times_what_one_rounding_at_the_start_does():
    layers, found, others = compand_gap.runs(jnp.tanh, [100], 1)
    assert 0 < compand_gap.gap(layers[100], found[100]) < 10 * compand_gap.gap(layers[100], others[0][100])


RATE = optax.linear_schedule(0.1, 0.0, 300)
INNER = {
    "sgd": (optax.sgd(RATE), False),
    "nesterov": (optax.sgd(RATE, momentum=0.9, nesterov=True), False),
    "adam": (optax.adam(RATE), True),
    "adamw": (optax.adamw(RATE), True),
    "lamb": (optax.lamb(RATE), True),
    "lion": (optax.lion(RATE), True),
    "rmsprop": (optax.rmsprop(RATE), True),
    "muon": (optax.contrib.muon(RATE), True),
}


@each_psi
@pytest.mark.parametrize("inner", INNER)
def test_every_psi_around_every_optimizer_finds_the_minimum_of_a_parabola(psi, inner):
    optimizer, adaptive = INNER[inner]
    gradient = jax.grad(lambda params: parabola(params, TARGET["conv"]))
    params, _ = train(compand(optimizer, psi, adaptive=adaptive), PARAMS["conv"], jax.jit(gradient), [()] * 300)
    chex.assert_trees_all_close(params, TARGET["conv"], rtol=0, atol=3e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("inner", INNER)
def test_updates_have_the_dtype_and_shape_of_their_leaf(inner, dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    optimizer = compand(INNER[inner][0], PSI, adaptive=INNER[inner][1], weight_decay=0.1, learn="fine")
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


SGD = optax.sgd(0.1, momentum=0.9)
ALONE = compand(SGD, PSI, weight_decay=0.01)
LABELS = {"conv": {"kernel": "wc", "bias": "plain"}, "out": {"kernel": "wc"}}
STATIC = ("inner", "psi", "adaptive", "mask", "where", "learn")
WRAPPED = {
    "chain": optax.chain(optax.clip_by_global_norm(1e9), ALONE, optax.identity()),
    "multi_transform": optax.multi_transform(
        {"wc": ALONE, "plain": optax.chain(optax.add_decayed_weights(0.01), SGD)}, LABELS
    ),
    "inject_hyperparams inside": compand(optax.inject_hyperparams(optax.sgd)(0.1, 0.9), PSI, weight_decay=0.01),
    "inject_hyperparams outside": optax.inject_hyperparams(compand, STATIC)(SGD, PSI, weight_decay=0.01),
    "apply_if_finite": optax.apply_if_finite(ALONE, 5),
    "schedules": compand(optax.sgd(lambda count: 0.1, momentum=0.9), PSI, weight_decay=lambda count: 0.01),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_inside_and_around_other_transforms_it_does_what_it_does_alone(wrapper):
    chex.assert_trees_all_close(descend(WRAPPED[wrapper])[0], descend(ALONE)[0], rtol=1e-6)


def test_multi_steps_takes_every_second_step():
    slow = optax.MultiSteps(ALONE, every_k_schedule=2).gradient_transformation()
    chex.assert_trees_all_close(descend(slow, steps=20)[0], descend(ALONE)[0], rtol=1e-6)


def test_an_injected_learning_rate_can_be_set_and_a_gradient_of_nan_be_skipped():
    optimizer = WRAPPED["inject_hyperparams inside"]
    state, grads = optimizer.init(PARAMS), jax.grad(parabola)(PARAMS)
    state.inner.hyperparams["learning_rate"] = jnp.float32(0.0)
    chex.assert_trees_all_equal(optimizer.update(grads, state, PARAMS)[0], jax.tree.map(np.zeros_like, PARAMS))
    optimizer = WRAPPED["apply_if_finite"]
    updates, _ = optimizer.update(jax.tree.map(lambda x: x * np.nan, grads), optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, jax.tree.map(np.zeros_like, PARAMS))


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax, wcjax
from tests.test_compand import PARAMS, PSI, parabola
optimizer = wcjax.compand(optax.adam(0.01), PSI, adaptive=True, weight_decay=0.01, learn="coarse")
def step(params, state):
    updates, state = optimizer.update(jax.grad(parabola)(params), state, params)
    return optax.apply_updates(params, updates), state
step = jax.jit(step, donate_argnums=(0, 1))
mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
spread = lambda x: NamedSharding(mesh, PartitionSpec("x") if x.ndim > 1 else PartitionSpec())
found = []
for shardings in (jax.devices()[0], jax.tree.map(spread, PARAMS)):
    params = jax.device_put(PARAMS, shardings)
    state = jax.jit(optimizer.init)(params)
    for _ in range(20):
        old, (params, state) = params, step(params, state)
    assert old["conv"]["kernel"].is_deleted()
    found.append(params)
assert len(found[1]["conv"]["kernel"].sharding.device_set) == 2
assert not found[1]["conv"]["kernel"].sharding.is_fully_replicated
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *found)
"""


@pytest.mark.long
def test_on_two_devices_with_donated_and_sharded_state_the_result_is_that_of_one():
    subprocess.run([sys.executable, "-c", SHARDED], env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"}, check=True)


@pytest.mark.parametrize("learn", rules.MODES)
def test_a_run_restored_by_orbax_goes_on_to_the_same_bits(learn, tmp_path):
    optimizer, gradient = compand(optax.adam(0.01), PSI, adaptive=True, learn=learn), jax.grad(parabola)
    params, state = descend(optimizer, steps=5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", (params, state))
        checkpointer.wait_until_finished()
        found, found_state = checkpointer.restore(tmp_path / "run", jax.eval_shape(lambda: (params, state)))
    chex.assert_trees_all_equal((found, found_state), (params, state))
    one, other = (optimizer.update(gradient(p), s, p) for p, s in ((params, state), (found, found_state)))
    chex.assert_trees_all_equal(one, other)


@each_psi
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_step_is_large_enough_for_inf_nan_or_the_bound(psi, adaptive):
    start, side = [[0.0, 1e-30, 0.5, -0.5, 0.7, -0.8]] * 2, np.float32([[1], [-1]])
    params = {"a": {"kernel": jnp.asarray(start, jnp.float32)}, "b": {"kernel": jnp.asarray(start, jnp.bfloat16)}}
    for direction in (side, -side):
        gradient = lambda params, up=direction: jax.tree.map(lambda x: (0 * x - 1e30 * up).astype(x.dtype), params)
        params, _ = train(compand(optax.sgd(1e10), psi, adaptive=adaptive), params, gradient, [()] * 50)
        for w in (np.float64(leaf) for leaf in jax.tree.leaves(params)):
            assert np.all(np.isfinite(w)) and np.all(np.abs(w) < psi.bound)
            if direction is side or not isinstance(psi, Arsinh):  # Arsinh's v of 1e30: no step times Ψ′ moves it back
                assert np.all(np.sign(w[:, 2:]) == direction)  # a PowerProp that starts at 0 rests


RECORDING = optax.GradientTransformation(  # moves nothing and keeps what it sees
    lambda params: (params, params), lambda grads, state, params: (optax.tree.zeros_like(grads), (grads, params))
)


def test_the_inner_optimizer_sees_dl_dv_and_v_or_where_adaptive_dl_dw_and_w():
    w, grads = KERNEL.astype(np.float64), jax.tree.map(np.ones_like, PARAMS)
    slope, v = 0.9 / 0.6 * np.cos(w / 0.9) ** 2, 0.6 * np.tan(w / 0.9)
    for adaptive, seen, params in ((False, slope * (1 + 0.01 * w), v), (True, 1 + 0.01 * w, w)):
        optimizer = compand(RECORDING, PSI, adaptive=adaptive, weight_decay=0.01)
        state = optimizer.init(PARAMS)
        np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], params, rtol=1e-6)
        _, state = optimizer.update(grads, state, PARAMS)
        np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], seen, rtol=1e-6)
        np.testing.assert_allclose(state.inner[1]["conv"]["kernel"], params, rtol=1e-6)
        np.testing.assert_allclose(state.inner[0]["conv"]["bias"], 1 + 0.01 * PARAMS["conv"]["bias"], rtol=1e-6)


def test_leaves_that_where_leaves_out_get_exactly_what_inner_alone_gives():
    inner, out_only = optax.adam(0.1), lambda path, leaf: rules.name_of(path) == "out/kernel"
    (found, _), (alone, _) = descend(compand(inner, PSI, adaptive=True, where=out_only)), descend(inner)
    chex.assert_trees_all_equal(found["conv"], alone["conv"])
    assert not np.allclose(found["out"]["kernel"], alone["out"]["kernel"])


def test_a_mask_chooses_what_decays():
    zeros, tree = jax.tree.map(np.zeros_like, PARAMS), {"conv": {"kernel": True, "bias": False}, "out": False}
    for mask in (tree, lambda params: tree):
        optimizer = compand(optax.sgd(0.1), PSI, weight_decay=0.5, mask=mask)
        updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
        assert np.all(updates["conv"]["kernel"] * KERNEL < 0)
        chex.assert_trees_all_equal((updates["conv"]["bias"], updates["out"]), (np.zeros(3), zeros["out"]))


def test_the_state_keeps_the_selection_as_structure_without_leaves():
    state = compand(SGD, PSI).init(PARAMS)
    assert state.psis == {"conv": {"kernel": PSI, "bias": None}, "out": {"kernel": PSI}}
    assert jax.tree.leaves(state.psis) == []


def test_where_is_asked_once_for_each_leaf_by_init_alone():
    asked = []
    where = lambda path, leaf: asked.append(rules.name_of(path)) or wcjax.is_kernel(path, leaf)
    descend(compand(SGD, PSI, where=where))
    assert sorted(asked) == ["conv/bias", "conv/kernel", "out/kernel"]


def test_learned_pairs_are_read_from_the_state():
    _, state = descend(compand(optax.sgd(0.01), PSI, learn="coarse"))
    assert state.pairs.keys() == {"a", "b"} and state.pairs["a"].shape == () and state.pairs["a"] != 0.9
    for learn, shape in (("fine", (1, 1)), ("channel", (1, 3))):
        _, state = descend(compand(optax.sgd(0.01), PSI, learn=learn))
        conv, out = state.pairs["conv"]["kernel"], state.pairs["out"]["kernel"]
        assert state.pairs == {"conv": {"kernel": conv, "bias": None}, "out": {"kernel": out}}
        assert conv["a"].shape == conv["b"].shape == shape
        values = np.concatenate([conv["b"], out["b"]], axis=None)
        assert len({float(np.float32(0.6)), *values.tolist()}) == 1 + values.size, "a pair rests, or two are the same"


def test_weights_may_be_loaded_between_updates_since_nothing_is_kept_of_v():
    optimizer, loaded = compand(optax.sgd(0.1), PSI, weight_decay=0.01), jax.tree.map(lambda x: x / 2, PARAMS)
    grads, (_, state) = jax.grad(parabola)(loaded), descend(optimizer)
    after, fresh = (optimizer.update(grads, s, loaded)[0] for s in (state, optimizer.init(loaded)))
    chex.assert_trees_all_equal(after, fresh)


@pytest.mark.parametrize(
    ("psi", "settings", "params", "message"),
    [
        (PSI, {}, {"bias": np.ones(3)}, "selects no leaf"),
        (PSI, {}, {"out": {"kernel": np.full((2, 2), 1.5)}}, r"out/kernel: largest \|w\| is 1.5,.* Choose a >= 1.1?"),
        (PSI, {}, {"out": {"kernel": np.full((2, 2), np.nan)}}, "out/kernel: the weight holds nan"),
        (wcjax.WeightNorm(), {}, PARAMS, "psi must be Arctan, Arsinh, Erf or PowerProp, found WeightNorm"),
        (PSI, {"learn": "rough"}, PARAMS, "'none', 'fine', 'channel', 'coarse', found 'rough'"),
        (PowerProp(2.0), {"learn": "fine"}, PARAMS, "PowerProp has no a and b to learn"),
    ],
)
def test_errors_name_the_thing_and_what_to_do(psi, settings, params, message):
    with pytest.raises(ValueError, match=message):
        compand(optax.sgd(0.1), psi, **settings).init(params)


def test_update_without_params_is_an_error_and_the_advised_a_fits():
    with pytest.raises(ValueError, match="needs the parameters"):
        ALONE.update(PARAMS, ALONE.init(PARAMS))
    too_large = jax.tree.map(lambda x: 3 * x, PARAMS)
    with pytest.raises(ValueError) as error:
        ALONE.init(too_large)
    advised = float(re.search("a >= ([0-9.]+),", str(error.value))[1])
    compand(optax.sgd(0.1), Arctan(advised, 0.6)).init(too_large)


def test_describe_prints_counts_and_shares_of_the_bound(capsys):
    wcjax.describe(PARAMS, psi=PSI)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == ["conv/bias (3,)", "conv/kernel (2, 3) yes 0.7 49.5%"]
    assert lines[-1] == "2 of 3 leaves companded: 12 of 15 parameters."


@pytest.mark.long
def test_bfloat16_parameters_train_as_well_as_bfloat16_v_in_layers():
    (images, labels), (test_images, test_labels) = compand_gap.digits()
    images, test = images.reshape(len(images), 64), (test_images.reshape(-1, 64), test_labels)
    dense = functools.partial(wcjax.linen.Dense, param_dtype=jnp.bfloat16)
    accuracies = []
    for reparam, optimizer in ((PSI, SGD), (None, compand(SGD, PSI))):
        net = nn.Sequential((dense(64, reparam=reparam), nn.relu, dense(10, reparam=reparam)))
        params = net.init(jax.random.key(0), images[:1])["params"]
        params = compand_gap.run(net, params, optimizer, (images, labels), [300])[300]
        chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(params), jnp.bfloat16(0))
        accuracies.append(compand_gap.accuracy(net, params, test))
    assert accuracies[1] > 0.9 and abs(accuracies[1] - accuracies[0]) < 0.03


@pytest.mark.parametrize("learn", rules.MODES)
@pytest.mark.parametrize("adaptive", [False, True], ids=["sgd", "adamw"])
def test_a_weight_put_beyond_the_bound_after_init_is_taken_to_it(learn, adaptive):
    inner = optax.adamw(0.1, weight_decay=0.0) if adaptive else optax.sgd(0.1)
    tx = compand(inner, PSI, adaptive=adaptive, learn=learn)
    params = {"kernel": jnp.full((2, 2), 0.1)}
    state = tx.init(params)
    for sign in (1, -1):
        beyond = {"kernel": jnp.full((2, 2), sign * 5.0)}
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, beyond), state, beyond)
        moved = optax.apply_updates(beyond, updates)["kernel"]
        np.testing.assert_allclose(moved, sign * PSI.bound, rtol=1e-5)
        assert np.all(np.abs(moved) < PSI.bound)


def boxed_params():
    init = nn.with_partitioning(nn.initializers.constant(0.1), (None, "x"))
    return nn.Dense(4, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 3)))["params"]


@pytest.mark.parametrize("learn", rules.MODES)
def test_weights_in_flax_boxes_are_stepped_like_plain_ones(learn):
    boxed, found = boxed_params(), []
    for params in (boxed, nn.meta.unbox(boxed)):
        tx = compand(optax.sgd(0.1), PSI, learn=learn)
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        found.append(nn.meta.unbox((updates, state.pairs)))
    chex.assert_trees_all_equal(*found)
    for x in jax.tree.leaves(found[0][1]):
        assert np.all(x != PSI.a) and np.all(x != PSI.b)


def test_learned_pairs_are_not_sharded_along_the_axes_of_their_kernel():
    shapes = jax.eval_shape(compand(optax.sgd(0.1), PSI, learn="fine").init, boxed_params())
    assert set(jax.tree.leaves(nn.get_partition_spec(shapes).pairs)) == {PartitionSpec()}


@pytest.mark.parametrize(("adaptive", "learn"), [(False, "none"), (True, "fine"), (True, "channel"), (True, "coarse")])
def test_a_line_search_is_refused_where_it_would_not_see_w(adaptive, learn):
    tx, value = compand(optax.lbfgs(), PSI, adaptive=adaptive, learn=learn), lambda params: parabola(params)
    more = {"value": value(PARAMS), "grad": jax.grad(value)(PARAMS), "value_fn": value}
    with pytest.raises(ValueError, match="value_fn is a function, .* with v in place of w. Use .*adaptive=True"):
        tx.update(more["grad"], tx.init(PARAMS), PARAMS, **more)


def test_a_line_search_that_sees_w_lowers_its_value():
    params = {"kernel": jnp.full((2, 2), 0.1)}
    value = lambda params: jnp.sum((params["kernel"] - 0.3) ** 2)
    tx = compand(optax.lbfgs(), PSI, adaptive=True)
    more = {"value": value(params), "grad": jax.grad(value)(params), "value_fn": value}
    updates, _ = tx.update(more["grad"], tx.init(params), params, **more)
    assert value(optax.apply_updates(params, updates)) < value(params)


def test_compand_itself_may_have_its_rates_injected():
    def make(rate, weight_decay):
        return compand(optax.sgd(rate), PSI, weight_decay=weight_decay)

    static = ("inner", "psi", "adaptive", "where", "learn")
    injected = optax.inject_hyperparams(compand, static_args=static)(optax.sgd(0.1), PSI, weight_decay=0.01)
    params = {"kernel": jnp.full((2, 2), 0.1)}
    updates = [tx.update(params, tx.init(params), params)[0] for tx in (injected, make(0.1, 0.01))]
    chex.assert_trees_all_close(*updates, rtol=1e-6)
