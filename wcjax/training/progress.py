"""What a run has done so far, and the error that ends it once its numbers are no longer finite."""

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

    def _set_trees(self, state: TrainState, totals: Totals):
        self.arrays, self._structure = jax.tree.flatten((state, totals))

    @property
    def state(self) -> TrainState:
        return jax.tree.unflatten(self._structure, self.arrays)[0]

    @state.setter
    def state(self, state: TrainState):
        self._set_trees(state, self.totals)

    @property
    def totals(self) -> Totals:
        return jax.tree.unflatten(self._structure, self.arrays)[1]

    @totals.setter
    def totals(self, totals: Totals):
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

    def check_finite(self, run: Run) -> None:
        """Raises DivergedError unless every loss of the epoch and the whole state are finite.

        The state is checked too, because nan gradients in the last step leave its loss finite. Blocks until the device
        has finished.
        """
        if (first_bad_step := int(self.totals.first_bad_step)) >= 0:
            raise self.divergence_error(run, "the loss became nan or inf", first_bad_step + 1)
        if not steps.all_finite(self.state):
            raise self.divergence_error(run, "the weights or moments are nan or inf", self.step)

    def position(self, run: Run) -> str:
        """'step 70 (epoch 4)'"""
        is_trained = self.epoch == run.config.epochs
        return f"step {self.step} ({'after the last epoch' if is_trained else f'epoch {self.epoch + 1}'})"

    def divergence_error(self, run: Run, fault: str, step: int) -> DivergedError:
        """The error for a number of the unfinished epoch that is not finite.

        fault: names the number and says what is wrong with it. step: the step of the fault, counted from 1.
        """
        learning_rate = float(run.schedule(step - 1))
        saved = self.saved_epoch
        checkpoint = f"The checkpoint of epoch {saved} is kept" if saved else "There is no checkpoint yet"
        return DivergedError(
            f"{fault} at step {step} (epoch {self.epoch + 1}), learning rate {learning_rate:g}. {checkpoint}. Try a "
            "lower learning_rate, in a new workdir."
        )
