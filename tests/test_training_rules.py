"""Training with wcjax in float64 is, step by step and leaf by leaf, the training by hand in numpy_reference.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wcjax
import wcjax.linen
from tests import numpy_reference as reference

STEPS, FEATURES, CLASSES = 60, 3, 4
DECAY = 0.05  # strong, so that a wrong decay shows
# Largest gap measured over all runs, steps and leaves: 7e-15 of 1 + |expected| (jax 0.10.2, CPU).
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}

PAIRS = {
    "arctan": (wcjax.Arctan(0.7, 0.5), reference.Arctan(0.7, 0.5)),
    "arsinh": (wcjax.Arsinh(0.6, 0.9), reference.Arsinh(0.6, 0.9)),
    "erf": (wcjax.Erf(0.8, 0.6), reference.Erf(0.8, 0.6)),
    "powerprop": (wcjax.PowerProp(1.5), reference.PowerProp(1.5)),
    "weightnorm": (wcjax.WeightNorm(), reference.WeightNorm()),
    "none": (None, None),
}
ELEMENTWISE = [(name, "none") for name in ("arctan", "arsinh", "erf", "powerprop")]
LEARNED = [(name, learn) for name in ("arctan", "arsinh", "erf") for learn in ("fine", "channel", "coarse")]
NETWORKS = [(name, "none") for name in PAIRS] + LEARNED
MODES = ("none", "fine", "channel", "coarse")
OPTIMIZERS = ("sgd", "adam")
each_network = pytest.mark.parametrize(("name", "learn"), NETWORKS)


def runs(networks):
    """Runs of (name, learn) with decay, and of the arctangent without, as arguments of the tests."""
    cases = [(*network, optimizer, DECAY) for network in networks for optimizer in OPTIMIZERS]
    cases += [("arctan", learn, optimizer, 0.0) for learn in MODES for optimizer in OPTIMIZERS]
    return pytest.mark.parametrize(("name", "learn", "optimizer", "decay"), cases)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Net(nn.Module):
    """The network of numpy_reference.py."""

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
    psi = PAIRS[name][0]
    for layer, shape in shapes.items():
        params[f"{layer}/{'kernel' if name == 'none' else 'v'}"] = rng.normal(0, 0.3, shape)
        params[f"{layer}/bias"] = rng.normal(0, 0.2, shape[-1])
        channels = (1,) * (len(shape) - 1) + shape[-1:]
        if name == "weightnorm":
            params[f"{layer}/g"] = rng.uniform(0.5, 1.5, channels)
        if learn in ("fine", "channel"):
            of_pair = channels if learn == "channel" else (1,) * len(shape)
            params |= {f"{layer}/a": np.full(of_pair, psi.a), f"{layer}/b": np.full(of_pair, psi.b)}
    return params | ({"pair/a": np.float64(psi.a), "pair/b": np.float64(psi.b)} if learn == "coarse" else {})


def name_of(path):
    """The name in numpy_reference.py: 'conv/v' and 'conv/a' for conv/kernel/v and conv/kernel/psi/a."""
    return jax.tree_util.keystr(path, simple=True, separator="/").replace("kernel/", "").replace("psi/", "")


def flat(tree):
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def shapes(name, learn):
    """The parameters that the network makes, without their values."""
    return jax.eval_shape(Net(PAIRS[name][0], learn).init, jax.random.key(0), batches()[0][0])["params"]


def nested(params, name, learn):
    """Flat parameters in the tree of the network."""
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(params[name_of(path)]), shapes(name, learn))


@functools.cache  # compiled once for all tests of a network
def loss_and_gradients(name, learn):
    model = Net(PAIRS[name][0], learn)

    def loss(params, images, labels):
        logits, _ = model.apply({"params": params}, images, mutable=["batch_stats"])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.jit(jax.value_and_grad(loss))


def train(params, name, learn, optimizer):
    """The history that numpy_reference's training functions return, from wcjax."""

    @jax.jit
    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, history = nested(params, name, learn), []
    state = jax.jit(optimizer.init)(params)
    for images, labels in batches():
        loss, grads = loss_and_gradients(name, learn)(params, images, labels)
        params, state = step(grads, state, params)
        history.append((loss, flat(params)))
    return history


def inner(optimizer, learn):
    """optax's optimizer, whose rate is low enough for learned a and b to stay positive."""
    if optimizer == "adam":
        return optax.adam(0.02)
    return optax.sgd(0.1 if learn == "none" else 0.005, momentum=0.9)


