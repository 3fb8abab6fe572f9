"""Where the steps of a run find their images: in a split that lies on the devices, or in batches streamed to them."""

import contextlib
import dataclasses
import gc
import itertools
from collections.abc import Iterator

import jax

from wcjax.data.dataset import Split
from wcjax.errors import InputError, LoaderError
from wcjax.training import mesh as meshes
from wcjax.training.step import Images


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Batches that never end; each iteration takes the next `length` of them, which are a round over a split."""

    batches: Iterator[Images]
    length: int

    def __iter__(self):
        return itertools.islice(self.batches, self.length)


@contextlib.contextmanager
def training(split, config, first_step: int, mesh):
    """Images on the devices of mesh; of a streamed split, an endless iterator over batches there from first_step on."""
    if isinstance(split, Split):
        yield _on_devices(split, mesh)
        return
    from wcjax.data.streaming import batches as stream  # an optional dependency

    chosen = {"flip": config.augment.flip, "seed": config.seed, "first_step": first_step}
    batches = stream.train_batches(split, config.batch_size, **chosen, **_options(config))
    with contextlib.closing(batches):
        yield _placed(batches, mesh)


@contextlib.contextmanager
def evaluation(split, config, mesh=None):
    """Images on the devices of mesh, or the Rounds of a streamed split. mesh: one device if left out."""
    mesh = mesh or meshes.one_device()
    if isinstance(split, Split):
        yield _on_devices(split, mesh)
        return
    from wcjax.data.streaming import batches as stream  # an optional dependency

    batches = stream.eval_batches(split, config.batch_size, **_options(config))
    with contextlib.closing(batches):
        yield Rounds(_placed(batches, mesh), stream.num_eval_batches(split, config.batch_size))


def _placed(batches, mesh):
    """Batches of Grain on the devices of mesh. Raises LoaderError, after a second, where a worker of Grain is gone."""
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
        raise LoaderError(
            f"a process that decodes images was killed (exit code {code}), if for lack of memory, choose a "
            "smaller config.data_workers. The same command goes on after the last checkpoint."
        ) from error


def _options(config):
    return {
        "size": config.image_size,
        "workers": config.data_workers,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _on_devices(split, mesh):
    return Images(meshes.share_rows(mesh, split.images), meshes.replicate(mesh, split.labels))
