"""What a run writes for people and for `wcjax.analysis`: lines for each epoch, TensorBoard, summary.json, progress."""

import json
import logging
import os
import pathlib
import socket
import sys
import time

import jax
import numpy as np
import tqdm
from flax import traverse_util
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from wcjax.errors import reading, saving
from wcjax.training.run_files import METRICS, WEIGHTS, read_lines

log = logging.getLogger(__name__)


def write_json(path, value) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_atomically(path, text: str) -> None:
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with saving(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def read_metrics(workdir, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of metrics.jsonl or weights.jsonl, one dict for each epoch; one that was torn by a kill is left out."""
    path = pathlib.Path(workdir, name)
    with reading(path):
        return read_lines(path, WEIGHTS if name == "weights.jsonl" else METRICS) if path.exists() else []


class MetricsWriter:
    """Appends one line for each epoch to metrics.jsonl and weights.jsonl, and the numbers to TensorBoard."""

    def __init__(self, workdir, done_epochs: int):
        """Lines of epochs after done_epochs are left from a run that was stopped, and are removed; -1: all of them."""
        self._workdir = pathlib.Path(workdir)
        for name in ("metrics.jsonl", "weights.jsonl"):
            found = read_metrics(workdir, name)
            kept = [json.dumps(line) + "\n" for line in found if line["epoch"] <= done_epochs]
            write_atomically(self._workdir / name, "".join(kept))
        # Not tensorboardX's SummaryWriter, whose thread dies on a full disk: add_scalar then waits for it for ever.
        self._tensorboard = self._workdir / "tensorboard"
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        with saving(self._tensorboard):
            self._tensorboard.mkdir(exist_ok=True)
            self._events = RecordWriter(str(self._tensorboard / name))
        self._add_event(file_version="brain.Event:2")
        self._add_event(step=done_epochs + 1, session_log=SessionLog(status=SessionLog.START))  # hides what was there

    def write(self, line: dict) -> None:
        """line: 'epoch' and numbers by name, or dicts of them."""
        self._append("metrics.jsonl", line)
        self._show(line, line["epoch"])

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        """layers: from `weights.describe_layers`. TensorBoard gets all but the histograms: weights/<number>/<layer>."""
        self._append("weights.jsonl", {"epoch": epoch, "layers": layers})
        shown = {f"{x}/{layer}": v for layer, of in layers.items() for x, v in of.items() if x != "histogram"}
        self._show({"weights": shown}, epoch)

    def _append(self, name, line):
        path = self._workdir / name
        with saving(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _show(self, numbers, epoch):
        for name, value in traverse_util.flatten_dict(numbers, sep="/").items():
            self._add_event(step=epoch, summary=scalar(name, np.median(value)))  # of the quantiles, if value is a list
        with saving(self._tensorboard):
            self._events.flush()

    def _add_event(self, **content):
        with saving(self._tensorboard):
            self._events.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        with saving(self._tensorboard):
            self._events.close()


class NoMetrics:
    """Stands in for MetricsWriter in the processes that write nothing."""

    def write(self, line: dict) -> None:
        pass

    def write_weights(self, epoch: int, layers: dict[str, dict]) -> None:
        pass

    def close(self) -> None:
        pass


class Progress:
    """A bar with images/s and the time left on a terminal; elsewhere plain lines. In the first process alone."""

    def __init__(self, total_images: int, done_images: int):
        self._bar = tqdm.tqdm(
            total=total_images,
            initial=done_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=jax.process_index() != 0 or not sys.stderr.isatty(),
        )

    def advance(self, images: int) -> None:
        self._bar.update(images)

    def say(self, text: str) -> None:
        """One line above the bar."""
        if jax.process_index() == 0:
            tqdm.tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
