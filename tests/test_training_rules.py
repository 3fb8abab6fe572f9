"""Training with wcjax in float64 is, step by step and leaf by leaf, the training by hand in numpy_reference.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import wcjax
import wcjax.linen
from tests import numpy_reference as reference

STEPS, FEATURES, CLASSES = 60, 3, 4
DECAY = 0.05  # strong, so that a wrong decay shows
# Largest gap measured over all runs, steps and leaves: 5e-15 of 1 + |expected| (jax 0.10.2, CPU).
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}

PAIRS = {
    "arctan": (wcjax.Arctan(0.7, 0.5), reference.Arctan(0.7, 0.5)),
    "arsinh": (wcjax.Arsinh(0.6, 0.9), reference.Arsinh(0.6, 0.9)),
    "erf": (wcjax.Erf(0.8, 0.6), reference.Erf(0.8, 0.6)),
    "powerprop": (wcjax.PowerProp(1.5), reference.PowerProp(1.5)),
    "weightnorm": (wcjax.WeightNorm(), reference.WeightNorm()),
    "none": (None, None),
}
ELEMENTWISE = ("arctan", "arsinh", "erf", "powerprop")
LEARNED = [(name, learn) for name in ("arctan", "arsinh", "erf") for learn in ("fine", "coarse")]


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
        reparam = wcjax.linen.LearnedPair(self.reparam, name="pair") if coarse else self.reparam
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
        if name == "weightnorm":
            params[f"{layer}/g"] = rng.uniform(0.5, 1.5, shape[-1])
    psi = PAIRS[name][0]
    for owner in {"none": (), "fine": ("conv", "dense"), "coarse": ("pair",)}[learn]:
        params |= {f"{owner}/a": np.float64(psi.a), f"{owner}/b": np.float64(psi.b)}
    return params


def nested(flat):
    return traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, flat), sep="/")


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

    params, history = nested(params), []
    state = jax.jit(optimizer.init)(params)
    for images, labels in batches():
        loss, grads = loss_and_gradients(name, learn)(params, images, labels)
        params, state = step(grads, state, params)
        history.append((loss, traverse_util.flatten_dict(params, sep="/")))
    return history


def assert_same_run(found, expected):
    assert len(found) == len(expected) == STEPS
    for count, ((loss, params), (expected_loss, expected_params)) in enumerate(zip(found, expected, strict=True), 1):
        np.testing.assert_allclose(loss, expected_loss, **TOLERANCE, err_msg=f"loss at step {count}")
        assert params.keys() == expected_params.keys()
        for leaf, value in params.items():
            assert value.dtype == jnp.float64, leaf
            np.testing.assert_allclose(value, expected_params[leaf], **TOLERANCE, err_msg=f"{leaf} after {count} steps")


def sgd(psi, rate):
    return optax.chain(wcjax.optim.add_decayed_weights(DECAY, psi), optax.sgd(rate, momentum=0.9))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_sgd_with_decay_on_w_is_the_run_by_hand(name):
    (psi, by_hand), params = PAIRS[name], initial(name, "none")
    expected = reference.sgd(params, by_hand, batches(), 0.1, decay=DECAY)
    assert_same_run(train(params, name, "none", sgd(psi, 0.1)), expected)


@pytest.mark.parametrize("learn", ["fine", "coarse"])
def test_sgd_with_learned_a_and_b_and_decay_on_v_is_the_run_by_hand(learn):
    (psi, by_hand), params = PAIRS["arctan"], initial("arctan", learn)
    expected = reference.sgd(params, by_hand, batches(), 0.005, decay=DECAY)
    for leaf in ("dense/a", "dense/b") if learn == "fine" else ("pair/a", "pair/b"):
        assert abs(expected[-1][1][leaf] - params[leaf]) > 0.1, "a pair that rests would say nothing about learning it"
    assert_same_run(train(params, "arctan", learn, sgd(psi, 0.005)), expected)


@pytest.mark.parametrize("name", ["weightnorm", "none"])
def test_sgd_on_weight_norm_and_on_the_plain_network_is_the_run_by_hand(name):
    params, optimizer = initial(name, "none"), optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.1, 0.9))
    expected = reference.sgd(params, PAIRS[name][1], batches(), 0.1, decay=DECAY)
    assert_same_run(train(params, name, "none", optimizer), expected)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_scaled_adam_with_l2_on_w_before_or_inside_is_the_run_by_hand(name):
    (psi, by_hand), params, adam = PAIRS[name], initial(name, "none"), optax.adam(0.02)
    before = optax.chain(wcjax.optim.add_decayed_weights(DECAY, psi), wcjax.optim.scale_by_derivative(adam, psi))
    inside = wcjax.optim.scale_by_derivative(optax.chain(optax.add_decayed_weights(DECAY), adam), psi)
    expected = reference.scaled_adam(params, by_hand, batches(), 0.02, decay=DECAY)
    assert_same_run(train(params, name, "none", before), expected)
    assert_same_run(train(params, name, "none", inside), expected)


@pytest.mark.parametrize("learn", ["fine", "coarse"])
@pytest.mark.parametrize("sign", [1, -1], ids=["a>0", "a<0"])  # a learned a can cross zero
def test_scaled_adam_gives_learned_a_and_b_plain_adam_and_follows_them(learn, sign):
    (psi, by_hand), params = PAIRS["arctan"], initial("arctan", learn)
    params = {leaf: sign * x if leaf.endswith("/a") else x for leaf, x in params.items()}
    expected = reference.scaled_adam(params, by_hand, batches(), 0.02)
    assert_same_run(train(params, "arctan", learn, wcjax.optim.scale_by_derivative(optax.adam(0.02), psi)), expected)


@pytest.mark.parametrize(("name", "learn"), [(name, "none") for name in PAIRS] + LEARNED)
def test_gradients_by_hand_and_of_wcjax_are_the_finite_differences_of_the_numpy_loss(name, learn):
    params, (images, labels), by_hand = initial(name, learn), batches()[0], PAIRS[name][1]
    _, hand, _ = reference.gradients(params, by_hand, images, labels)
    _, grads = loss_and_gradients(name, learn)(nested(params), images, labels)
    grads = traverse_util.flatten_dict(grads, sep="/")
    assert grads.keys() == hand.keys() == params.keys()
    rng, h = np.random.default_rng(2), 1e-5
    for leaf, value in params.items():
        for flat_index in rng.choice(value.size, min(3, value.size), replace=False):
            index, step = np.unravel_index(flat_index, value.shape), np.zeros(value.shape)
            step[index] = h
            above, _, _ = reference.gradients(params | {leaf: value + step}, by_hand, images, labels)
            below, _, _ = reference.gradients(params | {leaf: value - step}, by_hand, images, labels)
            slope = (above - below) / (2 * h)
            np.testing.assert_allclose(hand[leaf][index], slope, rtol=1e-6, atol=1e-9, err_msg=f"by hand: {leaf}")
            np.testing.assert_allclose(grads[leaf][index], slope, rtol=1e-6, atol=1e-9, err_msg=f"wcjax: {leaf}")


@pytest.mark.parametrize(("name", "learn"), [(name, "none") for name in PAIRS] + LEARNED)
def test_the_layers_make_the_leaves_of_the_numpy_network(name, learn):
    made = jax.eval_shape(Net(PAIRS[name][0], learn).init, jax.random.key(0), batches()[0][0])["params"]
    shapes = {leaf: x.shape for leaf, x in traverse_util.flatten_dict(made, sep="/").items()}
    assert shapes == {leaf: np.shape(x) for leaf, x in initial(name, learn).items()}
