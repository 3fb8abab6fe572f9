"""Runs of a small network on scikit-learn's digits, in float32: with layers, and with compand.

They drift apart as far as runs with layers do that start from weights moved to the next float above or below, at
random: no implementation can drift less. The network has tanh, with which the drift grows smoothly. With ReLU it jumps
to 1e-2 at an unpredictable step, when a unit is on in one run and off in the other.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import wcjax
import wcjax.linen

PSI = wcjax.Arctan(0.5, 0.5)
TRAIN = 1437  # of 1797 images


class Net(nn.Module):
    """Two convolutions and a dense layer."""

    reparam: object = None

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(wcjax.linen.Conv(8, (3, 3), reparam=self.reparam)(x))
        x = jnp.tanh(wcjax.linen.Conv(16, (3, 3), strides=2, reparam=self.reparam)(x))
        return wcjax.linen.Dense(10, reparam=self.reparam)(x.reshape(len(x), -1))


def digits():
    """((images, labels) to train on, (images, labels) to test on), images (n, 8, 8, 1) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(images))
    return tuple((images[part], labels[part]) for part in np.split(order, [TRAIN]))


@functools.cache  # compiled once for all runs of a network
def train_step(net, optimizer):
    """(params, state, images, labels) -> (params, state), jitted."""

    def loss(params, images, labels):
        logits = net.apply({"params": params}, images).astype(jnp.float32)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(net, params, optimizer, data, num_steps):
    """The params after so many steps, on batches that depend on the step alone."""
    step, state = train_step(net, optimizer), optimizer.init(params)
    (images, labels), rng = data, np.random.default_rng(1)
    for _ in range(num_steps):
        batch = rng.integers(len(images), size=64)
        params, state = step(params, state, images[batch], labels[batch])
    return params


def accuracy(net, params, data):
    """Share of right answers."""
    images, labels = data
    return float(jnp.mean(jnp.argmax(net.apply({"params": params}, images), -1) == labels))


def gap(left, right):
    """max |Δw| over two trees of params."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), left, right)))


def one_rounding_off(params):
    """params with every kernel moved to the next float above or below, at random."""
    rng = np.random.default_rng(0)
    moved = lambda x: jnp.nextafter(x, jnp.asarray(rng.choice([-jnp.inf, jnp.inf], x.shape), x.dtype))
    return jax.tree.map(lambda x: moved(x) if x.ndim > 1 else x, params)


def runs(num_steps):
    """The plain params after so many steps of layers, of compand, and of layers that start one rounding off."""
    train, _ = digits()
    layers, sgd = Net(PSI), optax.sgd(0.1, momentum=0.9)
    params = wcjax.fold(layers.init(jax.random.key(0), train[0][:1])["params"])

    def with_layers(params):
        return wcjax.fold(run(layers, wcjax.reparameterize(params, PSI), sgd, train, num_steps))

    compand = run(Net(), params, wcjax.compand(sgd, PSI), train, num_steps)
    return with_layers(params), compand, with_layers(one_rounding_off(params))
