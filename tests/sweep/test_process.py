"""The process of one run of a sweep: what it imports, its share of the accelerator, and how it ends."""

import contextlib
import sys

import pytest

from wcjax import run_folder, training
from wcjax.errors import DivergedError, InitialWeightsError, InputError, InUseError, Preempted
from wcjax.sweep import process
from wcjax.training.start import EXIT_PREEMPTED


@pytest.mark.parametrize("jobs, share", [(1, "None"), (2, "0.45"), (200, "0.0045")])
def test_jobs_have_equal_shares_of_the_accelerator(tmp_path, monkeypatch, jobs, share):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    print_share = "import os; print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'))"
    monkeypatch.setattr(process, "python_command", lambda *_: [sys.executable, "-c", print_share])
    process.start_run(tmp_path / "run", {}, tmp_path / "log", jobs).wait()
    assert (tmp_path / "log").read_text() == f"{share}\n"


@pytest.mark.parametrize(
    "error, code",
    [
        (DivergedError("it became nan"), process.EXIT_CANNOT_FINISH),
        (InitialWeightsError("it does not fit"), process.EXIT_CANNOT_FINISH),
        (InUseError("another process is at it"), EXIT_PREEMPTED),
        (Preempted("SIGTERM came"), EXIT_PREEMPTED),
        (InputError("the data set is not there"), None),  # another start may fix it
    ],
)
def test_a_run_leaves_a_reason_only_if_it_cannot_finish(tmp_path, monkeypatch, error, code):
    def train(config, folder):
        raise error

    monkeypatch.setattr(training, "train", train, raising=False)
    exit_code = None
    with contextlib.suppress(InputError):
        exit_code = process.train_one(tmp_path, {"seed": 1})
    assert exit_code == code
    failure = {"reason": str(error), "config": {"seed": 1}} if code == process.EXIT_CANNOT_FINISH else None
    assert run_folder.read(tmp_path, "failed.json") == failure


@pytest.mark.parametrize("imports_from_folder", [False, True])
def test_runs_import_from_where_the_sweep_imports(tmp_path, monkeypatch, imports_from_folder):
    (tmp_path / "random.py").write_text("raise SystemExit('the file of the user')")
    monkeypatch.chdir(tmp_path)
    if imports_from_folder:
        monkeypatch.syspath_prepend(tmp_path)
    run = process.start_run(tmp_path / "run", {"epochs": 0}, tmp_path / "log", jobs=1)
    run.wait()
    error = "the file of the user" if imports_from_folder else "error: config.epochs must be between 1 and"
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith(error)
