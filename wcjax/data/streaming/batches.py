"""Batches of streamed images: read, decoded and augmented by Grain, in worker processes or in this one.

A batch is a function of (seed, step) alone: not of the number of workers, nor of the step that a run was resumed at.
Of several processes the first has the first rows of that batch, and so on: together they have the same one.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading

import grain
import numpy as np
from absl import flags

from wcjax.data.dataset import Split
from wcjax.data.streaming import decode
from wcjax.data.streaming.source import Encoded, Source
from wcjax.errors import InputError

FILLING = -1  # the label of what fills the last batch of an evaluation


def train_batches(
    source: Source,
    batch_size: int,
    *,
    size: int = 224,
    flip: bool = True,
    seed: int = 0,
    first_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
):
    """Returns an endless iterator over training batches, from step `first_step` on.

    With n images an epoch has n // batch_size steps; each shows the images in an order of its own and leaves out those
    that do not fill a last batch. Crops and flips are drawn anew for each image and epoch (`decode.train_image`).
    Going to `first_step` decodes nothing.

    Args:
      source: the training split, with at least batch_size images.
      batch_size: of all processes together, a multiple of process_count.
      size: height and width of the images.
      flip: whether to mirror half of them.
      seed: integer from 0 to 2³² − 1.
      first_step: steps done, over all epochs.
      workers: processes that decode; 0: a thread of this process. The program must then be one that can be imported,
        with `if __name__ == "__main__":` around what it does, as `multiprocessing` asks for.
      process_index, process_count: this process and the number of those that share each batch.

    Returns:
      A Grain DatasetIterator of Split: images uint8 (batch_size / process_count, size, size, 3), labels int32. It has
      get_state(), set_state() and close(), which is to be called at the end.

    Raises:
      InputError: batch_size is no multiple of process_count; from the iterator, an image that cannot be used.
    """
    per_process = _per_process(batch_size, process_count)
    images = grain.MapDataset.source(source).seed(seed).random_map(_Augment(size, flip)).shuffle()
    parts = images[: source.num_images // batch_size * batch_size].batch(per_process)
    return _iterate(parts[process_index::process_count].repeat()[first_step:], workers)


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    size: int = 224,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
):
    """Returns an iterator that goes round and round over a split, in `num_eval_batches` batches a round.

    Each image comes once a round (`decode.eval_image`). The last batch is as large as the others: what fills it is
    black and has the label FILLING. Arguments, result and errors as those of `train_batches`.
    """
    per_process = _per_process(batch_size, process_count)
    padded = grain.MapDataset.range(num_eval_batches(source, batch_size) * batch_size)
    parts = padded.map(_Centre(source, size)).batch(per_process)
    return _iterate(parts[process_index::process_count].repeat(), workers)


def num_eval_batches(source: Source, batch_size: int) -> int:
    """Batches in a round of `eval_batches`: the same number in every process."""
    return -(-source.num_images // batch_size)


def _per_process(batch_size, process_count):
    if batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} cannot be shared by {process_count} processes: choose a multiple of it."
        )
    return batch_size // process_count


def _iterate(batches, workers):
    # Batches are large, so that little is read ahead: two of them in each process.
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    batches = batches.to_iter_dataset(threads)
    if workers == 0:
        return iter(batches)
    # Grain reads this flag, which absl refuses in programs that parse no flags unless it counts as given.
    flags.FLAGS["grain_enable_multiprocess_worker_profiling"].present = True
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    batches = batches.mp_prefetch(options, _live_and_die_with_parent)
    # Out of shared memory, which is scarce (64 MiB in many containers) and would live as long as the arrays.
    return iter(batches.map(lambda batch: Split(*(np.array(x) for x in batch))))


def _live_and_die_with_parent(worker_index, worker_count):
    """Leaves Ctrl-C to the parent, and ends this worker when the parent is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

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
            return Split(np.zeros((self.size, self.size, 3), np.uint8), np.int32(FILLING))
        encoded = self.source[index]
        return Split(decode.eval_image(encoded.name, encoded.content, self.size), np.int32(encoded.label))