@functools.cache
def by_hand(name, learn, optimizer, decay):
    """The history in NumPy of the run of `inner`."""
    params, psi = initial(name, learn), PAIRS[name][1]
    if optimizer == "adam":
        return reference.scaled_adam(params, psi, batches(), 0.02, decay=decay)
    return reference.sgd(params, psi, batches(), 0.1 if learn == "none" else 0.005, decay=decay)


def assert_same_run(found, expected):
    assert len(found) == len(expected) == STEPS
    for count, ((loss, params), (expected_loss, expected_params)) in enumerate(zip(found, expected, strict=True), 1):
        np.testing.assert_allclose(loss, expected_loss, **TOLERANCE, err_msg=f"loss at step {count}")
        assert params.keys() == expected_params.keys()
        for leaf, value in params.items():
            assert (value.dtype, value.shape) == (jnp.float64, expected_params[leaf].shape), leaf
            np.testing.assert_allclose(value, expected_params[leaf], **TOLERANCE, err_msg=f"{leaf} after {count} steps")


@runs(NETWORKS)
def test_the_layers_take_the_run_by_hand(name, learn, optimizer, decay):
    tx = inner(optimizer, learn)
    tx = wcjax.optim.scale_by_derivative(tx) if optimizer == "adam" else tx
    tx = optax.chain(wcjax.optim.add_decayed_weights(decay), tx) if decay else tx
    assert_same_run(train(initial(name, learn), name, learn, tx), by_hand(name, learn, optimizer, decay))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "learn"), LEARNED)
def test_learned_pairs_move_and_differ_over_channels(name, learn, optimizer):
    start, history = initial(name, learn), by_hand(name, learn, optimizer, DECAY)
    for leaf in (leaf for leaf in start if leaf.split("/")[1] in ("a", "b")):
        course = np.array([params[leaf] for _, params in history])
        assert np.max(np.abs(course - start[leaf])) > 0.02, "a pair that rests says nothing about learning it"
        assert learn != "channel" or np.max(np.ptp(course, axis=-1)) > 0.02, "equal pairs say nothing about channels"


@pytest.mark.parametrize(("name", "learn"), [(name, "none") for name in PAIRS])
def test_l2_inside_the_scaled_adam_is_decay_on_w(name, learn):
    tx = wcjax.optim.scale_by_derivative(optax.chain(optax.add_decayed_weights(DECAY), inner("adam", learn)))
    assert_same_run(train(initial(name, learn), name, learn, tx), by_hand(name, learn, "adam", DECAY))


@pytest.mark.parametrize("learn", ["fine", "channel", "coarse"])
def test_scaled_adam_follows_a_learned_a_below_zero(learn):
    (_, psi), params = PAIRS["arctan"], initial("arctan", learn)
    params = {leaf: -x if leaf.endswith("/a") else x for leaf, x in params.items()}
    expected = reference.scaled_adam(params, psi, batches(), 0.02)
    tx = wcjax.optim.scale_by_derivative(inner("adam", learn))
    assert_same_run(train(params, "arctan", learn, tx), expected)


@each_network
def test_gradients_are_the_finite_differences_of_the_numpy_loss(name, learn):
    params, (images, labels), psi = initial(name, learn), batches()[0], PAIRS[name][1]
    _, hand, _ = reference.gradients(params, psi, images, labels)
    _, grads = loss_and_gradients(name, learn)(nested(params, name, learn), images, labels)
    grads = flat(grads)
    assert grads.keys() == hand.keys() == params.keys()
    rng, h = np.random.default_rng(2), 1e-5
    for leaf, value in params.items():
        for flat_index in rng.choice(value.size, min(3, value.size), replace=False):
            index, step = np.unravel_index(flat_index, value.shape), np.zeros(value.shape)
            step[index] = h
            above, _, _ = reference.gradients(params | {leaf: value + step}, psi, images, labels)
            below, _, _ = reference.gradients(params | {leaf: value - step}, psi, images, labels)
            slope = (above - below) / (2 * h)
            np.testing.assert_allclose(hand[leaf][index], slope, rtol=1e-6, atol=1e-9, err_msg=f"by hand: {leaf}")
            np.testing.assert_allclose(grads[leaf][index], slope, rtol=1e-6, atol=1e-9, err_msg=f"wcjax: {leaf}")


@each_network
def test_the_layers_make_the_leaves_of_the_numpy_network(name, learn):
    made = {leaf: x.shape for leaf, x in flat(shapes(name, learn)).items()}
    assert made == {leaf: np.shape(x) for leaf, x in initial(name, learn).items()}
