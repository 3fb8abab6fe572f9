"""Each run of a sweep is trained once, however many sweeps share the work and however its process ends."""

import functools
import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from concurrent import futures

import optuna
import pytest

from tests.sweep.command_lines import GRID, NAMES, RUNS
from wcjax.sweep.table import LiveTable
from wcjax.training.start import EXIT_PREEMPTED


def test_every_run_is_trained_once_with_two_jobs_at_a_time(trainer, tmp_path):
    trainer.during = functools.partial(threading.Barrier(2).wait, timeout=200)
    assert trainer.sweep(*RUNS, "--out", tmp_path, "--jobs", 2) == 0
    assert sorted(trainer.trained) == NAMES
    assert max(trainer.counts) == 2 and trainer.jobs == {2}
    assert json.loads((tmp_path / "resnet8_plain_seed7" / "config.json").read_text())["reparam"]["name"] == "none"


def test_no_more_jobs_than_runs_share_the_accelerator(trainer, tmp_path):
    assert trainer.sweep(*GRID, "--over", "learning_rate=0.1,0.2,0.3", "--out", tmp_path, "--jobs", 200) == 0
    assert trainer.jobs == {3, 2}, "three points of the grid, and two more seeds of the best one"


@pytest.mark.parametrize(
    "end, code, row, times",
    [
        ("largest |w| does not fit", 0, r"failed | 0/10 |  | largest \|w\| does not fit", 1),
        (-9, 1, "lost | 0/10 |  | killed by signal 9; run the same command to resume", 2),
        (4, 1, "lost | 0/10 |  | exit code 4, see {}/logs/resnet8_wc_seed7.log: ; run the same command to resume", 2),
        ([None, EXIT_PREEMPTED, EXIT_PREEMPTED], 0, "finished | 0/10 | 30.00% | ", 3),
    ],
)
def test_how_a_run_ends_decides_if_it_is_tried_again(trainer, tmp_path, capsys, end, code, row, times):
    trainer.ends = {"resnet8_wc_seed7": end}
    assert trainer.sweep(*RUNS, "--out", tmp_path) == code
    table = re.sub(" +", " ", capsys.readouterr().out)
    assert re.sub(" +", " ", f"| resnet8_wc_seed7 | {row.format(tmp_path)} |") in table
    trainer.ends = {}
    assert trainer.sweep(*RUNS, "--out", tmp_path) == 0
    assert sorted(trainer.trained) == NAMES + ["resnet8_wc_seed7"] * (times - 1)


def test_a_run_in_use_is_not_started_again_at_once(trainer, tmp_path):
    trainer.ends = dict.fromkeys(NAMES, EXIT_PREEMPTED)
    trainer.during = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert trainer.sweep(*RUNS, "--out", tmp_path, pause=1000.0) == EXIT_PREEMPTED
    assert len(trainer.trained) == 1


@pytest.mark.parametrize(
    "deleted, more, names",
    [
        ([], ["--seeds", "0,7,8"], ["resnet8_plain_seed8", "resnet8_wc_seed8"]),
        (["sweep.db"], [], []),
        ([NAMES[0], NAMES[3]], [], [NAMES[0], NAMES[3]]),
    ],
)
def test_only_runs_without_a_result_in_their_folder_are_trained(trainer, tmp_path, deleted, more, names):
    out = tmp_path / "a%25b {c}#d ü&e=f;g'%"
    arguments = [*RUNS, "--out", out]
    trainer.ends = {NAMES[0]: "the loss became nan"}
    assert trainer.sweep(*arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    trainer.trained.clear()
    trainer.ends = {}
    for path in (out / name for name in deleted):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in range(2):
        assert trainer.sweep(*arguments, *more) == 0
        assert sorted(trainer.trained) == names


def test_two_sweeps_at_once_share_the_runs(trainer, tmp_path):
    arguments = [*RUNS, "--seeds", "0-3", "--out", tmp_path / "out", "--storage", f"sqlite:///{tmp_path / 'shared.db'}"]
    trainer.during = lambda: time.sleep(0.5 * (len(trainer.trained) == 8))  # the other sweep waits for the last run
    with futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: trainer.sweep(*arguments), range(2))) == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "shared.db"}
    assert len(trainer.trained) == len(set(trainer.trained)) == 8


def test_sweeps_share_a_folder_under_any_path_to_it(trainer, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    for place in "ab":
        (tmp_path / place).mkdir()
        (tmp_path / f"link to {place}").symlink_to(tmp_path / place)
        for folder in (place, f"link to {place}"):
            out = ["--storage", storage, "--out", tmp_path / folder / "out"]
            assert trainer.sweep(*RUNS, "--variants", "wc", *out) == 0
    assert sorted(trainer.trained) == sorted(2 * NAMES[2:])
    assert len(optuna.get_all_study_names(storage)) == 2


@pytest.mark.parametrize("moment, patience", [("before", 600.0), ("during", 600.0), ("during", 0.6)])
def test_a_sweep_waits_for_a_locked_database(trainer, tmp_path, monkeypatch, capsys, moment, patience):
    assert trainer.sweep(*RUNS, "--variants", "plain", "--out", tmp_path) == 0
    connection = sqlite3.connect(tmp_path / "sweep.db", timeout=600, check_same_thread=False, isolation_level=None)

    def lock():
        connection.execute("BEGIN EXCLUSIVE")

    def wait_and_release(table, wait=LiveTable.wait):
        wait(table)
        if patience > 1:
            connection.rollback()

    monkeypatch.setattr(LiveTable, "wait", wait_and_release)
    if moment == "before":
        lock()
    else:
        trainer.during = lambda: len(trainer.trained) == 3 and lock()
    code = trainer.sweep(*RUNS, "--out", tmp_path, slow=0.05, patience=patience)
    connection.close()
    output, errors = capsys.readouterr()
    if patience > 1:
        assert (code, errors) == (0, "")
        assert "waiting for the sweep's database; another process may keep it locked\n" in output
        assert "4 runs: 4 finished" in output
    else:
        assert code == 2 and errors.count("\n") == 1
        assert f"locked the sweep's database {tmp_path / 'sweep.db'} for 0.01 minutes. End that process" in errors
