"""Runs of a small network on scikit-learn's digits, in float32: with layers, and with compand.

They drift apart as far as runs with layers do that start from weights moved to the next float above or below, at
random: no implementation can drift less. With tanh the drift grows smoothly. With ReLU it jumps to 1e-2 at an
unpredictable step, when a unit is on in one run and off in the other.
"""

import functools
from collections.abc import Callable

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
    activation: Callable = jnp.tanh

    @nn.compact
    def __call__(self, x):
        x = self.activation(wcjax.linen.Conv(8, (3, 3), reparam=self.reparam)(x))
        x = self.activation(wcjax.linen.Conv(16, (3, 3), strides=2, reparam=self.reparam)(x))
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


def run(net, params, optimizer, data, marks, batch_size=64):
    """{step: params} at each of the marks, on batches that depend on the step alone."""
    step = train_step(net, optimizer)
    (images, labels), rng = data, np.random.default_rng(1)
    state, params_at = optimizer.init(params), {}
    for count in range(1, max(marks) + 1):
        batch = rng.integers(len(images), size=batch_size)
        params, state = step(params, state, images[batch], labels[batch])
        if count in marks:
            params_at[count] = params
    return params_at


def accuracy(net, params, data):
    """Share of right answers."""
    images, labels = data
    return float(jnp.mean(jnp.argmax(net.apply({"params": params}, images), -1) == labels))


def gap(left, right):
    """max |Δw| over two trees of params."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), left, right)))


def one_rounding_off(params, seed):
    """params with every kernel moved to the next float above or below, at random."""
    rng = np.random.default_rng(seed)
    moved = lambda x: jnp.nextafter(x, jnp.asarray(rng.choice([-jnp.inf, jnp.inf], x.shape), x.dtype))
    return jax.tree.map(lambda x: moved(x) if x.ndim > 1 else x, params)


def runs(activation, marks, others):
    """{step: plain params} of layers, of compand, and of `others` runs of layers that start one rounding off."""
    train, _ = digits()
    plain, layers = Net(activation=activation), Net(PSI, activation)
    params = wcjax.fold(layers.init(jax.random.key(0), train[0][:1])["params"])
    sgd = optax.sgd(0.1, momentum=0.9)

    def with_layers(params):
        params_at = run(layers, wcjax.reparameterize(params, PSI), sgd, train, marks)
        return {mark: wcjax.fold(x) for mark, x in params_at.items()}

    compand = run(plain, params, wcjax.compand(sgd, PSI), train, marks)
    return with_layers(params), compand, [with_layers(one_rounding_off(params, seed)) for seed in range(others)]
