"""compand: what the inner optimizer sees, which leaves it steps through Ψ, where a step ends, and its state."""

import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import wcjax
from tests import digits_runs
from tests.truth import PSIS, Psi
from wcjax import Arctan, PowerProp, compand
from wcjax.companding import schedule_free_eval_params
from wcjax.trees import path_str

TRUTH = Psi("arctan", 0.9, 0.6)
PSI = TRUTH.ours()
KERNEL = np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]])
PARAMS = {"conv": {"kernel": KERNEL, "bias": np.float32([0.1, -0.2, 0.3])}, "out": {"kernel": -KERNEL}}
ONES = jax.tree.map(np.ones_like, PARAMS)
SGD = optax.sgd(0.1, momentum=0.9)


def parabola(params):
    return sum(jnp.sum(jnp.square(p - 0.3)) for p in jax.tree.leaves(params))


GRADIENT = jax.grad(parabola)


def descend(tx, steps=5, params=PARAMS, grad=GRADIENT):
    """(params, state) after some steps, of which the first is traced."""
    step, state = jax.jit(chex.assert_max_traces(tx.update, n=1)), tx.init(params)
    chex.clear_trace_counter()
    for _ in range(steps):
        updates, state = step(grad(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("adaptive", [False, True])
def test_inner_sees_dl_dv_and_v_or_dl_dw_and_w(adaptive):
    recording = optax.GradientTransformation(
        lambda params: (params, params), lambda grads, state, params: (optax.tree.zeros_like(grads), (grads, params))
    )
    v = TRUTH.inverse(KERNEL)
    slope, seen_params = (1, KERNEL) if adaptive else (TRUTH.derivative(v), v)
    tx = compand(recording, PSI, adaptive=adaptive, weight_decay=0.01)
    state = tx.init(PARAMS)
    np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], seen_params, rtol=1e-6)
    _, state = tx.update(ONES, state, PARAMS)
    np.testing.assert_allclose(state.inner[0]["conv"]["kernel"], slope * (1 + 0.01 * np.float64(KERNEL)), rtol=1e-6)
    np.testing.assert_allclose(state.inner[1]["conv"]["kernel"], seen_params, rtol=1e-6)


def test_where_is_asked_once_for_each_leaf_and_kept():
    asked = []

    def where(path, leaf):
        asked.append(path_str(path))
        return asked[-1] == "out/kernel"

    params, state = descend(compand(optax.adam(0.1), PSI, adaptive=True, where=where))
    assert asked == ["conv/bias", "conv/kernel", "out/kernel"]
    assert state.psis == {"conv": {"kernel": None, "bias": None}, "out": {"kernel": PSI}}
    assert jax.tree.leaves(state.psis) == []
    alone, _ = descend(optax.adam(0.1))
    chex.assert_trees_all_equal(params["conv"], alone["conv"])
    assert not np.allclose(params["out"]["kernel"], alone["out"]["kernel"])


def test_rates_may_be_injected_into_compand_and_into_inner():
    psi_and_decay = {"psi": PSI, "weight_decay": 0.01}
    static = ("inner", "psi", "adaptive", "mask", "where", "learn")
    outside = optax.inject_hyperparams(compand, static_args=static)(SGD, **psi_and_decay)
    inside = compand(optax.inject_hyperparams(optax.sgd)(0.1, 0.9), **psi_and_decay)
    for tx in (outside, inside):
        chex.assert_trees_all_close(descend(tx)[0], descend(compand(SGD, **psi_and_decay))[0], rtol=1e-6)


def test_an_array_in_psi_fits_the_state_of_stacked_layers():
    tx, stack = compand(SGD, Arctan(jnp.float32(0.9), 0.6)), {"kernel": np.stack([KERNEL, -KERNEL])}
    state = jax.vmap(tx.init)(stack)
    updates, after = tx.update(stack, state, stack)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_close(updates, jax.vmap(tx.update)(stack, state, stack)[0], rtol=1e-6)


def test_a_may_follow_a_schedule():
    inner = optax.sgd(0.1)  # without a state that depends on a
    injected = optax.inject_hyperparams(lambda a: compand(inner, Arctan(a, 0.6)))(lambda count: 0.9 + 0.5 * count)
    update, state = jax.jit(chex.assert_max_traces(injected.update, n=1)), injected.init(PARAMS)
    chex.clear_trace_counter()
    for a in (0.9, 1.4, 1.9):
        updates, state = update(ONES, state, PARAMS)
        constant = compand(inner, Arctan(a, 0.6))
        expected, _ = constant.update(ONES, constant.init(PARAMS), PARAMS)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_learned_pairs_have_the_shapes_of_arrays_in_psi():
    _, state = descend(compand(optax.sgd(0.01), Arctan(jnp.full((1, 3), 0.9), 0.6), learn="fine"))
    conv, out = state.pairs["conv"]["kernel"], state.pairs["out"]["kernel"]
    assert state.pairs == {"conv": {"kernel": conv, "bias": None}, "out": {"kernel": out}}
    for pair in (conv, out):
        assert (pair["a"].shape, pair["b"].shape) == ((1, 3), (1, 1))


