"""The table of a sweep, on a terminal and in a log."""

import io
import os
import sys

import pytest

from tests.sweep.command_lines import NAMES, RUNS
from wcjax import run_folder
from wcjax.config import default_config
from wcjax.sweep import plan, study
from wcjax.sweep.table import LiveTable, Row, table_rows


def test_the_table_is_redrawn_on_a_terminal():
    rows = {"r1": Row("running", "1/3", "50.00%", "step 7/9"), "r2": Row("to do")}
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    table = LiveTable(rows, terminal)
    table.show(rows)
    table.show(rows | {"r1": Row("finished", "3/3", "90.00%")})
    first, second = terminal.getvalue().split("\x1b[6F\x1b[J")
    assert first.startswith("2 runs: 1 running, 1 to do\n\n| run | state   |")
    assert second.splitlines()[2:] == [
        "| run | state    | epoch | val accuracy | note |",
        "| --- | -------- | ----- | ------------ | --- |",
        "| r1  | finished | 3/3   | 90.00%       |  |",
        "| r2  | to do    |       |              |  |",
    ]


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_sweep_whose_output_nobody_reads_trains_all(trainer, tmp_path, monkeypatch, is_closed):
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", None if is_closed else pipe)
    assert trainer.sweep(*RUNS, "--out", tmp_path) == 0
    assert sorted(trainer.trained) == NAMES
    pipe.close()  # as Python does at exit: if it cannot write what is left, it exits with 120


def test_a_log_has_a_line_for_a_running_run_each_minute():
    seconds, file = [0], io.StringIO()
    table = LiveTable(["r1"], file, clock=lambda: seconds[0])
    for step, seconds[0] in ((1, 0), (2, 59), (3, 60), (3, 200), (4, 210)):
        table.show({"r1": Row("running", "1/3", note=f"step {step}/9")})
    table.show({"r1": Row("finished", "3/3", "90.00%")})
    lines = [f"r1: running, 1/3, step {step}/9" for step in (1, 3, 4)]
    assert file.getvalue().splitlines() == [*lines, "r1: finished, 3/3, 90.00%"]


def test_a_running_run_shows_its_progress(tmp_path):
    progress = {"epoch": 2, "epochs": 10, "step": 107, "steps_per_epoch": 100, "loss": 0.5, "accuracy": 0.75}
    progress |= {"images_per_second": 1234, "epoch_seconds_left": 93, "seconds_left": 4000}
    outcome = study.Outcome(plan.Plan("runs", {}, {}, {"r1": default_config()}), running={"r1"})
    (tmp_path / "r1").mkdir()
    rows = [table_rows(outcome, tmp_path)]
    run_folder.write(tmp_path / "r1", "progress.json", progress)
    rows.append(table_rows(outcome, tmp_path))
    note = "step 7/100  loss 0.5000  accuracy 75.0%  0:01:33 left, run 1:06:40  1,234 images/s"
    (tmp_path / "r1" / "metrics.jsonl").write_text("damaged\n")
    rows.append(table_rows(outcome, tmp_path))
    unknown = {"r1": Row("running", "0/10")}
    assert rows == [unknown, {"r1": Row("running", "2/10", note=note)}, unknown]
