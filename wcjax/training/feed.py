"""The images of a split on their way to the steps, in two forms: held by the devices, or streamed to them.

Both have the same methods. `epoch` and `round` give the inputs of one jitted step after the other; `train_batch` and
`eval_batch` run inside that step and make the batch of them, normalized images (n, height, width, channels) and int32
labels (n,), sharded by rows.
"""

import contextlib
import functools
import gc
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wcjax.compiling import jit_quickly
from wcjax.data import augment
from wcjax.data.dataset import Split, num_batches
from wcjax.errors import InputError, LoaderError
from wcjax.training import mesh as meshes


class Images(NamedTuple):
    """A split, or a batch of one."""

    images: jax.Array  # uint8 (n, height, width, channels)
    labels: jax.Array  # int32 (n,); negative for an image that only fills a batch


@contextlib.contextmanager
def training(run, first_step: int):
    """The training split of a run, from step first_step on."""
    config, split = run.config, run.dataset.train
    options = {"flip": config.augment.flip, "seed": config.seed, "first_step": first_step}
    batches = lambda stream: stream.train_batches(split, _loading(stream, config), **options)
    with _feed(split, run.dataset, config, run.mesh, batches) as feed:
        yield feed


@contextlib.contextmanager
def evaluation(split, dataset, config, mesh):
    """A split of dataset for evaluation on the devices of mesh."""
    batches = lambda stream: stream.eval_batches(split, _loading(stream, config))
    with _feed(split, dataset, config, mesh, batches) as feed:
        yield feed


@contextlib.contextmanager
def _feed(split, dataset, config, mesh, batches):
    """batches: the module that streams -> its batches of split."""
    if isinstance(split, Split):
        yield OnDevice(split, dataset, config, mesh)
        return
    from wcjax.data.streaming import batches as stream  # an optional dependency

    with contextlib.closing(batches(stream)) as local_batches:
        yield Streamed(split, dataset, config, mesh, local_batches)


def _loading(stream, config):
    processes = jax.process_index(), jax.process_count()
    return stream.Loading(config.batch_size, config.image_size, config.data_workers, *processes)


class _Feed:
    def __init__(self, split, dataset, config, mesh):
        self.mesh, self._config = mesh, config
        self.num_images = split.num_images
        self._num_batches = num_batches(split.num_images, config.batch_size)  # in a round over the split
        self._normalize = functools.partial(
            augment.normalize, mean=dataset.mean, std=dataset.std, dtype=jnp.dtype(config.dtype)
        )


class OnDevice(_Feed):
    """A split that every device holds whole. Each step gathers its batch there, and augments it."""

    def __init__(self, split, dataset, config, mesh):
        super().__init__(split, dataset, config, mesh)
        # One row an image: XLA would copy the whole split on a TPU, in each step, to gather from four axes.
        self._rows = Images(split.images.reshape(split.num_images, -1), split.labels)
        self._shape = split.images.shape[1:]
        self._steps_per_epoch = split.num_images // config.batch_size
        self._draw = jit_quickly(self.draw_order, out_shardings=meshes.replicated(mesh))

    @functools.cached_property
    def _split(self):
        """The split on the devices."""
        return meshes.replicate(self.mesh, self._rows)

    def draw_order(self, key, step):
        """The order of the images in the epoch of a step, int32 (num_images,). key: `TrainState.key`."""
        key, _ = jax.random.split(jax.random.wrap_key_data(key))
        return jax.random.permutation(jax.random.fold_in(key, step // self._steps_per_epoch), self.num_images)

    def epoch(self, state) -> Iterator:
        """The inputs of the steps of the epoch that state is in."""
        return itertools.repeat((self._split, self._draw(state.key, state.step)))

    def round(self) -> Iterator:
        """The inputs of the steps that show each image once."""
        return itertools.repeat(self._split, self._num_batches)

    def train_inputs(self):
        """The shapes, dtypes and shardings of the inputs of a training step."""
        return self.eval_inputs(), self._abstract((self.num_images,), jnp.int32)

    def eval_inputs(self):
        """The shapes, dtypes and shardings of the inputs of an evaluation step."""
        return jax.tree.map(lambda x: self._abstract(x.shape, x.dtype), self._rows)

    def _abstract(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(self.mesh))

    def train_batch(self, inputs, step, key):
        """The batch of a step, cropped and flipped at random by key."""
        split, order = inputs
        start = step % self._steps_per_epoch * self._config.batch_size
        batch = self._take(split, jax.lax.dynamic_slice_in_dim(order, start, self._config.batch_size))
        images = augment.random_crop_and_flip(key, batch.images, **self._config.augment)
        return self._normalize(images), batch.labels

    def eval_batch(self, split, seen):
        """The next batch after `seen` images. A short last batch is filled up with images of a negative label."""
        index = seen + jnp.arange(self._config.batch_size)
        batch = self._take(split, jnp.minimum(index, self.num_images - 1))
        return self._normalize(batch.images), jnp.where(index < self.num_images, batch.labels, -1)

    def _take(self, split, index):
        index = jax.lax.with_sharding_constraint(index, meshes.by_rows(self.mesh))  # each device gathers its own rows
        images, labels = split.images[index], split.labels[index]
        return Images(images.reshape(-1, *self._shape), labels)


class Streamed(_Feed):
    """A split whose batches are decoded and augmented on the host, and put on the devices one by one."""

    def __init__(self, split, dataset, config, mesh, local_batches):
        """local_batches: from `wcjax.data.streaming.batches`, endless, with the rows of this process."""
        super().__init__(split, dataset, config, mesh)
        self._batches = _placed(local_batches, mesh)

    def epoch(self, state) -> Iterator:
        return self._batches

    def round(self) -> Iterator:
        return itertools.islice(self._batches, self._num_batches)

    def train_inputs(self):
        n, size = self._config.batch_size, self._config.image_size
        array = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.by_rows(self.mesh))
        return Images(array((n, size, size, 3), jnp.uint8), array((n,), jnp.int32))

    def eval_inputs(self):
        return self.train_inputs()

    def train_batch(self, batch, step, key):
        return self._normalize(batch.images), batch.labels

    def eval_batch(self, batch, seen):
        return self.train_batch(batch, None, None)


def _placed(batches, mesh):
    """Batches of Grain on the devices of mesh. Raises LoaderError, after a second, if a worker of Grain has ended."""
    try:
        for batch in batches:
            yield meshes.share_batch(mesh, Images(*batch))
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
