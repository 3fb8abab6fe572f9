"""compand and parameters that hold v take the runs that truth.py takes by hand, leaf by leaf in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wcjax
import wcjax.linen
from tests import digits_runs, truth
from wcjax.trees import path_str

STEPS, FEATURES, CLASSES = 40, 3, 4
DECAY = 0.05  # strong, so that a wrong decay shows
# Largest gap measured over all runs, steps and leaves: 7e-15 of 1 + |expected| (jax 0.10.2, CPU).
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}

PSIS = {psi.name: psi for psi in truth.PSIS} | {"weightnorm": truth.WeightNorm(), "none": None}
MODES = ("none", "fine", "channel", "coarse")
RUNS = [("arctan", learn, optimizer, DECAY) for learn in MODES for optimizer in ("sgd", "adam")]
RUNS += [("powerprop", "none", "adam", DECAY), ("arsinh", "coarse", "adam", DECAY), ("erf", "fine", "sgd", DECAY)]
RUNS += [("arctan", "none", "adam", 0.0)]
OF_LAYERS = [(name, "none", optimizer, DECAY) for name in ("weightnorm", "none") for optimizer in ("sgd", "adam")]
OF_LAYERS += [("crossed", learn, "adam", 0.0) for learn in ("fine", "coarse")]
ARGUMENTS = ("name", "learn", "optimizer", "decay")
OURS = {psi.name: psi.ours() for psi in truth.PSIS} | {"weightnorm": wcjax.WeightNorm(), "none": None}
PSIS["crossed"], OURS["crossed"] = truth.Psi("arctan", -0.7, 0.5), OURS["arctan"]  # a learned a has fallen below zero


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Net(nn.Module):
    """The network of truth.py."""

    reparam: object
    learn: str

    @nn.compact
    def __call__(self, x):
        coarse = self.learn == "coarse"
        reparam = wcjax.linen.LearnedPair(self.reparam, jnp.float64, name="pair") if coarse else self.reparam
        settings = {"reparam": reparam, "learn": "none" if coarse else self.learn, "param_dtype": jnp.float64}
        x = jnp.tanh(wcjax.linen.Conv(FEATURES, (3, 3), **settings, name="conv")(x))
        x = nn.BatchNorm(use_running_average=False, param_dtype=jnp.float64, name="norm")(x)
        return wcjax.linen.Dense(CLASSES, **settings, name="dense")(x.reshape(len(x), -1))


def batches():
    rng = np.random.default_rng(0)
    three = [(rng.normal(size=(16, 6, 6, 2)), rng.integers(CLASSES, size=16)) for _ in range(3)]
    return [three[step % 3] for step in range(STEPS)]


def initial(name, learn):
    """Flat parameters, biases and norms included away from their usual 0 and 1."""
    rng = np.random.default_rng(1)
    shapes = {"conv": (3, 3, 2, FEATURES), "dense": (36 * FEATURES, CLASSES)}
    params = {"norm/scale": rng.normal(1, 0.2, FEATURES), "norm/bias": rng.normal(0, 0.2, FEATURES)}
    for layer, shape in shapes.items():
        params[f"{layer}/{'kernel' if name == 'none' else 'v'}"] = rng.normal(0, 0.3, shape)
        params[f"{layer}/bias"] = rng.normal(0, 0.2, shape[-1])
        channels = (1,) * (len(shape) - 1) + shape[-1:]
        if name == "weightnorm":
            params[f"{layer}/g"] = rng.uniform(0.5, 1.5, channels)
        if learn in ("fine", "channel"):
            pair_shape = channels if learn == "channel" else (1,) * len(shape)
            params |= {f"{layer}/{k}": np.full(pair_shape, x) for k, x in zip("ab", PSIS[name].numbers, strict=True)}
    if learn == "coarse":
        params |= {f"pair/{k}": np.float64(x) for k, x in zip("ab", PSIS[name].numbers, strict=True)}
    return params


def name_of(path):
    """The name in truth.py: 'conv/v' and 'conv/a' for conv/kernel/v and conv/kernel/psi/a."""
    return path_str(path).replace("kernel/", "").replace("psi/", "")


def flat(tree):
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def nested(params, model):
    """Flat parameters in the tree of the network, which has leaves of the same names and shapes."""
    tree = jax.eval_shape(model.init, jax.random.key(0), batches()[0][0])["params"]
    assert {leaf: x.shape for leaf, x in flat(tree).items()} == {leaf: np.shape(x) for leaf, x in params.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(params[name_of(path)]), tree)


@functools.cache  # compiled once for all tests of a network
def loss_and_gradients(model):
    def loss(params, images, labels):
        logits, _ = model.apply({"params": params}, images, mutable=["batch_stats"])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.jit(jax.value_and_grad(loss))


def train(params, model, optimizer):
    """(loss before the step, params, optimizer's state) after each step of wcjax."""

    @jax.jit
    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for images, labels in batches():
        loss, grads = loss_and_gradients(model)(params, images, labels)
        params, state = step(grads, state, params)
        yield loss, params, state


def inner(optimizer, learn):
    """optax's optimizer, whose rate is low enough for learned a and b to stay positive."""
    if optimizer == "adam":
        return optax.adam(0.02)
    return optax.sgd(0.1 if learn == "none" else 0.005, momentum=0.9)


@functools.cache
def by_hand(name, learn, optimizer, decay):
    """The history in NumPy of the run of `inner`."""
    start, psi = initial(name, learn), PSIS[name]
    if optimizer == "adam":
        history = truth.scaled_adam(start, psi, batches(), 0.02, decay=decay)
    else:
        history = truth.sgd(start, psi, batches(), 0.1 if learn == "none" else 0.005, decay=decay)
    for leaf in (leaf for leaf in start if leaf.split("/")[1] in ("a", "b")):
        values = np.array([params[leaf] for _, params in history])
        assert np.max(np.abs(values - start[leaf])) > 0.01, "a pair that rests says nothing about learning it"
        assert learn != "channel" or np.max(np.ptp(values, axis=-1)) > 0.01, "equal pairs say nothing about channels"
    return history


def assert_same(params, expected, count, **tolerance):
    assert params.keys() == expected.keys()
    for leaf, x in params.items():
        assert (x.dtype, x.shape) == (jnp.float64, expected[leaf].shape), leaf
        np.testing.assert_allclose(x, expected[leaf], **tolerance, err_msg=f"{leaf} after {count} steps")


@pytest.mark.parametrize(ARGUMENTS, RUNS + OF_LAYERS)
def test_layers_reproduce_the_run_computed_by_hand(name, learn, optimizer, decay):
    tx = inner(optimizer, learn)
    tx = wcjax.optim.scale_by_derivative(tx) if optimizer == "adam" else tx
    tx = optax.chain(wcjax.optim.add_decayed_weights(decay), tx) if decay else tx
    model, expected = Net(OURS[name], learn), by_hand(name, learn, optimizer, decay)
    run = train(nested(initial(name, learn), model), model, tx)
    for count, ((loss, params, _), (expected_loss, expected_params)) in enumerate(zip(run, expected, strict=True), 1):
        np.testing.assert_allclose(loss, expected_loss, **TOLERANCE, err_msg=f"loss at step {count}")
        assert_same(flat(params), expected_params, count, **TOLERANCE)


@pytest.mark.parametrize(ARGUMENTS, RUNS)
def test_compand_reproduces_the_run_computed_by_hand(name, learn, optimizer, decay):
    psi, model, expected = PSIS[name], Net(None, "none"), by_hand(name, learn, optimizer, decay)
    adaptive = optimizer == "adam"
    tx = wcjax.compand(inner(optimizer, learn), OURS[name], adaptive=adaptive, weight_decay=decay, learn=learn)
    run = train(nested(truth.folded(initial(name, learn), psi), model), model, tx)
    for count, ((_, params, state), (_, v)) in enumerate(zip(run, expected, strict=True), 1):
        params = flat(params) | flat({"pair": state.pairs} if learn == "coarse" else state.pairs)
        w = truth.folded(v, psi) | {leaf: x for leaf, x in v.items() if leaf[-2:] in ("/a", "/b")}
        assert_same(params, w, count, rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_in_float32_compand_drifts_little_more_than_a_rounding():
    with jax.enable_x64(False):
        layers, companded, one_rounding_off = digits_runs.runs(100)
    assert 0 < digits_runs.gap(layers, companded) < 10 * digits_runs.gap(layers, one_rounding_off)
