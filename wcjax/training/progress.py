"""The progress of a run, and the checkpoints that restore it."""

import logging
import time

import jax
import jax.numpy as jnp

from wcjax import processes, run_folder
from wcjax.compiling import jit_unoptimized
from wcjax.errors import DivergedError, InputError
from wcjax.run_folder.checkpoints import Checkpoints
from wcjax.run_folder.schema import RECORD, RECORD_MIDWAY
from wcjax.training import steps
from wcjax.training.run import Run

log = logging.getLogger(__name__)

MIDWAY = "midway"  # the folder of checkpoints within an epoch, which a finished run no longer has


class Progress:
    """The progress of a run, as its checkpoints hold it. Training updates it.

    Attributes:
      arrays: the leaves of (state, totals) on the devices. Steps take and give this list, because JAX would build and
        take apart each weight that holds v in Python, at each step.
      state: the training state. It is built when it is read, so changes to it are lost unless it is assigned again.
      totals: the sums over the images that the unfinished epoch has shown.
      step: steps done.
      epoch: epochs finished.
      saved_epoch: the newest epoch with a checkpoint, or whose state is kept for one; 0 if there is none.
      best_epoch, best_val_accuracy: the first epoch with the highest accuracy on val; 0 and -1 if none is finished.
      train_seconds: time that the steps of finished epochs took.
      seconds: time that the steps of the unfinished epoch took.
    """

    def __init__(self, state: steps.TrainState, totals: steps.Totals):
        self._set_trees(state, totals)
        self.step = self.epoch = self.saved_epoch = self.best_epoch = 0
        self.best_val_accuracy = -1.0
        self.train_seconds = self.seconds = 0.0

    def _set_trees(self, state, totals):
        self.arrays, self._structure = jax.tree.flatten((state, totals))

    @property
    def state(self) -> steps.TrainState:
        return jax.tree.unflatten(self._structure, self.arrays)[0]

    @state.setter
    def state(self, state):
        self._set_trees(state, self.totals)

    @property
    def totals(self) -> steps.Totals:
        return jax.tree.unflatten(self._structure, self.arrays)[1]

    @totals.setter
    def totals(self, totals):
        self._set_trees(self.state, totals)

    @classmethod
    def start(cls, run: Run) -> "Progress":
        """The beginning of a run."""
        state = steps.init_state(run.model, run.tx, run.image_shape, run.config.seed, run.mesh)
        return cls(state, steps.zero_totals(run.mesh))

    def finish_epoch(self, run: Run, val_accuracy: float) -> None:
        self.epoch += 1
        if val_accuracy > self.best_val_accuracy:
            self.best_epoch, self.best_val_accuracy = self.epoch, val_accuracy
        self.train_seconds += self.seconds
        self.seconds, self.totals = 0.0, steps.zero_totals(run.mesh)

    def check_finite(self, schedule) -> None:
        """Raises DivergedError unless every loss of the epoch and the whole state are finite.

        The state is checked too, because nan gradients in the last step leave its loss finite. Blocks until the device
        has finished.
        """
        if (step := int(self.totals.first_bad_step)) >= 0:
            raise self.divergence_error(f"the loss became nan or inf at step {step}", schedule(step))
        step = self.step - 1
        if not steps.all_finite(self.state):
            raise self.divergence_error(f"the weights or moments are nan or inf after step {step}", schedule(step))

    def position(self, run: Run) -> str:
        """'step 70 (epoch 4)'"""
        is_trained = self.epoch == run.config.epochs
        return f"step {self.step} ({'after the last epoch' if is_trained else f'epoch {self.epoch + 1}'})"

    def divergence_error(self, what: str, learning_rate: float) -> DivergedError:
        """The error for a number of the unfinished epoch that is not finite. what: names it and its step."""
        saved = self.saved_epoch
        checkpoint = f"The checkpoint of epoch {saved} is kept" if saved else "There is no checkpoint yet"
        return DivergedError(
            f"{what} (epoch {self.epoch + 1}), learning rate {float(learning_rate):g}. {checkpoint}. Try a lower "
            "learning_rate, in a new workdir."
        )


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
            schema=RECORD,
            val_accuracies={line["epoch"]: line["val_accuracy"] for line in lines},
        )
        self._midway = Checkpoints(run.folder / MIDWAY, unit="step", keep_best=0, schema=RECORD_MIDWAY)
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
            _set_record(progress, record, RECORD)
        try:
            newest = self._midway.restore_newest({"state": progress.state, "totals": progress.totals})
        except InputError:
            if progress.epoch == 0:
                raise
            newest = None  # the run resumes at the end of an epoch
        # A checkpoint midway in an earlier epoch is obsolete. One in a later epoch needs the checkpoint of the best
        # epoch, which may be lost.
        is_usable = newest is not None and newest[1]["epoch"] >= progress.epoch
        if is_usable and not self._has(best_epoch := newest[1]["best_epoch"]):
            log.warning(
                "%s cannot be used, because the best epoch, %d, is lost.", self._run.folder / MIDWAY, best_epoch
            )
            is_usable = False
        if not is_usable:
            self._midway.delete_all()
            return
        arrays, record = newest
        progress.state, progress.totals, progress.step = arrays["state"], arrays["totals"], int(arrays["state"].step)
        _set_record(progress, record, RECORD_MIDWAY)

    def _has(self, epoch):
        return epoch == 0 or epoch in self._epochs.numbers()

    def save_epoch(self, progress: Progress, val_accuracy: float) -> None:
        """Saves progress, which has just finished an epoch, in the background, if it is time or the last epoch.

        Otherwise copies its state if it is the best epoch so far.
        """
        state, record = progress.state, _record(progress, RECORD)
        is_best = progress.best_epoch == progress.epoch
        if is_best:
            self._unsaved_best = None
        if progress.epoch == self._run.config.epochs or self._is_time():
            self.save_best()
            self._epochs.save(progress.epoch, state, record, val_accuracy)
            progress.saved_epoch, self._saved_at = progress.epoch, time.monotonic()
        elif is_best:
            self._unsaved_best = progress.epoch, _copy(state), record, val_accuracy
            progress.saved_epoch = progress.epoch

    def _is_time(self):
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
        progress.check_finite(self._run.schedule)
        arrays = {"state": progress.state, "totals": progress.totals}
        self._midway.save(progress.step, arrays, _record(progress, RECORD_MIDWAY))

    def best_state(self, progress: Progress) -> steps.TrainState:
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


# A record has the attributes of Progress that its schema names.
def _record(progress: Progress, schema: dict) -> dict:
    return {name: getattr(progress, name) for name in schema}


def _set_record(progress: Progress, record: dict, schema: dict) -> None:
    for name in schema:
        setattr(progress, name, record[name])
