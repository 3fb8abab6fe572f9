"""The images of a split on their way to the steps: held by the devices, or streamed to them."""

import abc
import functools
import gc
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wcjax.data import augment
from wcjax.data.dataset import Dataset, Split, num_batches, num_full_batches
from wcjax.data.streaming.source import Source
from wcjax.errors import InputError, LoaderError
from wcjax.system.unoptimized import jit_unoptimized
from wcjax.training import sharding
from wcjax.training.run import Run
from wcjax.training.train_state import TrainState, order_key


def training(run: Run, first_step: int) -> "Feed":
    """The training split of a run, from step first_step on. `with` closes it."""
    split, config = run.dataset.train, run.config
    if isinstance(split, Split):
        return OnDevice(split, run.dataset, config, run.mesh)
    from wcjax.data.streaming import batches  # an optional dependency

    local_batches = batches.train_batches(
        split, _loading(config), flip=config.augment.flip, seed=config.seed, first_step=first_step
    )
    return Streamed(split, run.dataset, config, run.mesh, local_batches)


def evaluation(split: Split | Source, dataset: Dataset, config: ConfigDict, mesh: Mesh) -> "Feed":
    """A split of dataset for evaluation on the devices of mesh. `with` closes it."""
    if isinstance(split, Split):
        return OnDevice(split, dataset, config, mesh)
    from wcjax.data.streaming import batches  # an optional dependency

    local_batches = batches.eval_batches(split, _loading(config))
    return Streamed(split, dataset, config, mesh, local_batches)


def _loading(config: ConfigDict):
    from wcjax.data.streaming.batches import Loading  # an optional dependency

    return Loading(config.batch_size, config.image_size, config.data_workers, jax.process_index(), jax.process_count())


