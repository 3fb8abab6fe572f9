import pathlib
import random
import time
from typing import NamedTuple

import pytest

from tests.data import pictures
from tests.faults import attempts
from tests.training import runs
from tests.training.conftest import compilation_cache  # noqa: F401

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


@pytest.fixture(params=[1, pytest.param(20, marks=pytest.mark.faults)], ids=["once", "often"])
def chance(request):
    """How often and when a fault strikes."""
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
