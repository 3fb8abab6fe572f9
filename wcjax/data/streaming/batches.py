"""Batches of streamed images, which Grain reads, decodes and augments in worker processes or in this process.

A batch is a function of (seed, step) alone. It depends neither on the number of workers nor on the step at which a run
was resumed. Several processes share the same batch: the first has its first rows, and so on.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from wcjax.data.dataset import Split, num_batches, num_full_batches
from wcjax.data.streaming import decode
from wcjax.data.streaming.source import Encoded, Source
from wcjax.errors import InputError

PADDING_LABEL = -1  # of the black images that complete the last batch of an evaluation


class Loading(NamedTuple):
    """How images are loaded.

    Attributes:
      batch_size: images in a batch of all processes together, a multiple of process_count.
      size: height and width of the images.
      workers: the number of processes that decode, or 0 for a thread of this process. Worker processes import the
        program, so it needs `if __name__ == "__main__":`, as `multiprocessing` requires.
      process_index, process_count: the index of this process, and the number of processes that share each batch.
    """

    batch_size: int
    size: int = 224
    workers: int = 0
    process_index: int = 0
    process_count: int = 1


def train_batches(source: Source, loading: Loading, *, flip: bool = True, seed: int = 0, first_step: int = 0):
    """An endless iterator over training batches, from step `first_step` on.

    An epoch over n images has n // batch_size steps. Each epoch has its own order of the images, and omits the last
    images if they do not fill a batch. Crops and flips are drawn anew for each image and epoch (`decode.train_image`).
    Images before `first_step` are not decoded.

    Args:
      source: the training split, with at least batch_size images.
      loading: the batch size, the size of the images, and the processes.
      flip: whether to mirror half of the images.
      seed: integer from 0 to 2³² − 1.
      first_step: the number of steps that are already done, over all epochs.

    Returns:
      A Grain DatasetIterator of Split: images uint8 (batch_size / process_count, size, size, 3), labels int32. It has
      get_state(), set_state() and close(), which the caller must call at the end.

    Raises:
      InputError: batch_size is not a multiple of process_count. The iterator raises it for an image that cannot be
        used.
    """
    images = grain.MapDataset.source(source).seed(seed).random_map(_Augment(loading.size, flip)).shuffle()
    images = images[: num_full_batches(source.num_images, loading.batch_size) * loading.batch_size]
    return _iterate(_own_batches(images, loading).repeat()[first_step:], loading.workers)


def eval_batches(source: Source, loading: Loading):
    """An endless iterator over evaluation batches. A pass over the split takes `num_batches` of them.

    A pass shows each image once (`decode.eval_image`). Black images with the label PADDING_LABEL complete the last
    batch. The result and the errors are like those of `train_batches`.
    """
    padded = grain.MapDataset.range(num_batches(source.num_images, loading.batch_size) * loading.batch_size)
    images = padded.map(_Centre(source, loading.size))
    return _iterate(_own_batches(images, loading).repeat(), loading.workers)


def _own_batches(images, loading):
    """The batches of images, each with the rows of this process alone."""
    n = loading.process_count
    if loading.batch_size % n:
        raise InputError(
            f"batch_size {loading.batch_size} cannot be shared by {n} processes: choose a multiple of {n}."
        )
    return images.batch(loading.batch_size // n)[loading.process_index :: n]


def _iterate(batches, workers):
    # Batches are large, so each process reads only two of them ahead.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if workers == 0:
        return iter(batches)
    # Grain reads this flag, and absl raises in a program that parses no flags unless the flag is present.
    flags.FLAGS["grain_enable_multiprocess_worker_profiling"].present = True
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    batches = batches.mp_prefetch(options, _exit_with_parent)
    # Copy the batch out of shared memory, which is scarce (64 MiB in many containers) and stays occupied while the
    # arrays live.
    return iter(batches.map(lambda batch: Split(*(np.array(x) for x in batch))))


def _exit_with_parent(worker_index, worker_count):
    """Makes this worker ignore SIGTERM and Ctrl-C, and exit when its parent has ended, even by SIGKILL.

    Schedulers and terminals send both to all processes of a run, and the trainer needs batches until it has saved.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Augment:
    size: int
    flip: bool

    def __call__(self, encoded: Encoded, rng: np.random.Generator) -> Split:
        image = decode.train_image(encoded.name, encoded.content, rng, self.size, self.flip)
        return Split(image, np.int32(encoded.label))


@dataclasses.dataclass(frozen=True)
class _Centre:
    source: Source
    size: int

    def __call__(self, index: int) -> Split:
        if index >= self.source.num_images:
            return Split(np.zeros((self.size, self.size, 3), np.uint8), np.int32(PADDING_LABEL))
        encoded = self.source[index]
        return Split(decode.eval_image(encoded.name, encoded.content, self.size), np.int32(encoded.label))