class Feed(abc.ABC):
    """The batches of a split.

    `epoch` and `one_pass` yield the inputs of the jitted steps, one step at a time. `train_batch` and `eval_batch` run
    inside that step and turn its inputs into a batch: normalized images (n, height, width, channels) and int32 labels
    (n,), sharded by rows.
    """

    def __init__(self, split: Split | Source, dataset: Dataset, config: ConfigDict, mesh: Mesh):
        self.mesh, self._config = mesh, config
        self.num_images = split.num_images
        self._num_batches = num_batches(split.num_images, config.batch_size)  # in one pass
        self._normalize = functools.partial(
            augment.normalize, mean=dataset.mean, std=dataset.std, dtype=jnp.dtype(config.dtype)
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the processes that decode images, if there are any."""

    @abc.abstractmethod
    def epoch(self, state: TrainState, num_steps: int) -> Iterator:
        """The inputs of the next num_steps steps, which lie in the epoch that state is in."""

    @abc.abstractmethod
    def one_pass(self) -> Iterator:
        """The inputs of the steps that show each image once."""

    @abc.abstractmethod
    def train_input_shapes(self):
        """The shapes, dtypes and shardings of the inputs of a training step."""

    @abc.abstractmethod
    def eval_input_shapes(self):
        """The shapes, dtypes and shardings of the inputs of an evaluation step."""

    @abc.abstractmethod
    def train_batch(self, inputs, step, key) -> tuple[jax.Array, jax.Array]:
        """The batch of a training step, augmented. key: the random key of its crops and flips."""

    @abc.abstractmethod
    def eval_batch(self, inputs, seen) -> tuple[jax.Array, jax.Array]:
        """The batch after `seen` images. Images with negative labels complete a short last batch."""


class OnDevice(Feed):
    """A split that is replicated on every device. Each step gathers its batch there, and augments it."""

    def __init__(self, split, dataset, config, mesh):
        super().__init__(split, dataset, config, mesh)
        # One row for each image: XLA would copy the whole split on a TPU, in each step, to gather from four axes.
        self._host_split = Split(split.images.reshape(split.num_images, -1), split.labels)
        self._shape = split.images.shape[1:]
        self._steps_per_epoch = num_full_batches(split.num_images, config.batch_size)
        self._draw = jit_unoptimized(self.draw_order, out_shardings=sharding.replicated(mesh))

    def close(self):
        pass

    @functools.cached_property
    def _device_split(self):
        return sharding.replicate(self.mesh, self._host_split)

    def draw_order(self, key, step):
        """The order of the images in the epoch of a step, int32 (num_images,). key: `TrainState.key`."""
        key = jax.random.fold_in(order_key(key), step // self._steps_per_epoch)
        return jax.random.permutation(key, jnp.arange(self.num_images, dtype=jnp.int32))

    def epoch(self, state, num_steps):
        return itertools.repeat((self._device_split, self._draw(state.key, state.step)), num_steps)

    def one_pass(self):
        return itertools.repeat(self._device_split, self._num_batches)

    def train_input_shapes(self):
        return self.eval_input_shapes(), self._abstract((self.num_images,), jnp.int32)

    def eval_input_shapes(self):
        return jax.tree.map(lambda x: self._abstract(x.shape, x.dtype), self._host_split)

    def _abstract(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(self.mesh))

    def train_batch(self, inputs, step, key):
        split, order = inputs
        start = step % self._steps_per_epoch * self._config.batch_size
        batch = self._take(split, jax.lax.dynamic_slice_in_dim(order, start, self._config.batch_size))
        images = augment.random_crop_and_flip(key, batch.images, **self._config.augment)
        return self._normalize(images), batch.labels

    def eval_batch(self, split, seen):
        index = seen + jnp.arange(self._config.batch_size)
        batch = self._take(split, jnp.minimum(index, self.num_images - 1))
        return self._normalize(batch.images), jnp.where(index < self.num_images, batch.labels, -1)

    def _take(self, split, index):
        index = jax.lax.with_sharding_constraint(index, sharding.by_rows(self.mesh))  # each device gathers its own rows
        images, labels = split.images[index], split.labels[index]
        return Split(images.reshape(-1, *self._shape), labels)


class Streamed(Feed):
    """A split whose batches are decoded and augmented on the host, and put on the devices one by one."""

    def __init__(self, split, dataset, config, mesh, local_batches):
        """local_batches: from `wcjax.data.streaming.batches`, endless, with the rows of this process."""
        super().__init__(split, dataset, config, mesh)
        self._local_batches, self._batches = local_batches, _device_batches(local_batches, mesh)

    def close(self):
        if self._local_batches is not None:
            self._local_batches.close()
        self._local_batches = self._batches = None  # their __del__ fails when Python exits

    def epoch(self, state, num_steps):
        return itertools.islice(self._batches, num_steps)

    def one_pass(self):
        return itertools.islice(self._batches, self._num_batches)

    def train_input_shapes(self):
        n, size = self._config.batch_size, self._config.image_size
        array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.by_rows(self.mesh))
        return Split(array((n, size, size, 3), jnp.uint8), array((n,), jnp.int32))

    eval_input_shapes = train_input_shapes

    def train_batch(self, batch, step, key):
        return self.eval_batch(batch, seen=None)  # the host has augmented it

    def eval_batch(self, batch, seen):
        return self._normalize(batch.images), batch.labels


def _device_batches(local_batches: Iterator, mesh: Mesh) -> Iterator:
    """Batches of Grain on the devices of mesh. Raises LoaderError, after a second, if a worker of Grain has died."""
    try:
        for batch in local_batches:
            yield sharding.share_batch(mesh, batch)
    except InputError as error:
        # Grain's frames hold a batch in shared memory, which Python would report as leaked when it exits.
        error.__traceback__ = None
        gc.collect()
        raise
    except RuntimeError as error:
        if not str(error).startswith("Worker process was terminated"):
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        if code.startswith("-"):
            raise LoaderError(
                f"a process that decodes images was killed (exit code {code}). If memory ran out, choose a smaller "
                "config.data_workers. Run the same command to resume after the last checkpoint."
            ) from error
        raise LoaderError(
            f"a process that decodes images has failed (exit code {code}), with an error that is shown above. Each of "
            "config.data_workers imports your script: it must call train under `if __name__ == '__main__':`."
        ) from error
