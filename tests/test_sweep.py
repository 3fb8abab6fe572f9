"""Sweeps: which runs are trained, and what is reported."""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from concurrent import futures

import jax
import pytest

pytest.importorskip("optuna", reason="needs the extra 'sweep'")

import optuna

from tests.run_folder.examples import SUMMARY
from wcjax import run_folder, training
from wcjax.commands import command
from wcjax.config import default_config
from wcjax.errors import DivergedError, InitialWeightsError, InputError, InUseError, Preempted
from wcjax.files import write_json
from wcjax.sweep import __main__ as sweep
from wcjax.sweep import plan, process, study
from wcjax.sweep.table import LiveTable, Row, table_rows
from wcjax.training.start import EXIT_PREEMPTED

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")
GRID = ["grid", "--config", f"{DIGITS}:resnet8", "--seeds", "0-2"]
PAIRS = [*GRID, "--over", "reparam.a=0.6,1", "--over", "reparam.b=0.5,0.8"]
RUNS = ["runs", "--config", DIGITS, "--models", "resnet8", "--variants", "plain,wc", "--seeds", "0,7"]
NAMES = [f"resnet8_{variant}_seed{seed}" for variant in ("plain", "wc") for seed in (0, 7)]


class Trainer:
    """Trains instead of the processes of runs: each writes its summary.json at once.

    Attributes:
      trained, at_work: names of runs; counts: numbers of runs at work; jobs: how many shared the accelerator.
      ends: {name: how it ends instead}: an exit code, the reason of a failure, or a list of these, the last one first.
      during: is called while a run trains.
    """

    def __init__(self):
        self.trained, self.at_work, self.counts, self.jobs = [], [], [], set()
        self.ends, self.during = {}, lambda: None

    def sweep(self, *arguments, **times):
        """The exit code of a command line. Trials never become stale, however busy the machine is."""
        times = {"poll": 0.02, "grace": 10**6, "pause": 0.02} | times
        return command(lambda argv: sweep.run_command(argv, self, **times))(list(map(str, arguments)))

    def __call__(self, folder, config, log, jobs):
        self.trained.append(folder.name)
        self.jobs.add(jobs)
        assert self.trained.count(folder.name) < 10, "it is started again and again"
        return types.SimpleNamespace(wait=lambda: self.train(folder, config), poll=lambda: 0)

    def train(self, folder, config):
        self.at_work.append(folder.name)
        self.counts.append(len(self.at_work))
        self.during()
        self.at_work.remove(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        end = self.ends.get(folder.name)
        end = end.pop() if isinstance(end, list) else end
        if isinstance(end, int):
            return end
        if end:
            write_json(folder / "failed.json", {"reason": end, "config": config})
            return process.CANNOT_FINISH
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        accuracy = 0.9 - abs(config["reparam"]["a"] - 0.6) - abs(config["reparam"]["b"] - 0.8)
        write_json(folder / "summary.json", SUMMARY | {"epochs": 10, "best_val_accuracy": accuracy})
        return 0


@pytest.fixture
def trainer():
    """A Trainer. A sweep that does not end fails its test; on a quiet machine the slowest takes 5 seconds."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the sweep does not end"))
    signal.alarm(300)
    yield Trainer()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("ends, a, b", [({}, "0.6", "0.8"), ({"a0.6_b0.8_seed0": "it diverged"}, "0.6", "0.5")])
def test_a_grid_trains_its_best_point_with_the_other_seeds(trainer, tmp_path, capsys, ends, a, b):
    trainer.ends = ends
    assert trainer.sweep(*PAIRS, "--config.epochs", "2", "--out", tmp_path, "--config.augment.flip") == 0
    assert set(trainer.trained[:4]) == {f"a{a}_b{b}_seed0" for a in ("0.6", "1") for b in ("0.5", "0.8")}
    assert sorted(trainer.trained[4:]) == [f"a{a}_b{b}_seed1", f"a{a}_b{b}_seed2"]
    assert f"Best on val: reparam.a={a}, reparam.b={b}." in capsys.readouterr().out
    config = json.loads((tmp_path / f"a{a}_b{b}_seed2" / "config.json").read_text())
    assert (config["seed"], config["reparam"]["a"], config["reparam"]["b"]) == (2, 0.6, float(b))
    assert (config["epochs"], config["augment"]["flip"]) == (2, True)


SIX = ("0.5", "0.6", "0.7", "0.8", "0.9", "1.0")
RATES = ["--over", "learning_rate=0.05,0.1", "--over", "weight_decay=0,5e-4"]


@pytest.mark.parametrize(
    "arguments, names, changes",
    [
        (GRID, [f"a{a}_b{b}_seed0" for a in SIX for b in SIX], {"reparam.a": 1.0, "reparam.b": 1.0, "seed": 0}),
        (
            ["grid", "--config", f"{DIGITS}:resnet8,plain", "--seeds", "5", *RATES],
            [f"learning_rate{rate}_weight_decay{decay}_seed5" for rate in ("0.05", "0.1") for decay in ("0", "5e-4")],
            {"learning_rate": 0.1, "weight_decay": 5e-4, "seed": 5, "reparam.name": "none"},
        ),
    ],
)
def test_a_grid_has_every_point_and_by_default_the_papers(arguments, names, changes):
    args, overrides = sweep.parser().parse_known_args([*arguments, "--out", "unused"])
    sweep.check_arguments(args, overrides)
    grid = plan.plan_grid(args, overrides)
    assert list(grid.configs) == names
    last = grid.configs[names[-1]]
    assert {key: functools.reduce(getattr, key.split("."), last) for key in changes} == changes


def test_every_run_is_trained_once_with_two_jobs_at_a_time(trainer, tmp_path):
    trainer.during = functools.partial(threading.Barrier(2).wait, timeout=200)
    assert trainer.sweep(*RUNS, "--out", tmp_path, "--jobs", 2) == 0
    assert sorted(trainer.trained) == NAMES
    assert max(trainer.counts) == 2 and trainer.jobs == {2}
    assert json.loads((tmp_path / "resnet8_plain_seed7" / "config.json").read_text())["reparam"]["name"] == "none"


def test_no_more_jobs_than_runs_share_the_accelerator(trainer, tmp_path):
    assert trainer.sweep(*GRID, "--over", "learning_rate=0.1,0.2,0.3", "--out", tmp_path, "--jobs", 200) == 0
    assert trainer.jobs == {3, 2}, "three points of the grid, and two more seeds of the best one"


@pytest.mark.parametrize("jobs, share", [(1, "None"), (2, "0.45"), (200, "0.0045")])
def test_jobs_have_equal_shares_of_the_accelerator(tmp_path, monkeypatch, jobs, share):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    print_share = "import os; print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'))"
    monkeypatch.setattr(process, "python", lambda *_: [sys.executable, "-c", print_share])
    process.start_run(tmp_path / "run", {}, tmp_path / "log", jobs).wait()
    assert (tmp_path / "log").read_text() == f"{share}\n"


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
OVER = "is not KEY=VALUES; give for example learning_rate=0.1,0.2."


@pytest.mark.parametrize(
    "parse, text, message",
    [
        *((sweep.seeds, text, f"{text!r} {SEEDS}") for text in ("", "1-", "a")),
        (sweep.seeds, "1,4-2", "'4-2' is empty; give the lower seed first, for example 0-4."),
        (sweep.seeds, "0-2,1", "'0-2,1' repeats 1; give each value once."),
        (sweep.seeds, "0-3000000000", "at most 10,000 seeds are allowed, found '0-3000000000'."),
        (sweep.names, "plain,wc,wc", "'plain,wc,wc' repeats 'wc'; give each value once."),
        *((sweep.over, text, f"{text!r} {OVER}") for text in ("a", "a=1=2")),
        (sweep.over, "a=1,1", "'a=1,1' repeats '1'; give each value once."),
        (sweep.over, "schedule.milestones=(1,2),(3,4)", "cannot contain brackets or '/'"),
        (sweep.over, "data_dir=a/b,c", "cannot contain brackets or '/'"),
    ],
)
def test_a_value_that_cannot_be_parsed_says_what_is_allowed(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize(
    "error, code",
    [
        (DivergedError("it became nan"), process.CANNOT_FINISH),
        (InitialWeightsError("it does not fit"), process.CANNOT_FINISH),
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
    failure = {"reason": str(error), "config": {"seed": 1}} if code == process.CANNOT_FINISH else None
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
    outcome = study.Outcome(plan.Plan("runs", {}, {}, {"r1": default_config()}), {}, {}, {}, {"r1"})
    (tmp_path / "r1").mkdir()
    rows = [table_rows(outcome, tmp_path)]
    run_folder.write(tmp_path / "r1", "progress.json", progress)
    rows.append(table_rows(outcome, tmp_path))
    note = "step 7/100  loss 0.5000  accuracy 75.0%  0:01:33 left, run 1:06:40  1,234 images/s"
    (tmp_path / "r1" / "metrics.jsonl").write_text("damaged\n")
    rows.append(table_rows(outcome, tmp_path))
    unknown = {"r1": Row("running", "0/10")}
    assert rows == [unknown, {"r1": Row("running", "2/10", note=note)}, unknown]


START = """import sys
from wcjax.sweep.__main__ import run_command
sys.exit(run_command(sys.argv[1:], heartbeat=1, grace=4))"""


def start_sweep(out, *arguments):
    """A real sweep of plain ResNet-8 on digits, in its own process group."""
    command = [sys.executable, "-c", START, *RUNS, "--variants", "plain", "--out", str(out), *arguments]
    options = {"cwd": ROOT, "env": os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}}
    with (out / "log").open("w") as log:
        return subprocess.Popen(command, **options, stdout=log, stderr=log, start_new_session=True)


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, EXIT_PREEMPTED), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_saves_its_runs(tmp_path, number, code):
    started = start_sweep(tmp_path, "--seeds", "0", "--config.epochs=1000")  # more than it trains until it is stopped
    run = tmp_path / "resnet8_plain_seed0"
    wait_for(started, lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    started.send_signal(number)
    assert started.wait() == code
    assert not (run / "summary.json").exists()
    (step,) = (int(path.name) for path in (run / "midway").iterdir())
    assert step > 0


@pytest.mark.long
def test_a_sweep_that_is_killed_repeats_no_finished_run(tmp_path):
    def finished():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}

    arguments = ["--seeds", "0-2", "--jobs", "2", "--config.epochs=1"]
    started = start_sweep(tmp_path, *arguments)
    wait_for(started, finished)
    os.killpg(started.pid, signal.SIGKILL)  # the sweep and its runs at once, as when a machine fails
    started.wait()
    before = finished()
    assert 1 <= len(before) < 3

    assert start_sweep(tmp_path, *arguments).wait() == 0, (tmp_path / "log").read_text()
    after, log = finished(), (tmp_path / "log").read_text()
    assert before.items() <= after.items()
    assert "3 runs: 3 finished" in log
    for name in (f"resnet8_plain_seed{seed}" for seed in range(3)):
        accuracy = json.loads((tmp_path / name / "summary.json").read_text())["best_val_accuracy"]
        assert re.search(rf"\| {name} +\| finished +\| 1/1 +\| {accuracy:.2%} +\|  \|", log)