def test_weights_may_be_loaded_between_updates():  # nothing is kept of v
    tx, loaded = compand(optax.sgd(0.1), PSI, weight_decay=0.01), jax.tree.map(lambda x: x / 2, PARAMS)
    grads, (_, state) = GRADIENT(loaded), descend(tx)
    after, fresh = (tx.update(grads, s, loaded)[0] for s in (state, tx.init(loaded)))
    chex.assert_trees_all_equal(after, fresh)


SAM = optax.contrib.sam(optax.sgd(0.0), optax.sgd(0.5), sync_period=2)
OPAQUE_SAM = optax.contrib.sam(optax.adam(0.1), optax.sgd(0.05), opaque_mode=True)
SCHEDULE_FREE = optax.contrib.schedule_free_sgd(0.3, b1=0.9)
KEEPING = {"sam": SAM, "schedule_free": SCHEDULE_FREE, "sam in a chain": optax.chain(optax.clip(1.0), SAM)}
KEEPING |= {"madgrad": optax.contrib.madgrad(0.1), "cocob": optax.contrib.cocob()}
KEEPING |= {"mechanize": optax.contrib.mechanize(optax.sgd(0.1))}
LBFGS = optax.lbfgs()
LINE_SEARCH = optax.scale_by_backtracking_linesearch(5)


def test_a_function_that_sees_w_is_called():
    tx = compand(LBFGS, PSI, adaptive=True)
    more = {"value": parabola(PARAMS), "grad": GRADIENT(PARAMS), "value_fn": parabola}
    updates, _ = jax.jit(lambda params: tx.update(more["grad"], tx.init(params), params, **more))(PARAMS)
    assert parabola(optax.apply_updates(PARAMS, updates)) < more["value"]
    tx, seen = compand(OPAQUE_SAM, PSI, adaptive=True), []
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad_fn=lambda params, i: seen.append(params) or params)
    assert np.all(np.abs(seen[0]["conv"]["kernel"] - KERNEL) < 0.06)


def test_a_function_that_inner_does_not_call_is_no_error():
    tx = compand(SGD, PSI)
    without_extra_args = optax.GradientTransformation(tx.init, lambda *args: tx.update(*args))
    updates = []
    for searched in (tx, without_extra_args):
        both = optax.chain(searched, LINE_SEARCH)  # which gives the function to both of its members
        more = {"value": parabola(PARAMS), "grad": GRADIENT(PARAMS), "value_fn": parabola}
        updates.append(both.update(more["grad"], both.init(PARAMS), PARAMS, **more)[0])
    chex.assert_trees_all_equal(*updates)


def test_the_evaluation_weights_of_schedule_free_are_w():
    params, state = descend(compand(SCHEDULE_FREE, PSI), grad=lambda params: PARAMS)
    v = {"kernel": jnp.float32(TRUTH.inverse(KERNEL))}
    inner_state = SCHEDULE_FREE.init(v)
    for _ in range(5):
        steps, inner_state = SCHEDULE_FREE.update({"kernel": KERNEL * PSI.derivative(v["kernel"])}, inner_state, v)
        v = optax.apply_updates(v, steps)
    expected = TRUTH(optax.contrib.schedule_free_eval_params(inner_state, v)["kernel"])
    average = schedule_free_eval_params(state, params)["conv"]["kernel"]
    np.testing.assert_allclose(average, expected, rtol=2e-5)
    assert np.max(np.abs(average - params["conv"]["kernel"])) > 1e-3, "an average that is the last w would say nothing"


def start(params, psi=PSI, **settings):
    return compand(SGD, psi, **settings).init(params)


def update(inner, name, **settings):
    tx = compand(inner, PSI, **settings)
    more = {"value": 0.0, "grad": PARAMS} if name == "value_fn" else {}
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, **more, **{name: lambda params, i=0: parabola(params)})


def kernel(value, dtype=None):
    return {"out": {"kernel": np.full((2, 2), value, dtype)}}


