"""What training carries from step to step: the state of the network and the optimizer, and sums over the epoch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.training import sharding


class TrainState(NamedTuple):
    """All that a run needs to continue, as JAX arrays and trees of them, so that it can be donated and saved."""

    step: jax.Array  # steps done, int32, shape ()
    key: jax.Array  # random key data of the run, uint32, shape (2,): with step it decides order and augmentation
    params: Any
    batch_stats: Any
    opt_state: Any


def order_key(key):
    """The random key of the orders of the images, one order for each epoch. key: `TrainState.key`."""
    return jax.random.split(jax.random.wrap_key_data(key))[0]


def step_key(key, step):
    """The random key of a step, for augmentation and dropout. key: `TrainState.key`."""
    return jax.random.fold_in(jax.random.split(jax.random.wrap_key_data(key))[1], step)


class Totals(NamedTuple):
    """Sums over the images of an epoch or of a split, kept on the device."""

    loss: jax.Array  # sum over images, float32, shape ()
    correct: jax.Array  # int32, shape ()
    seen: jax.Array  # int32, shape ()
    first_bad_step: jax.Array  # the first step whose loss was not finite, or -1; int32, shape ()

    @classmethod
    def zero(cls):
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1))

    def means(self) -> dict:
        """{'loss', 'accuracy'} as Python numbers. Blocks until the device has finished."""
        loss, correct, seen, _ = (np.asarray(x) for x in self)
        return {"loss": float(loss) / int(seen), "accuracy": int(correct) / int(seen)}


def zero_totals(mesh: jax.sharding.Mesh) -> Totals:
    return sharding.replicate(mesh, Totals.zero())
