"""The lines that a run writes for each epoch, and the same numbers for TensorBoard."""

import json
import logging
import os
import pathlib

from wcjax import run_folder
from wcjax.files import saving, write_text

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends one line for each epoch to metrics.jsonl and weights.jsonl, and the numbers to TensorBoard."""

    def __init__(self, workdir, done_epochs: int):
        """Removes the lines of epochs after done_epochs, which an interrupted run left; with -1, all lines."""
        self._workdir = pathlib.Path(workdir)
        for name in ("metrics.jsonl", "weights.jsonl"):
            lines = [line for line in run_folder.read_lines(workdir, name) if line["epoch"] <= done_epochs]
            write_text(self._workdir / name, "".join(json.dumps(line) + "\n" for line in lines))
        self._events = _events(self._workdir / "tensorboard", done_epochs + 1)

    def write(self, line: dict) -> None:
        """line: 'epoch' and numbers by name, or dicts of them."""
        self._append("metrics.jsonl", line)
        self._show(line, line["epoch"])

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        """layers: from `weights.describe_layers`. TensorBoard gets the numbers without the histograms."""
        self._append("weights.jsonl", {"epoch": epoch, "layers": layers})
        shown = {
            f"{name}/{layer}": x
            for layer, numbers in layers.items()
            for name, x in numbers.items()
            if name != "histogram"
        }
        self._show({"weights": shown}, epoch)

    def _append(self, name, line):
        path = self._workdir / name
        with saving(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _show(self, numbers, epoch):
        if self._events is not None:
            self._events.show(numbers, epoch)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _events(folder, first_epoch):
    """The TensorBoard events of a run, None if tensorboardX is not installed."""
    try:
        from wcjax.run_folder.tensorboard import Events
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "tensorboardX":
            raise
        log.info("No events for TensorBoard: tensorboardX is not installed.")
        return None
    return Events(folder, first_epoch)


class NoMetrics:
    """A MetricsWriter that writes nothing, for all processes but the first."""

    def write(self, line: dict) -> None:
        pass

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        pass

    def close(self) -> None:
        pass