ANY = {"where": lambda path, leaf: True}
WITH_V = r"inner optimizer calls \w+, but .* v instead of w.*adaptive=True"
ERRORS = {
    "no kernel": (lambda: start({"bias": np.ones(3)}), "selects no leaf"),
    "a float": (lambda: start({"w": 0.5}, **ANY), "w is a float, but only arrays of real floats"),
    "no optimizer": (lambda: compand(optax.sgd, PSI), "inner must be an optax optimizer, .* found <function sgd"),
    **{
        f"decay {decay}": (
            lambda decay=decay: compand(SGD, PSI, weight_decay=decay),
            "weight_decay must be a number of",
        )
        for decay in ("1e-4", True, -1.0, np.nan, np.ones(2), PSI)
    },
    "adaptive as text": (lambda: compand(SGD, PSI, adaptive="no"), "adaptive must be True or False, found 'no'"),
    "a mask that is a Ψ": (lambda: compand(SGD, PSI, mask=PSI), "mask must be bools or a function"),
    "float8": (lambda: start({"w": jnp.zeros(3, jnp.float8_e5m2)}, **ANY), "w has dtype float8_e5m2, but only arrays"),
    "a state that was restored into another": (
        lambda: compand(SGD, PSI).update(PARAMS, start(PARAMS)._replace(psis={"is": "Arctan"}), PARAMS),
        "this state has 'Arctan' instead of a Ψ: it was restored into",
    ),
    "a state that was restored into nothing": (
        lambda: compand(SGD, PSI).update(PARAMS, start(PARAMS)._asdict(), PARAMS),
        "must be the CompandState that init returns, found dict. Restore",
    ),
    "compand in compand": (lambda: compand(compand(SGD, PSI), PSI).init(PARAMS), "inner is another compand"),
    "WeightNorm": (lambda: start(PARAMS, wcjax.WeightNorm()), "psi must be Arctan, .* or PowerProp, found WeightNorm"),
    "unknown learn": (lambda: start(PARAMS, learn="rough"), "'none', 'fine', 'channel', 'coarse', found 'rough'"),
    "v": (lambda: start(wcjax.reparameterize(PARAMS, PSI)), "compand takes plain weights, but this tree has Reparam"),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(compand)(SGD, PSI, weight_decay=0.01).init(PARAMS),
        r"Under optax.inject_hyperparams pass static_args=\('inner', 'psi', ",
    ),
    **{
        f"adaptive {name}": (
            lambda inner=inner: compand(inner, PSI, adaptive=True).init(PARAMS),
            "keeps weights and returns to them .*State.*adaptive=False",
        )
        for name, inner in KEEPING.items()
    },
    "no params": (lambda: compand(SGD, PSI).update(PARAMS, start(PARAMS)), "needs the parameters"),
    "a function": (lambda: update(OPAQUE_SAM, "grad_fn"), WITH_V),
    "a function and pairs": (lambda: update(OPAQUE_SAM, "grad_fn", adaptive=True, learn="fine"), WITH_V),
    "a line search and pairs": (lambda: compand(LBFGS, PSI, learn="fine").init(PARAMS), "cannot step learned a and b"),
    "a line search": (lambda: update(optax.chain(SGD, LINE_SEARCH), "value_fn"), WITH_V),
    "lookahead": (
        lambda: compand(optax.lookahead(SGD, 5, 0.5), PSI).init(optax.LookaheadParams.init_synced(PARAMS)),
        "wrap compand in lookahead",
    ),
    "schedule_free with pairs": (
        lambda: schedule_free_eval_params(compand(SCHEDULE_FREE, PSI, learn="fine").init(PARAMS), PARAMS),
        "no evaluation weights with learned a and b: use learn='none'",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors_name_the_thing_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("error")
def test_an_optimizer_that_cancels_the_derivative_warns():
    for name in ("adam", "adamw", "adabelief", "adagrad", "rmsprop", "lion"):
        inner = optax.chain(optax.clip(1.0), getattr(optax, name)(0.1))
        with pytest.warns(UserWarning, match=r"ScaleBy\w+State.*cancels Ψ′.*adaptive=True") as record:
            compand(inner, PSI).init(PARAMS)
        assert record[0].filename == __file__
        compand(inner, PSI, adaptive=True).init(PARAMS)
    biases = {"adam": optax.adam(0.1), "sgd": SGD}
    by_name = lambda params: jax.tree.map(lambda x: "adam" if x.ndim == 1 else "sgd", params)
    no_cure = optax.contrib.schedule_free_adamw(0.1)  # see docs/which_optimizers.md
    for inner in (SGD, SCHEDULE_FREE, no_cure, optax.partition(biases, by_name)):
        compand(inner, PSI).init(PARAMS)


TRACED = [(wcjax.Arsinh(0.9, 0.6), "none"), (wcjax.Arsinh(0.9, 0.6), "fine"), (PowerProp(2.0), "none")]
TRACED += [(Arctan(jnp.float32(0.9), 0.6), "none")]


@pytest.mark.parametrize("psi, learn", TRACED, ids=str)
def test_init_in_a_trace_takes_known_and_unknown_weights(psi, learn):
    init, params = compand(SGD, psi, learn=learn).init, jax.tree.map(jnp.float32, PARAMS)
    expected = init(params)
    known, unknown = jax.jit(lambda: init(params))(), jax.jit(init)(params)
    chex.assert_trees_all_close((known, unknown), (expected, expected), rtol=1e-6)
    with pytest.raises(ValueError, match="holds nan"):
        jax.eval_shape(lambda: init(kernel(np.nan)))


FINITE = [("float16", PSI, 0.99 * PSI.bound), ("float32", wcjax.Arsinh(0.01, 0.01), 0.5)]


@pytest.mark.parametrize("dtype, psi, w", FINITE)
def test_decay_of_a_pair_is_finite_where_psi_is_flat(dtype, psi, w):
    tx, params = compand(optax.adam(1e-3), psi, adaptive=True, learn="fine", weight_decay=1e-4), kernel(w, dtype)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(lambda x: jnp.full_like(x, 0.1), params), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite((params, state.pairs))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_derivative_beyond_float16_moves_no_weight(adaptive):
    params = kernel(30000, "float16")
    inner = optax.adam(0.1, eps=1e-3) if adaptive else SGD
    tx = compand(inner, wcjax.Arctan(1e5, 1.0), adaptive=adaptive)  # Ψ′(v) is 95,000
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize("psi", [wcjax.Arsinh(0.9, 0.6), PowerProp(2.0)])
def test_a_psi_without_a_bound_passes_debug_infs(psi):
    tx = compand(SGD, psi)
    with jax.debug_infs(True):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


INNER = {"sgd": optax.sgd(0.1), "adamw": optax.adamw(0.1, weight_decay=0.0), "schedule_free": SCHEDULE_FREE}
BEYOND = [("sgd", "float32", "none"), ("sgd", "float64", "none"), ("sgd", "NumPy float64", "none")]
BEYOND += [("schedule_free", "float32", "none"), ("sgd", "float32", "fine"), ("adamw", "float32", "coarse")]


@pytest.mark.parametrize("inner, kind, learn", BEYOND)
def test_a_weight_beyond_the_bound_is_taken_just_inside(inner, kind, learn):
    with jax.enable_x64(kind == "float64"):
        beyond = {"kernel": np.array([[5.0, -5.0]], kind.removeprefix("NumPy "))}
        tx = compand(INNER[inner], Arctan(0.6, 0.6), adaptive=inner == "adamw", learn=learn)
        state = jax.jit(tx.init)(beyond)  # under jit init cannot check the values
        grads = jax.tree.map(np.ones_like if learn == "none" else np.zeros_like, beyond)
        w = np.float64(beyond["kernel"] + tx.update(grads, state, beyond)[0]["kernel"])
    share = w / (0.6 * np.pi / 2) * [[1, -1]]
    assert np.all(share < 1) and np.all(share > 1 - (1e-13 if kind == "float64" else 1e-3)), w


HUGE = {"float32": [3e37], "bfloat16": [3e37], "float16": [6e4, 1e3]}  # gradients, which the rate of 100 makes inf


@pytest.mark.parametrize("psi, adaptive", [*((psi, False) for psi in PSIS), (PSIS[0], True)], ids=str)
def test_a_huge_step_stops_at_the_bound_in_every_dtype(psi, adaptive):
    sizes = [jnp.full((2, 6), size, dtype) for dtype, numbers in HUGE.items() for size in numbers]
    params = [{"kernel": jnp.asarray([[0.0, 1e-30, 0.5, -0.5, 0.7, -0.7]] * 2, size.dtype)} for size in sizes]
    tx, side = compand(optax.sgd(100.0), psi.ours(), adaptive=adaptive), np.float32([[1], [-1]])
    step, state = jax.jit(tx.update), tx.init(params)
    for direction in (side, -side):
        grads = [{"kernel": -size * direction.astype(size.dtype)} for size in sizes]
        for _ in range(20):
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        for w in map(np.float64, jax.tree.leaves(params)):
            assert np.all(np.isfinite(w)) and np.all(np.abs(w) < psi.bound)
            if direction is side or psi.name != "arsinh":  # no step times Ψ′ moves Arsinh's v of 1e30 back
                assert np.all(np.sign(w[:, 2:]) == direction)  # a PowerProp that starts at 0 rests
            if psi.name == "arctan":
                assert np.all(w * direction > 0.9 * psi.bound)


@pytest.mark.parametrize("learn", ["none", "channel", "coarse"])
def test_init_takes_what_plain_optax_takes(learn):
    tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
    state = tx.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(jax.eval_shape(lambda: PARAMS)), state)
    adam = optax.tree.map_params(tx, lambda x: 2 * x + 1, state).inner[0]
    chex.assert_trees_all_equal(jax.tree.leaves(adam.mu)[:3], jax.tree.leaves(ONES))
    for bias in ("wc", "plain"):  # a group without a kernel, and a group without any leaf
        labels = {"conv": {"kernel": "plain", "bias": bias}, "out": {"kernel": "plain"}}
        both = optax.partition({"wc": tx, "plain": optax.sgd(0.1)}, labels)
        updates, _ = both.update(PARAMS, both.init(PARAMS), PARAMS)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * KERNEL, rtol=1e-6)
    assert tx.update({}, tx.init({}), {})[0] == {}


