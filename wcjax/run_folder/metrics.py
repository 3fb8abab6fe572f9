"""The lines that a run writes for each epoch, and the same numbers for TensorBoard."""

import json
import logging
import os
import pathlib

from ml_collections import ConfigDict

from wcjax import run_folder
from wcjax.config.keys import MAY_DIFFER, flat_config
from wcjax.system import processes
from wcjax.system.files import saving, write_text

log = logging.getLogger(__name__)

# {field of metrics.jsonl: its tag in TensorBoard}; other fields keep their names, and epoch is the horizontal axis.
TAGS = {f"{split}_{number}": f"{split}/{number}" for split in ("train", "val") for number in ("loss", "accuracy")}
TAGS["learning_rate"] = "train/learning_rate"
# {field of summary.json: its tag in TensorBoard}; these are the metrics of TensorBoard's HPARAMS tab.
SUMMARY_TAGS = {"test_accuracy": "test/accuracy", "test_loss": "test/loss", "best_val_accuracy": "val/best_accuracy"}


class MetricsWriter:
    """Appends one line for each epoch to metrics.jsonl and weights.jsonl, and the numbers to TensorBoard.

    Only the first process writes anything.
    """

    def __init__(self, workdir, config: ConfigDict, done_epochs: int):
        """Removes the lines of epochs after done_epochs, which an interrupted run left; with -1, all lines.

        config: its keys are the hyperparameters that TensorBoard shows.
        """
        self._workdir, self._events = pathlib.Path(workdir), None
        self._is_first = processes.is_first()
        if not self._is_first:
            return
        for name in ("metrics.jsonl", "weights.jsonl"):
            lines = [line for line in run_folder.read_lines(workdir, name) if line["epoch"] <= done_epochs]
            first = 0 if name == "weights.jsonl" else 1
            if missing := sorted({*range(first, done_epochs + 1)} - {line["epoch"] for line in lines}):
                message = "%s has no lines of the finished epochs %s. Was the folder copied while the run trained?"
                log.warning(message, self._workdir / name, missing)
            write_text(self._workdir / name, "".join(json.dumps(line) + "\n" for line in lines))
        self._events = _open_events(self._workdir / "tensorboard", done_epochs + 1, config)

    def write_metrics(self, metrics: dict) -> None:
        """Appends the line of an epoch to metrics.jsonl and sends its numbers to TensorBoard.

        metrics: {'epoch': int, name: number or dict of numbers, ...}.
        """
        self._append("metrics.jsonl", metrics)
        numbers = {TAGS.get(name, name): value for name, value in metrics.items() if name != "epoch"}
        self._show(numbers, metrics["epoch"])

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        """Appends the line of an epoch to weights.jsonl and sends its numbers, but no histograms, to TensorBoard.

        layers: from `weights.layer_statistics`.
        """
        self._append("weights.jsonl", {"epoch": epoch, "layers": layers})
        numbers = {
            f"{name}/{layer}": x
            for layer, statistics in layers.items()
            for name, x in statistics.items()
            if name != "histogram"
        }
        self._show({"weights": numbers}, epoch)

    def write_summary(self, summary: dict) -> None:
        """Sends the results of the run to TensorBoard. summary: the content of summary.json."""
        self._show({tag: summary[name] for name, tag in SUMMARY_TAGS.items()}, summary["epochs"])
        if self._events is not None:
            self._events.end_session()

    def _append(self, name, line):
        if not self._is_first:
            return
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


def _hyperparameters(config: ConfigDict) -> dict:
    """{'reparam.a': 0.6, ...}: every key of a config that makes it another run."""
    return {
        key: value if isinstance(value, str | bool | int | float) else str(value)
        for key, value in flat_config(config).items()
        if key.partition(".")[0] not in MAY_DIFFER
    }


def _open_events(folder: pathlib.Path, first_epoch: int, config: ConfigDict):
    """The TensorBoard events of a run, None if tensorboardX is not installed."""
    try:
        from wcjax.run_folder.tensorboard import Events
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "tensorboardX":
            raise
        log.info("No events for TensorBoard: tensorboardX is not installed.")
        return None
    return Events(folder, first_epoch, _hyperparameters(config), SUMMARY_TAGS.values())
