"""The progress of a run."""

import jax

from wcjax.errors import DivergedError
from wcjax.training import steps
from wcjax.training.run import Run
from wcjax.training.train_state import Totals, TrainState, zero_totals


class Progress:
    """The progress of a run, as its checkpoints hold it. Training updates it.

    Attributes:
      arrays: the leaves of (state, totals) on the devices. Steps take and return this list. With trees, JAX would
        flatten and rebuild each weight that holds v in Python, at each step.
      state: the training state. It is built when it is read, so changes to it are lost unless it is assigned again.
      totals: the sums over the images of the unfinished epoch so far.
      step: steps done.
      epoch: epochs finished.
      saved_epoch: the newest epoch with a checkpoint, or whose state is kept for one; 0 if there is none.
      best_epoch, best_val_accuracy: the first epoch with the highest accuracy on val; 0 and -1 if none is finished.
      train_seconds: time that the steps of finished epochs took.
      seconds: time that the steps of the unfinished epoch took.
    """

    def __init__(self, state: TrainState, totals: Totals):
        self._set_trees(state, totals)
        self.step = self.epoch = self.saved_epoch = self.best_epoch = 0
        self.best_val_accuracy = -1.0
        self.train_seconds = self.seconds = 0.0

    def _set_trees(self, state, totals):
        self.arrays, self._structure = jax.tree.flatten((state, totals))

    @property
    def state(self) -> TrainState:
        return jax.tree.unflatten(self._structure, self.arrays)[0]

    @state.setter
    def state(self, state):
        self._set_trees(state, self.totals)

    @property
    def totals(self) -> Totals:
        return jax.tree.unflatten(self._structure, self.arrays)[1]

    @totals.setter
    def totals(self, totals):
        self._set_trees(self.state, totals)

    @classmethod
    def start(cls, run: Run) -> "Progress":
        """The beginning of a run."""
        state = steps.init_state(run.model, run.tx, run.image_shape, run.config.seed, run.mesh)
        return cls(state, zero_totals(run.mesh))

    def finish_epoch(self, run: Run, val_accuracy: float) -> None:
        self.epoch += 1
        if val_accuracy > self.best_val_accuracy:
            self.best_epoch, self.best_val_accuracy = self.epoch, val_accuracy
        self.train_seconds += self.seconds
        self.seconds, self.totals = 0.0, zero_totals(run.mesh)

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
