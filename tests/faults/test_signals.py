"""SIGTERM and Ctrl-C before the first step: the process ends at once, whatever it is doing, and trains nothing."""

import contextlib
import functools
import gc
import importlib
import os
import signal
import subprocess
import sys

import pytest

from tests.faults import attempts
from tests.processes import ROOT
from tests.training import runs

pytestmark = pytest.mark.long

TERM, INT = signal.SIGTERM, signal.SIGINT
CODES = {TERM: 75, INT: 130}


def collect_and_signal(number):
    """Sends the signal within a callback of the garbage collector, where Python drops what a handler raises."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), number)

    gc.callbacks.append(callback)
    gc.collect()


def signal_and_stay(number):
    """Sends the signal within a call that does not come back while this process is there; no handler can run in it."""
    os.system(f"kill -{int(number)} $PPID; while kill -0 $PPID; do sleep 0.1; done")


def act_before(owner, name, act, number):
    """Makes act(number) happen whenever owner.name is called, and drops the exceptions that it raises."""
    owner = importlib.import_module(owner)
    call = getattr(owner, name)

    def act_and_call(*args, **options):
        with contextlib.suppress(Exception):
            act(number)
        return call(*args, **options)

    setattr(owner, name, act_and_call)


MOMENTS = [
    (INT, "wcjax.training.loop", "load_dataset", collect_and_signal),
    (TERM, "wcjax.training.compilation", "compile_train_step", collect_and_signal),
    (TERM, "wcjax.training.compilation", "compile_eval_step", signal_and_stay),
]


@pytest.mark.parametrize("number, owner, name, act", MOMENTS)
def test_a_signal_while_a_run_starts_ends_it_at_once(compilation_cache, tmp_path, number, owner, name, act):
    attempt = attempts.train(tmp_path / "run", changes=(functools.partial(act_before, owner, name, act, number),))
    assert attempt.end() == CODES[number], attempt.output()
    assert attempt.error() == f"stopped by {number.name}; run the same command to resume."
    assert not runs.saved(tmp_path / "run")


SIGNAL_AT_IMPORT = """
import os, runpy, sys
_, module, number, program, *arguments = sys.argv
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            try:
                os.kill(os.getpid(), int(number))
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
sys.argv = [program, *arguments]
runpy.run_path(program, run_name="__main__") if program == "train.py" else runpy.run_module(program, None, "__main__")
"""
TRAIN = ["train.py", "--config=configs/digits.py", "--workdir={}/run"]


@pytest.mark.parametrize(
    "module, number, arguments",
    [
        ("jax", INT, TRAIN),
        ("optuna.trial", TERM, ["wcjax.sweep", "grid", "--config=configs/digits.py", "--out={}/run"]),
        ("orbax.checkpoint", INT, ["wcjax.sweep", "one", "{}/run"]),
    ],
)
def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path, module, number, arguments):
    arguments = [argument.format(tmp_path) for argument in arguments]
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_IMPORT, module, str(int(number)), *arguments],
        cwd=ROOT,
        env=os.environ | {"GLIBC_TUNABLES": ""},  # else train.py would start itself again
        input="{}",
        capture_output=True,
        text=True,
    )
    assert ended.returncode == CODES[number], ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
