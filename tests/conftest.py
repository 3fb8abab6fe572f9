"""Tests disable most optimizations of XLA, because compiling would take longer than running.

JAX's own tests do the same. Tests of rounding errors, and long runs, compile as users do: with the fixture `optimized`.
"""

import gc
import os
import tempfile

import jax
import pytest

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
os.environ["TERM"] = "xterm"  # lines are not redrawn on a dumb terminal
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_finish():
    gc.freeze()  # what is imported by now stays, and takes most of the time of each garbage collection


@pytest.fixture
def optimized():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What libraries and killed processes leave behind is where pytest removes it."""
    folder = str(tmp_path_factory.getbasetemp())
    if len(folder) < 60:  # the whole path of a socket has at most 104 letters
        tempfile.tempdir = os.environ["TMPDIR"] = folder
