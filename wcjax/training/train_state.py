"""What training carries from step to step: the state of the network and the optimizer, and sums over the epoch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.training import sharding


class TrainState(NamedTuple):
    """All that a run needs to continue, as JAX arrays and trees of them, so that it can be donated and saved.

    Attributes:
      step: steps done, int32, shape ().
      key: random key data of the run, uint32, shape (2,). It does not change: with `step` it decides the order of the
        images, their augmentation and dropout.
      params: the parameters of the network, nested dicts of float32 arrays. A companded weight is a
        `Reparameterized`, which holds v.
      batch_stats: the running mean and variance of each batch norm, nested dicts of float32 arrays.
      opt_state: the state of the optimizer of `params`.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def order_key(key: jax.Array) -> jax.Array:
    """The random key of the orders of the images, one order for each epoch. key: `TrainState.key`."""
    return jax.random.split(jax.random.wrap_key_data(key))[0]


def step_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """The random key of a step, for augmentation and dropout. key: `TrainState.key`."""
    return jax.random.fold_in(jax.random.split(jax.random.wrap_key_data(key))[1], step)


class Totals(NamedTuple):
    """Sums over the images of an epoch or of a split, kept on the device.

    Attributes:
      loss: the sum of the losses of the images, float32, shape ().
      correct: the number of images that were classified correctly, int32, shape ().
      seen: the number of images, int32, shape ().
      first_bad_step: the number of steps done before the first step whose loss was not finite, or -1; int32, shape ().
    """

    loss: jax.Array
    correct: jax.Array
    seen: jax.Array
    first_bad_step: jax.Array

    @classmethod
    def zero(cls) -> "Totals":
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1))

    def means(self) -> dict:
        """{'loss', 'accuracy'} as Python numbers. Blocks until the device has finished."""
        loss, correct, seen, _ = (np.asarray(x) for x in self)
        return {"loss": float(loss) / int(seen), "accuracy": int(correct) / int(seen)}


def zero_totals(mesh: jax.sharding.Mesh) -> Totals:
    return sharding.replicate(mesh, Totals.zero())
