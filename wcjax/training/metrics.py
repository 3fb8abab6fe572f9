"""What a run writes for people and for `wcjax.analysis`: metrics.jsonl, TensorBoard events, summary.json, progress."""

import json
import logging
import os
import pathlib
import sys

import tqdm
from flax import traverse_util

log = logging.getLogger(__name__)


def write_json(path, value) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_atomically(path, text: str) -> None:
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_metrics(workdir) -> list[dict]:
    """The lines of metrics.jsonl, one dict for each epoch; a line that was torn by a kill is left out."""
    path = pathlib.Path(workdir, "metrics.jsonl")
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline was torn


class MetricsWriter:
    """Appends one line for each epoch to metrics.jsonl, and the same numbers to TensorBoard."""

    def __init__(self, workdir, first_epoch: int):
        """Lines of first_epoch and later are left from a run that was stopped, and are removed."""
        from tensorboardX import SummaryWriter

        self._path = pathlib.Path(workdir, "metrics.jsonl")
        kept = [json.dumps(line) + "\n" for line in read_metrics(workdir) if line["epoch"] < first_epoch]
        write_atomically(self._path, "".join(kept))
        self._events = SummaryWriter(str(pathlib.Path(workdir, "tensorboard")), purge_step=first_epoch)

    def write(self, line: dict) -> None:
        """line: 'epoch' and numbers by name, or dicts of them."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in traverse_util.flatten_dict(line, sep="/").items():
            self._events.add_scalar(name, value, line["epoch"])
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class Progress:
    """A bar with images/s and the time left on a terminal; elsewhere plain lines."""

    def __init__(self, total_images: int, done_images: int):
        self._bar = tqdm.tqdm(
            total=total_images,
            initial=done_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not sys.stderr.isatty(),
        )

    def advance(self, images: int) -> None:
        self._bar.update(images)

    def say(self, text: str) -> None:
        """One line above the bar."""
        tqdm.tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
