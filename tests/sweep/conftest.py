"""A sweep whose runs end at once."""

import json
import signal
import types

import pytest

from tests.run_folder.examples import SUMMARY
from wcjax.commands import command
from wcjax.sweep import __main__ as sweep
from wcjax.sweep import process
from wcjax.system.files import write_json


class Trainer:
    """Trains instead of the processes of runs: each writes its summary.json at once.

    Attributes:
      trained, at_work: names of runs; counts: numbers of runs at work; jobs: how many shared the accelerator.
      ends: {name: how it ends instead}: an exit code, the reason of a failure, or a list of these, the last one first.
      during: is called while a run trains.
    """

    def __init__(self):
        self.trained, self.at_work, self.counts, self.jobs = [], [], [], set()
        self.ends, self.during = {}, lambda: None

    def sweep(self, *arguments, **times):
        """The exit code of a command line. Trials never become stale, however busy the machine is."""
        times = {"poll": 0.02, "grace": 10**6, "pause": 0.02} | times
        return command(lambda argv: sweep.run_command(argv, self, **times))(list(map(str, arguments)))

    def __call__(self, folder, config, log, jobs):
        self.trained.append(folder.name)
        self.jobs.add(jobs)
        assert self.trained.count(folder.name) < 10, "it is started again and again"
        return types.SimpleNamespace(wait=lambda: self.train(folder, config), poll=lambda: 0)

    def train(self, folder, config):
        self.at_work.append(folder.name)
        self.counts.append(len(self.at_work))
        self.during()
        self.at_work.remove(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        end = self.ends.get(folder.name)
        end = end.pop() if isinstance(end, list) else end
        if isinstance(end, int):
            return end
        if end:
            write_json(folder / "failed.json", {"reason": end, "config": config})
            return process.EXIT_CANNOT_FINISH
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        accuracy = 0.9 - abs(config["reparam"]["a"] - 0.6) - abs(config["reparam"]["b"] - 0.8)
        write_json(folder / "summary.json", SUMMARY | {"epochs": 10, "best_val_accuracy": accuracy})
        return 0


@pytest.fixture
def trainer():
    """A Trainer. A sweep that does not end fails its test; on a quiet machine the slowest takes 5 seconds."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the sweep does not end"))
    signal.alarm(300)
    yield Trainer()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
