"""Starts of train.py that something happens to, each in a new process.

A fork server has imported all that a run imports, so that a start takes a tenth of a second.
"""

import contextlib
import multiprocessing
import os
import pathlib
import re
import runpy
import signal
import sys
import tempfile
import time

import jax
import psutil

from tests.processes import ROOT
from tests.training import runs

PATIENCE = 600  # seconds after which a process counts as one that hangs
_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ("wcjax.training.loop", "tests.training.runs", "sklearn.datasets", "grain", "absl.app", "optuna")
_CONTEXT.set_forkserver_preload([*_IMPORTED, "matplotlib.pyplot"])


class Attempt:
    """`python program *arguments`, or `python -m program`, after the calls in `changes`, in a process."""

    def __init__(self, program, *arguments, changes=()):
        self._folder = tempfile.TemporaryDirectory()  # it stays writable whatever happens to the run folder
        self.log = pathlib.Path(self._folder.name, "log")
        self.process = _CONTEXT.Process(target=_run, args=(program, list(map(str, arguments)), self.log, changes))
        self.process.start()

    def wait_for(self, condition) -> bool:
        """Returns once condition() is true, or False if the process ends before that."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self.process.is_alive():
                return False
            assert time.monotonic() < deadline, f"nothing happened for {PATIENCE} s:\n{self.output()}"
            time.sleep(0.002)
        return True

    def wait_for_training(self) -> bool:
        return self.wait_for(lambda: "Compiling ..." in self.output())

    def send(self, number) -> bool:
        """Whether the process was there to get the signal."""
        alive = self.process.is_alive()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        return alive

    def workers(self) -> list:
        """Its processes that decode images."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
        return []

    def end(self) -> int:
        """Waits for the process and returns its exit code. Fails if the process hangs."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"it hangs:\n{self.output()}")
        return self.process.exitcode

    def failed_with(self, pattern) -> bool:
        """Whether the process ended with this error: False if it had done its work before the fault."""
        if self.end() == 0:
            return False
        assert self.process.exitcode == 1, self.output()
        assert re.match(f"error: {pattern}", self.error()), self.output()
        return True

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def error(self) -> str:
        """The last line of the output, which must not be the end of a traceback."""
        assert "train.py" not in self.output(), self.output()
        return self.output().splitlines()[-1]


def _run(program, arguments, log, changes):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(ROOT)
    runs.register_tiny()
    for change in changes:
        change()
    sys.argv = [program, *arguments]
    os.environ.setdefault("GLIBC_TUNABLES", "")  # else train.py would start the fork server again
    try:
        (runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="__main__")
    finally:
        jax.distributed.shutdown()  # as at the end of a process that was not forked


def train(run, *flags, changes=()) -> Attempt:
    """Starts train.py with the config of tiny.py."""
    return Attempt("train.py", "--config=tests/faults/tiny.py", f"--workdir={run}", *flags, changes=changes)


def finish(run, *flags, changes=()) -> None:
    attempt = train(run, *flags, changes=changes)
    assert attempt.end() == 0, attempt.output()


def strike(folder, chance, seconds, fault, check, *flags, changes=()) -> None:
    """Starts a run in folder again and again until faults at random moments have struck chance.times.

    Whenever a run is finished, and in the end, check(run) compares it with an unbroken one.

    seconds: the time that training takes, from which moments are drawn.
    fault: (attempt, run) -> whether it struck. It returns when the process has ended.
    """
    struck, finished = 0, 0
    while struck < chance.times:
        run = pathlib.Path(folder, f"run{finished}")
        attempt = train(run, *flags, changes=changes)
        moment = chance.random.uniform(0, seconds)
        print(f"fault {struck} of {run.name}, at {moment:.3f} s")  # pytest shows it of a test that failed
        if attempt.wait_for_training():
            attempt.process.join(moment)
            struck += fault(attempt, run)
        else:
            assert attempt.end() == 0, attempt.output()
        if (run / "summary.json").exists():
            check(run)
            finished += 1
    if run.exists() and not (run / "summary.json").exists():
        finish(run, *flags, changes=changes)
        check(run)


def stop(attempt, run) -> bool:
    """SIGTERM."""
    struck = attempt.send(signal.SIGTERM)
    assert attempt.end() in (0, 75), attempt.output()
    return struck


def kill(attempt, run) -> bool:
    """kill -9."""
    struck = attempt.send(signal.SIGKILL)
    assert attempt.end() in (0, -signal.SIGKILL), attempt.output()
    return struck
