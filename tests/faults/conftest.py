import collections
import pathlib
import random
import time
from typing import NamedTuple

import pytest

from tests.data import pictures
from tests.faults import attempts
from tests.training import runs
from tests.training.conftest import compilation_cache  # noqa: F401

LONG = 20  # faults of a kind
STREAMED = ("--config.dataset=imagenet", "--config.image_size=16", "--config.batch_size=8", "--config.epochs=3")


class Chance(NamedTuple):
    times: int  # how often the fault is to strike
    random: random.Random  # with a fixed seed


class Unbroken(NamedTuple):
    """A run that nothing happened to."""

    run: pathlib.Path
    seconds: float  # from the first line of its log to its end
    flags: tuple = ()  # of train.py
    images: pathlib.Path | None = None  # the folder that it reads

    def same(self, run) -> None:
        """Fails unless run has the same bits, and one line for each epoch."""
        runs.assert_same_run(run, self.run)


@pytest.fixture(params=[1, pytest.param(LONG, marks=pytest.mark.faults)], ids=["once", "often"])
def chance(request, record_property):
    """How often and when a fault strikes: once, or LONG times in the long form."""
    record_property("faults", request.param)
    return Chance(request.param, random.Random(request.node.name))


@pytest.fixture(scope="session")
def unbroken(compilation_cache, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("unbroken")
    return Unbroken(folder / "run", _train(folder))


@pytest.fixture(scope="session")
def streamed(compilation_cache, tmp_path_factory):  # noqa: F811
    """A run that reads image files."""
    folder = tmp_path_factory.mktemp("streamed")
    images = pictures.class_folders(folder / "set")
    flags = (*STREAMED, f"--config.data_dir={images}")
    return Unbroken(folder / "run", _train(folder, *flags), flags, images)


def _train(folder, *flags) -> float:
    """Makes folder/run, once its programs are compiled; returns the seconds that it took."""
    for name in ("compiles", "run"):
        attempt = attempts.train(folder / name, *flags)
        assert attempt.wait_for_training(), attempt.output()
        began = time.monotonic()
        assert attempt.end() == 0, attempt.output()
    return time.monotonic() - began


def pytest_terminal_summary(terminalreporter):
    """Shows how many faults of each kind were survived, if there were many."""
    survived = collections.Counter()
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            survived[report.nodeid.partition("::")[2]] += count if name == "faults" and report.when == "call" else 0
    for test, count in survived.items():
        if count >= LONG:
            terminalreporter.write_line(f"{count} faults survived: {test}")
