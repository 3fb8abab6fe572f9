"""The lines that a run writes for each epoch, and the same numbers for TensorBoard."""

import json
import os
import pathlib
import socket
import time

import numpy as np
from flax import traverse_util
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from wcjax import run_folder
from wcjax.files import saving, write_text


class MetricsWriter:
    """Appends one line for each epoch to metrics.jsonl and weights.jsonl, and the numbers to TensorBoard."""

    def __init__(self, workdir, done_epochs: int):
        """Removes the lines of epochs after done_epochs, which an interrupted run left; with -1, all lines."""
        self._workdir = pathlib.Path(workdir)
        for name in ("metrics.jsonl", "weights.jsonl"):
            lines = [line for line in run_folder.read_lines(workdir, name) if line["epoch"] <= done_epochs]
            write_text(self._workdir / name, "".join(json.dumps(line) + "\n" for line in lines))
        # Not tensorboardX's SummaryWriter, whose thread dies on a full disk: add_scalar then waits for it for ever.
        self._tensorboard = self._workdir / "tensorboard"
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        with saving(self._tensorboard):
            self._tensorboard.mkdir(exist_ok=True)
            self._events = RecordWriter(str(self._tensorboard / name))
        self._add_event(file_version="brain.Event:2")
        self._add_event(step=done_epochs + 1, session_log=SessionLog(status=SessionLog.START))  # hides older events

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
        for name, value in traverse_util.flatten_dict(numbers, sep="/").items():
            self._add_event(step=epoch, summary=scalar(name, np.median(value)))  # value may be a list of quantiles
        with saving(self._tensorboard):
            self._events.flush()

    def _add_event(self, **content):
        with saving(self._tensorboard):
            self._events.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        with saving(self._tensorboard):
            self._events.close()


class NoMetrics:
    """A MetricsWriter that writes nothing, for all processes but the first."""

    def write(self, line: dict) -> None:
        pass

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        pass

    def close(self) -> None:
        pass
