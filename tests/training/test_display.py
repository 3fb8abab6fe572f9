"""What a run shows while it trains."""

import io
import types

import numpy as np
import pytest

from wcjax.run_folder import read
from wcjax.training.display import PROGRESS_SECONDS, Display
from wcjax.training.progress import Progress

LINE = {"train_loss": 0.4, "train_accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.7, "images_per_second": 64.0}
EPOCH = "train loss 0.4000 accuracy 80.00%   val loss 0.5000 accuracy 70.00%   64 images/s"
MEANS = "loss 0.4321  accuracy 85.2%"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Means:
    """The loss and the accuracy of an epoch so far, on a device."""

    reads = 0

    def __array__(self, *args, **kwargs):
        self.reads += 1
        return np.float32([0.4321, 0.852])


def run_in(folder):
    config = types.SimpleNamespace(epochs=3, batch_size=64)
    return types.SimpleNamespace(config=config, steps_per_epoch=100, folder=folder)


def show(stream, folder):
    """Shows 2 of 3 epochs of 100 steps, which take a second, and of validations, which take 20.

    Returns what the stream had got after each step, and how often the numbers were read from the device.
    """
    seconds, texts, means = 0, {}, Means()
    display, progress = Display(run_in(folder), stream, clock=lambda: seconds), Progress(None, None)
    for epoch in range(2):
        progress.epoch, progress.step = epoch, 100 * epoch
        display.begin_epoch(progress)
        for step in range(1, 101):
            seconds += 1
            display.finish_step(means)
            texts[100 * epoch + step] = stream.getvalue()
        display.show_validation()
        seconds += 20
        display.finish_epoch(LINE | {"epoch": epoch + 1})
    display.close()
    return texts, means.reads


def test_a_terminal_has_one_live_line_with_the_times_left(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    texts, _ = show(terminal := Terminal(), tmp_path)
    # The validation of an epoch counts as soon as one has been measured.
    assert texts[50].endswith(f"\r\x1b[Kepoch 1/3  step 50/100  {MEANS}  0:00:50 left, run 0:04:10  64 images/s")
    assert texts[150].endswith(f"\r\x1b[Kepoch 2/3  step 50/100  {MEANS}  0:00:50 left, run 0:02:50  64 images/s")
    assert terminal.getvalue().endswith(f"validation ...\r\x1b[Kepoch 2/3   {EPOCH}   0:02:00 left\n\r\x1b[K")
    monkeypatch.setenv("COLUMNS", "70")
    texts, _ = show(Terminal(), tmp_path)
    assert texts[50].endswith(f"\r\x1b[Kepoch 1/3  step 50/100  {MEANS}"), "what fits into one line"


def test_a_log_has_a_plain_line_each_minute_and_each_epoch(tmp_path):
    _, reads = show(stream := io.StringIO(), tmp_path)
    assert stream.getvalue().splitlines() == [
        f"epoch 1/3  step 60/100  {MEANS}  0:00:40 left, run 0:04:00  64 images/s",
        f"epoch 1/3   {EPOCH}   0:03:20 left",
        f"epoch 2/3  step 60/100  {MEANS}  0:00:40 left, run 0:02:40  64 images/s",
        f"epoch 2/3   {EPOCH}   0:02:00 left",
    ]
    assert reads <= 2 * 100 / PROGRESS_SECONDS, "numbers are read every ten seconds"
    expected = {"epoch": 2, "epochs": 3, "step": 200, "steps_per_epoch": 100, "loss": 0.4, "accuracy": 0.8}
    expected |= {"images_per_second": 64, "epoch_seconds_left": 0, "seconds_left": 120}
    assert read(tmp_path, "progress.json") == pytest.approx(expected), "other processes can read where the run is"


@pytest.mark.parametrize("is_live", [True, False])
def test_a_run_continues_if_nothing_can_be_shown_any_more(tmp_path, is_live):
    class Gone(Terminal if is_live else io.StringIO):
        def write(self, text):
            if "0:0" in self.getvalue():
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    show(stream := Gone(), tmp_path)
    assert "epoch 1/3  step" in stream.getvalue() and "epoch 2/3" not in stream.getvalue()
    assert read(tmp_path, "progress.json")["epoch"] == 2, "progress.json is still written"


def test_numbers_that_a_reader_refuses_are_not_recorded(tmp_path):
    display = Display(run_in(tmp_path), io.StringIO())
    display.begin_epoch(Progress(None, None))
    display.finish_step(Means())
    for loss in (float("nan"), 1e31):
        display.finish_epoch(LINE | {"epoch": 1, "train_loss": loss})
        assert read(tmp_path, "progress.json") is None
