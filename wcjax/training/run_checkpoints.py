"""When a run saves checkpoints, and how one restores its progress."""

import logging
import shutil
import time

import jax
import jax.numpy as jnp

from wcjax import run_folder
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import Checkpoints
from wcjax.run_folder.schema import CHECKPOINT, MIDWAY_CHECKPOINT
from wcjax.system import processes
from wcjax.system.unoptimized import jit_unoptimized
from wcjax.training.progress import Progress
from wcjax.training.run import Run
from wcjax.training.train_state import TrainState

log = logging.getLogger(__name__)

MIDWAY = "midway"  # the folder of checkpoints within an epoch, which a finished run no longer has


class RunCheckpoints:
    """The checkpoints of a run: at the ends of epochs, and midway in an epoch.

    Saving takes half a second of the process, in which a GPU can train for half an epoch of CIFAR-10. Therefore an
    epoch that ends less than `config.checkpoint_seconds` after the last one that was saved is not saved. If it is the
    best so far, a copy of its state stays on the devices, and is saved together with the next checkpoint.
    """

    def __init__(self, run: Run):
        self._run = run
        lines = run_folder.read_lines(run.folder, "metrics.jsonl")
        self._epochs = Checkpoints(
            run.folder / "checkpoints",
            keep=run.config.keep_checkpoints,
            schema=CHECKPOINT,
            val_accuracies={line["epoch"]: line["val_accuracy"] for line in lines},
        )
        self._midway = Checkpoints(run.folder / MIDWAY, unit="step", keep_best=0, schema=MIDWAY_CHECKPOINT)
        self._unsaved_best = None  # the arguments of Checkpoints.save
        self._saved_at = time.monotonic()
        self._is_open = True

    def restore_into(self, progress: Progress) -> None:
        """Moves progress from the beginning of the run to its newest checkpoint, if it has one.

        In place, so that the devices never hold more than two states. Raises InputError if there are checkpoints and
        the run would have to start from the beginning, because none can be read.
        """
        if newest := self._epochs.restore_newest(progress.state):
            progress.state, record = newest
            progress.step = record["epoch"] * self._run.steps_per_epoch
            progress.saved_epoch = record["epoch"]
            _set_progress_values(progress, record, CHECKPOINT)
        if midway := self._restore_midway(progress):
            arrays, record = midway
            progress.state, progress.totals = arrays["state"], arrays["totals"]
            progress.step = int(arrays["state"].step)
            _set_progress_values(progress, record, MIDWAY_CHECKPOINT)
        else:
            self._midway.delete_all()

    def _restore_midway(self, progress):
        """The newest checkpoint within an epoch. None if there is none, if it is obsolete, or if its best is lost."""
        try:
            newest = self._midway.restore_newest({"state": progress.state, "totals": progress.totals})
        except InputError:
            if progress.epoch == 0:
                raise
            return None  # the run resumes at the end of an epoch
        if newest is None:
            return None
        _, record = newest
        if record["epoch"] < progress.epoch:
            return None
        best = record["best_epoch"]
        if best > 0 and best not in self._epochs.numbers():
            log.warning("%s cannot be used, because the best epoch, %d, is lost.", self._run.folder / MIDWAY, best)
            return None
        return newest

    def save_epoch(self, progress: Progress, val_accuracy: float) -> None:
        """Saves progress, which has just finished an epoch, in the background, if a checkpoint is due or training ends.

        Otherwise copies its state if it is the best epoch so far.
        """
        state, record = progress.state, _progress_values(progress, CHECKPOINT)
        is_best = progress.best_epoch == progress.epoch
        if is_best:
            self._unsaved_best = None  # it is no longer the best
        if progress.epoch == self._run.config.epochs or self._is_due():
            self.save_best()
            self._epochs.save(progress.epoch, state, record, val_accuracy)
            progress.saved_epoch, self._saved_at = progress.epoch, time.monotonic()
        elif is_best:
            self._unsaved_best = progress.epoch, _copy(state), record, val_accuracy
            progress.saved_epoch = progress.epoch

    def _is_due(self):
        interval = self._run.config.checkpoint_seconds
        return interval == 0 or processes.broadcast_from_first(time.monotonic() - self._saved_at >= interval)

    def save_best(self) -> None:
        """Saves the best epoch, in the background, if it has no checkpoint yet."""
        if self._unsaved_best is not None:
            self._epochs.save(*self._unsaved_best)
            self._unsaved_best = None

    def save_midway(self, progress: Progress) -> None:
        """Saves progress within an epoch, in the background. Raises DivergedError if it is not finite."""
        self.save_best()
        progress.check_finite(self._run)
        arrays = {"state": progress.state, "totals": progress.totals}
        self._midway.save(progress.step, arrays, _progress_values(progress, MIDWAY_CHECKPOINT))

    def delete_midway(self) -> None:
        """Deletes the folder of checkpoints within an epoch, after `close`."""
        shutil.rmtree(self._run.folder / MIDWAY, ignore_errors=True)

    def best_state(self, progress: Progress) -> TrainState:
        """The state after the best epoch of a run that has just finished its last epoch."""
        if progress.best_epoch == progress.epoch:
            return progress.state
        try:
            return self._epochs.restore(progress.best_epoch, progress.state)[0]
        except InputError as error:
            raise InputError(f"{error} It is the best one; train again in a new workdir.") from error

    def close(self) -> None:
        """Waits until everything is written. May be called twice."""
        if self._is_open:
            self._is_open = False
            try:
                self._epochs.close()
            finally:
                self._midway.close()


@jit_unoptimized
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _progress_values(progress: Progress, schema: dict) -> dict:
    """The record of a checkpoint: the attributes of progress that its schema names."""
    return {name: getattr(progress, name) for name in schema}


def _set_progress_values(progress: Progress, record: dict, schema: dict) -> None:
    for name in schema:
        setattr(progress, name, record[name])
