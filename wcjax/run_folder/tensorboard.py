"""The numbers of a run as TensorBoard events."""

import os
import pathlib
import socket
import time
from collections.abc import Iterable

import numpy as np
from flax import traverse_util
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams, scalar

from wcjax.system.files import saving


class Events:
    """A new file of events in a folder."""

    # Not tensorboardX's SummaryWriter, whose thread dies on a full disk: add_scalar then waits for it for ever. Its
    # add_hparams would also put the hyperparameters into a separate folder, which TensorBoard shows as a run.

    def __init__(self, folder: pathlib.Path, first_epoch: int, hyperparameters: dict, results: Iterable[str]):
        """Events from first_epoch on that the folder already holds are hidden.

        hyperparameters, results: the columns of TensorBoard's HPARAMS tab, and the names of numbers shown next to them.
        """
        self._folder = folder
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # a process may resume its run within a second
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
        with saving(folder):
            folder.mkdir(exist_ok=True)
            self._file = RecordWriter(str(folder / name))
        self._add(file_version="brain.Event:2")
        self._add(step=first_epoch, session_log=SessionLog(status=SessionLog.START))
        experiment, session, self._end_of_session = hparams(hyperparameters, dict.fromkeys(results))
        self._add(summary=experiment)
        self._add(summary=session)

    def show(self, numbers: dict, epoch: int) -> None:
        """Adds a point at this epoch for each of the numbers: {name: number, list or dict}. Of a list, the median."""
        for name, value in traverse_util.flatten_dict(numbers, sep="/").items():
            self._add(step=epoch, summary=scalar(name, np.median(value)))
        with saving(self._folder):
            self._file.flush()

    def end_session(self) -> None:
        """Marks the run as finished in the HPARAMS tab."""
        self._add(summary=self._end_of_session)

    def _add(self, **content):
        with saving(self._folder):
            self._file.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        with saving(self._folder):
            self._file.close()