@pytest.mark.parametrize("learn, adaptive", [("channel", True), ("coarse", False)])
def test_strict_dtype_promotion_with_bfloat16_is_not_an_error(learn, adaptive):
    tx, half = compand(SGD, PSI, adaptive=adaptive, learn=learn), jax.tree.map(jnp.bfloat16, PARAMS)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(half, tx.init(half), half)
    chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(updates), jnp.bfloat16(0))
    expected, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(jax.tree.map(np.float32, updates), expected, atol=2e-3)


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_bfloat16_weights_train_as_well_as_a_bfloat16_v():
    (images, labels), (test_images, test_labels) = digits_runs.digits()
    images, test = images.reshape(len(images), 64), (test_images.reshape(-1, 64), test_labels)
    dense = functools.partial(wcjax.linen.Dense, param_dtype=jnp.bfloat16)
    accuracies = []
    for reparam, tx in ((PSI, SGD), (None, compand(SGD, PSI))):
        net = nn.Sequential((dense(64, reparam=reparam), nn.relu, dense(10, reparam=reparam)))
        params = net.init(jax.random.key(0), images[:1])["params"]
        params = digits_runs.run(net, params, tx, (images, labels), 300)
        chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(params), jnp.bfloat16(0))
        accuracies.append(digits_runs.accuracy(net, params, test))
    assert accuracies[1] > 0.9 and abs(accuracies[1] - accuracies[0]) < 0.03


