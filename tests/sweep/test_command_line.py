"""The command line of a sweep: mistakes are one line before any work, and values are parsed."""

import argparse
import pathlib
import re
import shlex

import jax
import pytest

from tests.sweep.command_lines import DIGITS, GRID, RUNS
from wcjax.sweep import __main__ as sweep


def test_a_platform_without_devices_is_named_before_any_run(trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    assert trainer.sweep(*RUNS, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: JAX finds no device for JAX_PLATFORMS=nonsense: ") and errors.count("\n") == 1
    assert trainer.trained == [] and not (tmp_path / "out").exists()
    assert jax.config.jax_platforms == "cpu", "the sweep itself leaves accelerators to its runs"


MISTAKES = {  # changes of RUNS: message
    "--variants plain,plane": "unknown variant 'plane'. Did you mean 'plain'?",
    "--epochs=3": "unknown argument '--epochs=3'; see --help.",
    "--config.seed=3": "config.seed is set by --seeds.",
    "--config digits.py:resnet8": "give FILE alone",
    "--jobs 0": "--jobs must be 1 or more, found 0.",
    "--config.batch_size=5000": "config.batch_size is 5000, but digits has 1293 training images.",
    "--storage nosuch://x": "--storage nosuch://x cannot be used: ",
    "--storage sqlite:////nowhere/x.db": "Check that its folder exists, and the permissions of both.",
    "--storage mysql://me@home:s/e:c@ret@h/n": "--storage mysql://me@home:***@h/n needs the Python module MySQLdb",
    "--storage 'mysql://h/n?passwd=secret&user=me'": "--storage mysql://h/n?passwd=***&user=me needs the Python module",
    f"--out {DIGITS}": f"--out {DIGITS}: {DIGITS} is a file; give a folder.",
    "--config deaf.py --models a/b": "a run folder would be called 'a/b_plain_seed0'",
}


GRID_MISTAKES = {  # changes of GRID: message
    "--config.reparam.a=3": "config.reparam.a is set by the grid; give its values with --over.",
    "--over seed=1,2": "--over takes each key once, and the seeds are given by --seeds.",
    "--over momentum=0.9,much": "config.momentum must be a number like 0.1, found 'much'.",
    "--over momentum=0.9,0.90": "two runs of the sweep are the same; give each value once.",
    f"--config {DIGITS}:resnet8,plain": "the grid varies a and b, and reparam 'none' has neither.",
}


@pytest.mark.parametrize(
    "arguments, message",
    [([*RUNS, *shlex.split(text)], message) for text, message in MISTAKES.items()]
    + [([*GRID, *shlex.split(text)], message) for text, message in GRID_MISTAKES.items()],
)
def test_a_mistake_is_one_line_before_any_work(trainer, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)  # with a config file that ignores its argument
    pathlib.Path("deaf.py").write_text("from wcjax.config import *\nget_config = lambda _: default_config()")
    assert trainer.sweep(arguments[0], "--out", "out", *arguments[1:]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert trainer.trained == []
    assert {path.name for path in tmp_path.iterdir()} <= {"deaf.py", "__pycache__", "out"}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("resnet8_plain_seed0/summary.json", "{}", "expected a "),
        ("resnet8_plain_seed0/config.json", '{"epochs": 3}', "epochs: 3 in the folder, 10 asked for"),
        (
            "sweep.db",
            "no database" * 1000,
            "sweep.db cannot be used: (sqlite3.DatabaseError) file is not a database. Remove it and",
        ),
    ],
)
def test_a_foreign_file_in_the_folder_is_named(trainer, tmp_path, capsys, file, content, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert trainer.sweep(*RUNS, "--out", tmp_path) == 2
    errors = capsys.readouterr().err
    assert str((tmp_path / file).parent) in errors and message in errors and "--storage" not in errors


def test_seeds_are_numbers_and_ranges():
    assert [sweep.seeds(text) for text in ("0-2", "3", "5,7-8")] == [[0, 1, 2], [3], [5, 7, 8]]


SEEDS = "is not a seed or a range; give for example 0-4 or 3,7-9."
AXIS = "is not KEY=VALUES; give for example learning_rate=0.1,0.2."


@pytest.mark.parametrize(
    "parse, text, message",
    [
        *((sweep.seeds, text, f"{text!r} {SEEDS}") for text in ("", "1-", "a")),
        (sweep.seeds, "1,4-2", "'4-2' is empty; give the lower seed first, for example 0-4."),
        (sweep.seeds, "0-2,1", "'0-2,1' repeats 1; give each value once."),
        (sweep.seeds, "0-3000000000", "at most 10,000 seeds are allowed, found '0-3000000000'."),
        (sweep.names, "plain,wc,wc", "'plain,wc,wc' repeats 'wc'; give each value once."),
        *((sweep.axis, text, f"{text!r} {AXIS}") for text in ("a", "a=1=2")),
        (sweep.axis, "a=1,1", "'a=1,1' repeats '1'; give each value once."),
        (sweep.axis, "schedule.milestones=(1,2),(3,4)", "cannot contain brackets or '/'"),
        (sweep.axis, "data_dir=a/b,c", "cannot contain brackets or '/'"),
    ],
)
def test_a_value_that_cannot_be_parsed_says_what_is_allowed(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        parse(text)
