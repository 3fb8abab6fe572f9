"""What a run shows while it trains: a live line on a terminal, plain lines elsewhere, and progress.json."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

import jax
import numpy as np

from wcjax import run_folder
from wcjax.errors import SaveError
from wcjax.run_folder.schema import PROGRESS
from wcjax.system import processes
from wcjax.system.streams import Output
from wcjax.training.progress import Progress
from wcjax.training.run import Run

REDRAW_SECONDS = 0.2  # between two live lines
PROGRESS_SECONDS = 10  # between two versions of progress.json
LINE_SECONDS = 60  # between two plain lines


class Display:
    """Shows the progress of a run. Only the first process shows anything.

    On a terminal this is one line that is redrawn. Elsewhere it is a plain line for each epoch, and one after each
    minute without a line. progress.json has the same numbers for other processes. If nothing can be shown any more, the
    run continues without a display.
    """

    def __init__(self, run: Run, stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter):
        self._run, self._output, self._clock = run, Output(stream or sys.stderr), clock
        self._is_first = processes.is_first()
        self._drawn_at = -math.inf
        self._written_at = self._line_at = clock()
        self._trained_at = None  # when the last step was finished, or the epoch began
        self._seconds_between = []  # after the last step of each epoch, until the next one begins: validation, saving

    def begin_epoch(self, progress: Progress) -> None:
        """Starts the clock of an epoch. Call it before the first step of the epoch, or of its rest in a resumed run."""
        now = self._clock()
        if self._trained_at is not None:
            self._seconds_between.append(now - self._trained_at)
        self._epoch, self._step = progress.epoch, progress.step
        self._epoch_began, self._trained_at = now - progress.seconds, now

    def finish_step(self, means: jax.Array) -> None:
        """Counts a step, and shows the progress if that is due. Call it after each step that the device has finished.

        means: loss and accuracy of the epoch so far, shape (2,). They are read only if they are shown or written.
        """
        self._step += 1
        self._trained_at = now = self._clock()
        if not self._is_first:
            return
        is_drawn = self._output.is_live and now - self._drawn_at >= REDRAW_SECONDS
        is_printed = not self._output.is_live and now - self._line_at >= LINE_SECONDS
        is_written = now - self._written_at >= PROGRESS_SECONDS
        if not (is_drawn or is_printed or is_written):
            return
        numbers = self._progress_numbers(*np.asarray(means).tolist())
        if is_drawn:
            self._draw(progress_text(numbers))
            self._drawn_at = now
        if is_printed:
            self.say("  ".join(progress_text(numbers)))
        if is_written:
            self._write_progress(numbers)

    def show_validation(self) -> None:
        """Shows 'validation ...' on the live line, which does not count validation batches."""
        if self._is_first and self._output.is_live:
            self._draw([f"epoch {self._epoch + 1}/{self._run.config.epochs}", "validation ..."])

    def finish_epoch(self, metrics: dict) -> None:
        """Shows the numbers of an epoch. metrics: the fields of metrics.jsonl."""
        if not self._is_first:
            return
        numbers = self._progress_numbers(metrics["train_loss"], metrics["train_accuracy"])
        epochs = self._run.config.epochs
        self.say(
            f"epoch {metrics['epoch']:{len(str(epochs))}}/{epochs}   "
            f"train loss {metrics['train_loss']:.4f} accuracy {metrics['train_accuracy']:.2%}   "
            f"val loss {metrics['val_loss']:.4f} accuracy {metrics['val_accuracy']:.2%}   "
            f"{metrics['images_per_second']:,.0f} images/s   {duration(numbers['seconds_left'])} left"
        )
        self._write_progress(numbers)

    def say(self, text: str) -> None:
        """Prints one line, above the live line."""
        self._clear()
        self._output.write(f"{text}\n")
        self._line_at = self._clock()

    def close(self) -> None:
        self._clear()

    def _progress_numbers(self, loss: float, accuracy: float) -> dict:
        """The content of progress.json."""
        config, steps_per_epoch = self._run.config, self._run.steps_per_epoch
        done = self._step - self._epoch * steps_per_epoch
        seconds_per_step = (self._trained_at - self._epoch_began) / done
        between = sum(self._seconds_between) / max(1, len(self._seconds_between))
        epoch_left = (steps_per_epoch - done) * seconds_per_step
        later_epochs = (config.epochs - self._epoch - 1) * (steps_per_epoch * seconds_per_step + between)
        return {
            "epoch": self._epoch + 1,
            "epochs": config.epochs,
            "step": self._step,
            "steps_per_epoch": steps_per_epoch,
            "loss": loss,
            "accuracy": accuracy,
            "images_per_second": config.batch_size / seconds_per_step,
            "epoch_seconds_left": epoch_left,
            "seconds_left": epoch_left + later_epochs,
        }

    def _write_progress(self, numbers: dict) -> None:
        self._written_at = self._clock()
        if all(PROGRESS[name].accepts(x) for name, x in numbers.items()):  # else the run is about to diverge
            with contextlib.suppress(SaveError):  # nothing is lost, and a checkpoint that cannot be written raises it
                run_folder.write(self._run.folder, "progress.json", numbers)

    def _draw(self, parts: list[str]) -> None:
        while len("  ".join(parts)) >= shutil.get_terminal_size().columns and len(parts) > 1:
            parts = parts[:-1]  # a line wider than the terminal would take two
        self._output.write(f"\r\x1b[K{'  '.join(parts)}")

    def _clear(self) -> None:
        if self._is_first and self._output.is_live:
            self._output.write("\r\x1b[K")


def progress_text(numbers: dict) -> list[str]:
    """The numbers of progress.json as short texts, the most important ones first."""
    step = numbers["step"] - (numbers["epoch"] - 1) * numbers["steps_per_epoch"]
    return [
        f"epoch {numbers['epoch']}/{numbers['epochs']}",
        f"step {step}/{numbers['steps_per_epoch']}",
        f"loss {numbers['loss']:.4f}",
        f"accuracy {numbers['accuracy']:.1%}",
        f"{duration(numbers['epoch_seconds_left'])} left, run {duration(numbers['seconds_left'])}",
        f"{numbers['images_per_second']:,.0f} images/s",
    ]


def duration(seconds: float) -> str:
    """'0:04:07', or '49:04:07' for two days and an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
