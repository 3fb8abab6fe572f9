"""compand: what the inner optimizer sees, which leaves it steps through Ψ, and its state."""

import functools

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
from benchmarks import compand_gap
from tests.truth import Psi
from wcjax import PowerProp, compand

TRUTH = Psi("arctan", 0.9, 0.6)
PSI = TRUTH.ours()
KERNEL = np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
PARAMS = {"conv": {"kernel": KERNEL, "bias": np.float32([0.1, -0.2, 0.3])}, "out": {"kernel": -KERNEL}}
ZERO = jax.tree.map(np.zeros_like, PARAMS)
SGD = optax.sgd(0.1, momentum=0.9)
each_learn = pytest.mark.parametrize("learn", ["none", "channel", "coarse"])


def parabola(params):
    return sum(jnp.sum(jnp.square(p - 0.3)) for p in jax.tree.leaves(params))


def descend(tx, steps=5, params=PARAMS):
    """(params, state) after some steps, of which the first is traced."""
    step, state = jax.jit(chex.assert_max_traces(tx.update, n=1)), tx.init(params)
    chex.clear_trace_counter()
    for _ in range(steps):
        updates, state = step(jax.grad(parabola)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


RECORDING = optax.GradientTransformation(  # moves nothing and keeps what it sees
    lambda params: (params, params), lambda grads, state, params: (optax.tree.zeros_like(grads), (grads, params))
)


@pytest.mark.parametrize("adaptive", [False, True])
def test_inner_sees_dl_dv_and_v_or_dl_dw_and_w(adaptive):
    v = TRUTH.inverse(KERNEL)
    slope, seen_params = (1, KERNEL) if adaptive else (TRUTH.derivative(v), v)
    tx = compand(RECORDING, PSI, adaptive=adaptive, weight_decay=0.01)
    state = tx.init(PARAMS)
    np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], seen_params, rtol=1e-6)
    _, state = tx.update(jax.tree.map(np.ones_like, PARAMS), state, PARAMS)
    np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], slope * (1 + 0.01 * np.float64(KERNEL)), rtol=1e-6)
    np.testing.assert_allclose(state.inner[1]["conv"]["kernel"], seen_params, rtol=1e-6)
    np.testing.assert_allclose(state.inner[0]["conv"]["bias"], 1 + 0.01 * PARAMS["conv"]["bias"], rtol=1e-6)


def test_where_is_asked_once_a_leaf_and_kept_as_structure():
    asked = []

    def where(path, leaf):
        asked.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return asked[-1] == "out/kernel"

    params, state = descend(compand(optax.adam(0.1), PSI, adaptive=True, where=where))
    assert asked == ["conv/bias", "conv/kernel", "out/kernel"]
    assert state.psis == {"conv": {"kernel": None, "bias": None}, "out": {"kernel": PSI}}
    assert jax.tree.leaves(state.psis) == []
    alone, _ = descend(optax.adam(0.1))
    chex.assert_trees_all_equal(params["conv"], alone["conv"])
    assert not np.allclose(params["out"]["kernel"], alone["out"]["kernel"])


@pytest.mark.parametrize("is_function", [False, True])
def test_a_mask_chooses_what_decays(is_function):
    tree = {"conv": {"kernel": True, "bias": False}, "out": False}
    tx = compand(optax.sgd(0.1), PSI, weight_decay=0.5, mask=(lambda params: tree) if is_function else tree)
    updates, _ = tx.update(ZERO, tx.init(PARAMS), PARAMS)
    assert np.all(updates["conv"]["kernel"] * KERNEL < 0)
    chex.assert_trees_all_equal((updates["conv"]["bias"], updates["out"]), (np.zeros(3), ZERO["out"]))


def test_rates_may_be_injected_into_compand_and_into_inner():
    psi_and_decay = {"psi": PSI, "weight_decay": 0.01}
    static = ("inner", "psi", "adaptive", "mask", "where", "learn")
    outside = optax.inject_hyperparams(compand, static_args=static)(SGD, **psi_and_decay)
    inside = compand(optax.inject_hyperparams(optax.sgd)(0.1, 0.9), **psi_and_decay)
    for tx in (outside, inside):
        chex.assert_trees_all_close(descend(tx)[0], descend(compand(SGD, **psi_and_decay))[0], rtol=1e-6)


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


def test_weights_may_be_loaded_between_updates():  # nothing is kept of v
    tx, loaded = compand(optax.sgd(0.1), PSI, weight_decay=0.01), jax.tree.map(lambda x: x / 2, PARAMS)
    grads, (_, state) = jax.grad(parabola)(loaded), descend(tx)
    after, fresh = (tx.update(grads, s, loaded)[0] for s in (state, tx.init(loaded)))
    chex.assert_trees_all_equal(after, fresh)


