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
from tests.training import runs

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
both_signals = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)


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


def act_before(module, name, act, number):
    """Makes act(number) happen whenever module.name is called, and drops the exceptions that it raises."""
    module = importlib.import_module(module)
    call = getattr(module, name)

    def act_and_call(*args, **options):
        with contextlib.suppress(Exception):
            act(number)
        return call(*args, **options)

    setattr(module, name, act_and_call)


LOOP = "wcjax.training.loop"
MOMENTS = [(LOOP, "load_dataset"), ("wcjax.training.step", "init_state"), (LOOP, "_restore"), (LOOP, "_compile")]


@both_signals
@pytest.mark.parametrize("module, name", MOMENTS)
def test_a_signal_while_a_run_starts_ends_it_at_once(compilation_cache, tmp_path, module, name, number):
    change = functools.partial(act_before, module, name, collect_and_signal, number)
    attempt = attempts.Attempt(tmp_path / "run", changes=(change,))
    assert attempt.end() == CODES[number], attempt.said()
    assert attempt.error() == f"stopped by {number.name}; the same command resumes from what is saved."
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_signal_within_a_long_call_is_not_held_back_until_it_returns(compilation_cache, tmp_path):
    change = functools.partial(act_before, LOOP, "_compile", signal_and_stay, signal.SIGTERM)
    attempt = attempts.Attempt(tmp_path / "run", changes=(change,))
    assert attempt.end() == 75, attempt.said()


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


@both_signals
@pytest.mark.parametrize(
    "module, program, arguments",
    [
        ("absl", "train.py", ["--config=configs/digits.py", "--workdir={}/run"]),
        ("jax", "train.py", ["--config=configs/digits.py", "--workdir={}/run"]),
        ("orbax.checkpoint", "train.py", ["--config=configs/digits.py", "--workdir={}/run"]),
        ("optuna", "wcjax.sweep", ["grid", "--config=configs/digits.py", "--out={}/run"]),
        ("orbax.checkpoint", "wcjax.sweep", ["one", "{}/run"]),
    ],
)
def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path, module, program, arguments, number):
    arguments = [argument.format(tmp_path) for argument in arguments]
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_IMPORT, module, str(int(number)), program, *arguments],
        cwd=runs.ROOT,
        env=os.environ | {"GLIBC_TUNABLES": ""},  # else train.py would start itself again
        input="{}",
        capture_output=True,
        text=True,
    )
    assert ended.returncode == CODES[number], ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
