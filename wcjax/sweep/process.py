"""The process of one run, `python -m wcjax.sweep one FOLDER`: how a sweep starts it, and what it does."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

from wcjax import run_folder
from wcjax.errors import DivergedError, InitialWeightsError, InputError, InUseError, Preempted
from wcjax.training.start import EXIT_PREEMPTED, HUGE_PAGES

EXIT_CANNOT_FINISH = 3  # the run has a failed.json

FIND_DEVICES = "from wcjax.system.devices import check_devices; check_devices()"


def python_command(*arguments: str) -> list[str]:
    """The command that starts Python with the arguments. It imports from where this process imports.

    Without -P, `-m` and `-c` import from the working folder first, where a file of the user may shadow a module.
    """
    imports_from_working_folder = any(os.path.abspath(path) == os.getcwd() for path in sys.path)
    return [sys.executable, *([] if imports_from_working_folder else ["-P"]), *arguments]


def check_devices_of_runs() -> None:
    """Raises InputError if JAX has no device of the platform that JAX_PLATFORMS names, so that no run could start.

    Another process looks for the devices, because a TPU that this process held would be missing in the runs.
    """
    if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):
        return
    search = subprocess.run(python_command("-c", FIND_DEVICES), capture_output=True, text=True)
    if search.returncode:
        raise InputError(search.stderr.strip().rpartition("\n")[2].removeprefix("wcjax.errors.InputError: "))


def start_run(folder: pathlib.Path, config: dict, log: pathlib.Path, jobs: int) -> subprocess.Popen:
    """Starts the process of a run. Its output is appended to the file `log`. jobs: runs that share the accelerator."""
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3g}"} if jobs > 1 else {}
    command = python_command("-m", "wcjax.sweep", "one", str(folder))
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, env=HUGE_PAGES | share | os.environ
        )
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(config))
    return process


def train_one(folder: pathlib.Path, config: dict) -> int:
    """Trains a run in this process and returns its exit code.

    EXIT_PREEMPTED: the run was stopped, or another process is training in the folder and may still be killed.
    """
    from wcjax.training import train

    try:
        train(config, folder)
    except (DivergedError, InitialWeightsError) as error:
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write(folder, "failed.json", {"reason": str(error), "config": config})
        return EXIT_CANNOT_FINISH
    except (InUseError, Preempted, KeyboardInterrupt):
        return EXIT_PREEMPTED
    return 0