def test_a_run_restored_by_orbax_continues_to_the_same_bits(tmp_path):
    tx = compand(optax.adam(0.01), PSI, adaptive=True, learn="channel")
    saved = descend(tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", jax.eval_shape(lambda: saved))
    chex.assert_trees_all_equal(restored, saved)
    one, other = (tx.update(jax.grad(parabola)(params), state, params) for params, state in (saved, restored))
    chex.assert_trees_all_equal(one, other)


def start(params, psi=PSI, **settings):
    return compand(SGD, psi, **settings).init(params)


def kernel(value):
    return {"out": {"kernel": np.full((2, 2), value)}}


ERRORS = {
    "no kernel": (lambda: start({"bias": np.ones(3)}), "selects no leaf"),
    "the bound": (lambda: start(kernel(1.5)), r"out/kernel: largest \|w\| is 1.5,.* Choose a >= 1.1?"),
    "nan": (lambda: start(kernel(np.nan)), "out/kernel: the weight holds nan"),
    "WeightNorm": (lambda: start(PARAMS, wcjax.WeightNorm()), "psi must be Arctan, .* or PowerProp, found WeightNorm"),
    "unknown learn": (lambda: start(PARAMS, learn="rough"), "'none', 'fine', 'channel', 'coarse', found 'rough'"),
    "PowerProp": (lambda: start(PARAMS, PowerProp(2.0), learn="fine"), "PowerProp has no a and b to learn"),
    "v": (lambda: start(wcjax.reparameterize(PARAMS, PSI)), "compand takes plain weights, but this tree has Reparam"),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(compand)(SGD, PSI, weight_decay=0.01).init(PARAMS),
        r"Under optax.inject_hyperparams pass static_args=\('inner', 'psi', ",
    ),
    "no params": (lambda: compand(SGD, PSI).update(PARAMS, start(PARAMS)), "needs the parameters"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_thing_and_what_to_do(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


def boxed_params():
    init = nn.with_partitioning(nn.initializers.constant(0.1), (None, "x"))
    return nn.Dense(4, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 3)))["params"]


@each_learn
def test_weights_in_flax_boxes_are_stepped_like_plain_ones(learn):
    tx, results = compand(optax.sgd(0.1), PSI, learn=learn), []
    for params in (boxed_params(), nn.meta.unbox(boxed_params())):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        results.append(nn.meta.unbox((updates, state.pairs)))
    chex.assert_trees_all_equal(*results)
    # A pair has no axis of its kernel along which it could be sharded.
    specs = nn.get_partition_spec(jax.eval_shape(tx.init, boxed_params())).pairs
    assert set(jax.tree.leaves(specs)) == (set() if learn == "none" else {PartitionSpec()})


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_bfloat16_weights_train_as_well_as_a_bfloat16_v():
    (images, labels), (test_images, test_labels) = compand_gap.digits()
    images, test = images.reshape(len(images), 64), (test_images.reshape(-1, 64), test_labels)
    dense = functools.partial(wcjax.linen.Dense, param_dtype=jnp.bfloat16)
    accuracies = []
    for reparam, tx in ((PSI, SGD), (None, compand(SGD, PSI))):
        net = nn.Sequential((dense(64, reparam=reparam), nn.relu, dense(10, reparam=reparam)))
        params = net.init(jax.random.key(0), images[:1])["params"]
        params = compand_gap.run(net, params, tx, (images, labels), [300])[300]
        chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(params), jnp.bfloat16(0))
        accuracies.append(compand_gap.accuracy(net, params, test))
    assert accuracies[1] > 0.9 and abs(accuracies[1] - accuracies[0]) < 0.03


OTHERS = {"a": (wcjax.Arctan(0.5, 0.6), "none"), "class": (wcjax.Erf(0.9, 0.6), "none"), "learn": (PSI, "fine")}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_psi_is_refused(other):  # it holds the Ψ, so that the new one would be ignored
    psi, learn = OTHERS[other]
    sgd = optax.sgd(0.1)
    for mine, theirs in (((PSI, "none"), (psi, learn)), ((psi, learn), (PSI, "none"))):
        tx, state = compand(sgd, mine[0], learn=mine[1]), compand(sgd, theirs[0], learn=theirs[1]).init(PARAMS)
        with pytest.raises(ValueError, match=r"state was made with \w+\(a=.*, but this compand has .*learn="):
            tx.update(ZERO, state, PARAMS)


@pytest.mark.filterwarnings("error")
def test_numpy_float64_weights_share_a_float32_pair_where_jax_has_no_float64():
    params = jax.tree.map(np.float64, PARAMS)
    pairs = compand(SGD, PSI, learn="coarse").init(params).pairs
    chex.assert_trees_all_equal(pairs, {"a": np.float32(0.9), "b": np.float32(0.6)})
