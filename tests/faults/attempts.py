"""Starts of train.py that something happens to, each in a new process.

A fork server has imported all that a run imports, so that a start takes a tenth of a second.
"""

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
import tempfile
import time

import jax
import psutil

from tests.permissions import obey_permissions
from tests.training import runs

PATIENCE = 600  # seconds after which a process counts as one that hangs
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["wcjax.training.loop", "tests.training.runs", "sklearn.datasets", "grain", "absl.app"])
_numbers = itertools.count()


@functools.cache
def _logs():
    """A folder that stays writable whatever happens to the run folders."""
    return tempfile.TemporaryDirectory(prefix="attempts")


class Attempt:
    """`train.py --workdir run *flags` with the config of tiny.py, after the calls in `changes`, in a process."""

    def __init__(self, run, *flags, changes=()):
        self.log = pathlib.Path(_logs().name, f"{next(_numbers)}.log")
        arguments = ["train.py", "--config=tests/faults/tiny.py", f"--workdir={run}", *flags]
        self.process = _CONTEXT.Process(target=_train, args=(arguments, self.log, changes))
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

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def error(self) -> str:
        """The last line of the output, which must not be the end of a traceback."""
        assert "train.py" not in self.output(), self.output()
        return self.output().splitlines()[-1]


def _redirect(log):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(runs.ROOT)


def _train(arguments, log, changes):
    _redirect(log)
    for change in changes:
        change()
    sys.argv = arguments
    os.environ.setdefault("GLIBC_TUNABLES", "")  # else train.py would start the fork server again
    try:
        runpy.run_path("train.py", run_name="__main__")
    finally:
        jax.distributed.shutdown()  # as at the end of a process that was not forked


def run_main(module, *arguments) -> tuple[int, str]:
    """(exit code, output) of `python -m module arguments` in a process that obeys permissions."""
    log = pathlib.Path(_logs().name, f"{next(_numbers)}.log")
    process = _CONTEXT.Process(target=_main, args=(module, list(map(str, arguments)), log))
    process.start()
    process.join(PATIENCE)
    return process.exitcode, log.read_text()


def _main(module, arguments, log):
    _redirect(log)
    runs.register_tiny()
    obey_permissions()
    sys.exit(importlib.import_module(module).main(arguments))


def finish(run, *flags, changes=()) -> None:
    attempt = Attempt(run, *flags, changes=changes)
    assert attempt.end() == 0, attempt.output()


def strike(folder, chance, seconds, fault, check, *flags, changes=()) -> None:
    """Starts a run again and again, each time with a fault at a random moment, until chance.times have struck.

    Then, and whenever a run is finished before that, check(run) compares it with an unbroken one.

    Args:
      folder: for the run folders.
      chance: from the fixture of this name.
      seconds: the time that training may take, from which moments are drawn.
      fault: (attempt, run) -> whether it struck. It returns when the process has ended.
      check: run -> None.
    """
    struck, finished = 0, 0
    while struck < chance.times:
        run = pathlib.Path(folder, f"run{finished}")
        attempt = Attempt(run, *flags, changes=changes)
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