MADE_FOR = r"state was made with \w+\(a=.*, but this compand has .*learn="
OTHER_SHAPES = "state was made with another learn, .* its a and b have the shapes"
PLAIN = (PSI, "none")
OTHERS = [(PLAIN, other, MADE_FOR) for other in ((Arctan(0.5, 0.6), "none"), (wcjax.Erf(0.9, 0.6), "none"))]
OTHERS += [(PLAIN, (PSI, "fine"), MADE_FOR)]
OTHERS += [((PSI, x), (PSI, y), OTHER_SHAPES) for x, y in itertools.combinations(("fine", "channel", "coarse"), 2)]


@pytest.mark.parametrize("one, other, message", OTHERS, ids=str)
def test_the_state_of_another_psi_or_learn_is_refused(one, other, message):
    for mine, theirs in ((one, other), (other, one)):
        tx, made_by = (compand(SGD, psi, learn=learn) for psi, learn in (mine, theirs))
        with pytest.raises(ValueError, match=message):
            tx.update(PARAMS, made_by.init(PARAMS), PARAMS)


def test_stacked_layers_may_have_a_state_that_vmap_made():
    tx, layers = compand(SGD, PSI, learn="fine"), {"kernel": jnp.stack([KERNEL, KERNEL / 2])}
    grads = {"kernel": jnp.ones_like(layers["kernel"])}
    stacked, _ = tx.update(grads, jax.vmap(tx.init)(layers), layers)
    expected, _ = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(layers), layers)
    chex.assert_trees_all_close(stacked, expected, rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_numpy_float64_weights_share_a_float32_pair():
    params = jax.tree.map(np.float64, PARAMS)
    pairs = compand(SGD, PSI, learn="coarse").init(params).pairs
    chex.assert_trees_all_equal(pairs, {"a": np.float32(0.9), "b": np.float32(0.6)})
