"""Sweeps: what is run, what is left alone, and what is told."""

import io
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent import futures

import jax
import pytest

pytest.importorskip("optuna", reason="needs the extra 'sweep'")

from wcjax import training
from wcjax.errors import DivergedError, InitialWeightsError, InputError, InUseError, Preempted
from wcjax.files import write_json
from wcjax.sweep import __main__ as sweep
from wcjax.sweep import study, workers
from wcjax.sweep.table import LiveTable
from wcjax.training.preemption import START_AGAIN

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")
GRID = ["grid", "--config", f"{DIGITS}:resnet8", "--seeds", "0-2"]
PAIRS = [*GRID, "--over", "reparam.a=0.6,1", "--over", "reparam.b=0.5,0.8"]
RUNS = ["runs", "--config", DIGITS, "--models", "resnet8", "--variants", "plain,wc", "--seeds", "0,7"]


class Trainer:
    """Stands for the process of a run: writes its summary.json in no time. ends: {name: how it ends instead}.

    together: how many runs must be at work at the same time; fewer wait for the others.
    """

    def __init__(self):
        self.trained, self.ends, self.lock = [], {}, threading.Lock()
        self.at_work = self.most_at_work = 0
        self.together = threading.Barrier(1)

    def __call__(self, workers, name, folder):
        with self.lock:
            self.trained.append(name)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        self.together.wait(timeout=300)
        with self.lock:
            self.at_work -= 1
        folder.mkdir(parents=True, exist_ok=True)
        config = workers.configs[name]
        end = self.ends.get(name)
        end = end.pop() if isinstance(end, list) else end
        if isinstance(end, int):
            return end
        if end:
            write_json(folder / "failed.json", {"reason": end, "config": config})
            return sweep.CANNOT_FINISH
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        a, b = config["reparam"]["a"], config["reparam"]["b"]
        write_json(folder / "summary.json", {"best_val_accuracy": 0.9 - abs(a - 0.6) - abs(b - 0.8)})
        return 0


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(workers.Workers, "train", lambda *args: trainer(*args))
    monkeypatch.setattr(workers, "POLL", 0.02)
    return trainer


def test_a_grid_is_run_on_one_seed_and_its_best_pair_on_the_others(trainer, tmp_path, capsys):
    assert sweep.main([*PAIRS, "--out", str(tmp_path), "--config.epochs=2"]) == 0
    pairs = {f"a{a}_b{b}_seed0" for a in ("0.6", "1") for b in ("0.5", "0.8")}
    assert set(trainer.trained[:4]) == pairs
    assert sorted(trainer.trained[4:]) == ["a0.6_b0.8_seed1", "a0.6_b0.8_seed2"]
    assert "Best on val: reparam.a=0.6, reparam.b=0.8." in capsys.readouterr().out
    config = json.loads((tmp_path / "a0.6_b0.8_seed2" / "config.json").read_text())
    assert (config["seed"], config["reparam"]["a"], config["reparam"]["b"], config["epochs"]) == (2, 0.6, 0.8, 2)


def test_a_grid_is_over_any_keys_and_its_folders_say_their_values(trainer, tmp_path):
    plain = ["grid", "--config", f"{DIGITS}:resnet8,plain", "--seeds", "5", "--out", str(tmp_path)]
    assert sweep.main([*plain, "--over", "learning_rate=0.05,0.1", "--over", "weight_decay=0,5e-4"]) == 0
    names = {f"learning_rate{rate}_weight_decay{decay}_seed5" for rate in ("0.05", "0.1") for decay in ("0", "5e-4")}
    assert set(trainer.trained) == names
    config = json.loads((tmp_path / "learning_rate0.05_weight_decay5e-4_seed5" / "config.json").read_text())
    assert (config["learning_rate"], config["weight_decay"], config["reparam"]["name"]) == (0.05, 0.0005, "none")


def test_a_grid_is_the_papers_where_no_key_is_given(trainer, tmp_path):
    assert sweep.main([*GRID, "--seeds", "0", "--out", str(tmp_path)]) == 0
    steps = ("0.5", "0.6", "0.7", "0.8", "0.9", "1.0")
    assert sorted(trainer.trained) == sorted(f"a{a}_b{b}_seed0" for a in steps for b in steps)


def test_a_list_of_variants_and_seeds_is_run_once_each_and_not_again(trainer, tmp_path):
    arguments = [*RUNS, "--out", str(tmp_path), "--jobs", "2"]
    trainer.together = threading.Barrier(2)
    assert sweep.main(arguments) == 0
    expected = [f"resnet8_{variant}_seed{seed}" for variant in ("plain", "wc") for seed in (0, 7)]
    assert sorted(trainer.trained) == expected
    assert trainer.most_at_work == 2
    assert json.loads((tmp_path / "resnet8_plain_seed7" / "config.json").read_text())["reparam"]["name"] == "none"
    assert sweep.main(arguments) == 0
    assert len(trainer.trained) == 4


def test_no_run_folder_lies_outside_of_the_sweeps(trainer, tmp_path, capsys):
    (tmp_path / "deaf.py").write_text(
        "from wcjax.training import default_config\nget_config = lambda _: default_config()"
    )
    arguments = ["runs", "--config", str(tmp_path / "deaf.py"), "--variants", "wc", "--out", str(tmp_path / "out")]
    for model in ("../../evil", "/evil", "..", "a/b", "a\n"):
        assert sweep.main([*arguments, "--models", model]) == 2
        assert f"error: a run would be called {f'{model}_wc_seed0'!r}: only letters, " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"deaf.py", "__pycache__"}
    assert trainer.trained == []


@pytest.mark.parametrize("name, content", [("failed.json", "[]"), ("failed.json", "{}"), ("summary.json", "{}")])
def test_a_result_that_no_run_wrote_is_an_error_of_one_line(trainer, tmp_path, capsys, name, content):
    (tmp_path / "resnet8_plain_seed0").mkdir()
    (tmp_path / "resnet8_plain_seed0" / name).write_text(content)
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 2
    assert f"resnet8_plain_seed0/{name}" in capsys.readouterr().err


def test_a_database_that_is_none_is_an_error_of_one_line(trainer, tmp_path, capsys):
    (tmp_path / "sweep.db").write_bytes(b"no database" * 1000)
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 2
    assert "sweep.db cannot be used: (sqlite3.DatabaseError) file is not a database" in capsys.readouterr().err


def test_one_job_is_one_run_at_a_time(trainer, tmp_path):
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    assert trainer.most_at_work == 1


def test_runs_that_cannot_finish_are_told_with_their_reason_and_not_tried_again(trainer, tmp_path, capsys):
    trainer.ends = {"a0.6_b0.8_seed0": "the loss became nan", "a0.6_b0.5_seed0": "largest |w| does not fit"}
    for _ in range(2):
        assert sweep.main([*PAIRS, "--out", str(tmp_path)]) == 0
        output = capsys.readouterr().out
        assert "| a0.6_b0.8_seed0 | failed | 0/10 |  | the loss became nan |" in output
        assert r"| a0.6_b0.5_seed0 | failed | 0/10 |  | largest \|w\| does not fit |" in output
        assert "Best on val: reparam.a=1, reparam.b=0.8." in output
    assert len(trainer.trained) == len(set(trainer.trained)) == 6


def test_a_run_that_was_killed_alone_is_taken_up_by_the_next_sweep_and_by_no_other(trainer, tmp_path, capsys):
    trainer.ends = {"resnet8_wc_seed0": -9}
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 1
    assert "| resnet8_wc_seed0 | lost |  |  | killed by signal 9" in capsys.readouterr().out.replace(" 0/10 ", "  ")
    assert trainer.trained.count("resnet8_wc_seed0") == 1
    trainer.ends = {}
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    assert sorted(trainer.trained)[-2:] == ["resnet8_wc_seed0", "resnet8_wc_seed7"]
    assert len(trainer.trained) == 5


def test_where_the_study_is_lost_the_folders_still_tell_what_is_finished(trainer, tmp_path, capsys):
    trainer.ends = {"resnet8_wc_seed0": "the loss became nan"}
    for _ in range(2):
        assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
        assert "4 runs: 1 failed, 3 finished" in capsys.readouterr().out
        (tmp_path / "sweep.db").unlink()
    assert len(trainer.trained) == 4


def test_more_seeds_leave_what_is_finished(trainer, tmp_path):
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    trainer.trained.clear()
    assert sweep.main([*RUNS, "--seeds", "0,7,8", "--out", str(tmp_path)]) == 0
    assert sorted(trainer.trained) == ["resnet8_plain_seed8", "resnet8_wc_seed8"]


def test_two_sweeps_at_once_share_the_runs(trainer, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    arguments = [*RUNS, "--seeds", "0-5", "--out", str(tmp_path / "out"), "--storage", storage]
    codes = []
    workers = [threading.Thread(target=lambda: codes.append(sweep.main(arguments))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert codes == [0, 0]
    assert len(trainer.trained) == len(set(trainer.trained)) == 12


def test_sweeps_in_two_folders_of_one_name_have_nothing_to_do_with_each_other(trainer, tmp_path):
    address = f"sqlite:///{tmp_path / 'shared.db'}"
    storage = ["--storage", address]
    for place in "ab":
        trainer.trained.clear()
        assert sweep.main([*RUNS, *storage, "--out", str(tmp_path / place / "out")]) == 0
        assert len(trainer.trained) == len(list((tmp_path / place / "out").glob("*/summary.json"))) == 4
        assert sweep.main([*RUNS, *storage, "--out", str(tmp_path / place / "out")]) == 0
        assert len(trainer.trained) == 4
    assert len(study.optuna.get_all_study_names(address)) == 2


def test_a_folder_has_one_identity_whoever_asks_first_and_by_whatever_path(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    start = threading.Barrier(8)

    def ask(_):
        start.wait()
        return study.identity(tmp_path / "a")

    with futures.ThreadPoolExecutor(8) as pool:
        (found,) = set(pool.map(ask, range(8)))
    assert study.identity(tmp_path / "link") == found != study.identity(tmp_path / "b")
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".sweep"]


@pytest.mark.parametrize("storage", [None, "shared.db"])
def test_a_run_whose_folder_was_deleted_is_run_again_also_one_that_had_failed(trainer, tmp_path, storage, capsys):
    arguments = [*RUNS, "--out", str(tmp_path / "out")]
    arguments += ["--storage", f"sqlite:///{tmp_path / storage}"] if storage else []
    trainer.ends = {"resnet8_plain_seed0": "the loss became nan"}
    assert sweep.main(arguments) == 0
    trainer.trained.clear()
    trainer.ends = {}
    for name in ("resnet8_plain_seed0", "resnet8_wc_seed7"):
        shutil.rmtree(tmp_path / "out" / name)
    for _ in range(2):
        assert sweep.main(arguments) == 0
        assert sorted(trainer.trained) == ["resnet8_plain_seed0", "resnet8_wc_seed7"]
    assert "4 runs: 4 finished" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a%25b", "%", "a{b}", "a#b", "a b", "ü", "a&b=c;d", "'"])
def test_the_folder_of_a_sweep_may_have_any_other_name(trainer, tmp_path, name):
    arguments = [*RUNS, "--out", str(tmp_path / name)]
    for _ in range(2):
        assert sweep.main(arguments) == 0
        assert len(trainer.trained) == 4
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "sweep.db").stat().st_size > 0


@pytest.fixture
def lock(trainer, tmp_path, monkeypatch):
    """lock() locks the database of the sweep in tmp_path, lock.release() frees it."""
    monkeypatch.setattr(workers, "SLOW", 0.05)
    assert sweep.main([*RUNS, "--variants", "plain", "--out", str(tmp_path)]) == 0
    connection = sqlite3.connect(tmp_path / "sweep.db", timeout=300, check_same_thread=False, isolation_level=None)
    lock = lambda: connection.execute("BEGIN EXCLUSIVE")
    lock.release = lambda: connection.in_transaction and connection.rollback()
    yield lock
    lock.release()
    connection.close()


@pytest.mark.parametrize("when", ["before the sweep", "during a run"])
def test_a_locked_database_is_waited_for_and_the_table_says_so(trainer, tmp_path, lock, monkeypatch, capsys, when):
    wait = LiveTable.wait

    def wait_and_release(table):
        wait(table)
        lock.release()

    monkeypatch.setattr(LiveTable, "wait", wait_and_release)
    lock_once(trainer, lock, when)
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "waiting for the sweep's database; another process may keep it locked\n" in output.out
    assert "4 runs: 4 finished" in output.out
    assert "Traceback" not in output.err


@pytest.mark.parametrize("when", ["before the sweep", "during a run"])
def test_a_database_that_stays_locked_is_an_error_of_one_line(trainer, tmp_path, lock, monkeypatch, capsys, when):
    monkeypatch.setattr(study, "PATIENCE", 0.6)
    lock_once(trainer, lock, when)
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: the sweep's database {tmp_path / 'sweep.db'} has been locked by another process for 0.01 minutes. End "
        "that process; the same command resumes the sweep.\n"
    )


def lock_once(trainer, lock, when):
    if when == "before the sweep":
        lock()
    else:
        trainer.together = threading.Barrier(1, action=lambda: lock() if len(trainer.trained) == 3 else None)


def test_a_sweep_lets_the_accelerators_to_its_runs(trainer, tmp_path):
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    assert jax.config.jax_platforms == "cpu"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*RUNS, "--variants", "plain,plane"], "unknown variant 'plane'. Did you mean 'plain'?"),
        ([*RUNS, "--models", "resnet9"], "unknown config.model 'resnet9'."),
        ([*RUNS, "--config.epoch=3"], "unknown config key 'epoch'. Did you mean 'epochs'?"),
        ([*RUNS, "--config.epochs=many"], "flag --config.epochs=many"),
        ([*RUNS, "--epochs=3"], "unknown argument '--epochs=3'; see --help."),
        ([*RUNS, "--config.seed=3"], "config.seed is set by --seeds."),
        ([*RUNS, "--config", "nowhere.py"], "[Errno 2] No such file or directory"),
        ([*RUNS, "--config", f"{DIGITS}:resnet8"], "give FILE alone"),
        ([*RUNS, "--jobs", "0"], "--jobs must be 1 or more, found 0."),
        ([*RUNS, "--config.batch_size=5000"], "config.batch_size is 5000, but digits has 1293 training images."),
        ([*RUNS, "--storage", "nosuch://x"], "--storage nosuch://x cannot be used: "),
        ([*RUNS, "--storage", "no address"], "--storage no address cannot be used: "),
        ([*RUNS, "--storage", "sqlite:////nowhere/x.db"], "Check that its folder exists and the permissions of both."),
        ([*RUNS, "--storage", "mysql://me:secret@h/n"], "--storage mysql://me:***@h/n needs the Python module MySQLdb"),
        ([*RUNS, "--storage", "oracle://x"], "--storage oracle://x needs the Python module oracledb: pip install"),
        ([*RUNS, "--out", ""], "--out is empty: give a path."),
        ([*RUNS, "--out", "gs://bucket/sweep"], "--out gs://bucket/sweep: gs:// is not a local path"),
        ([*RUNS, "--out", "a[1]"], "a[1]: the path of a checkpoint cannot contain [ ]. Give another path."),
        ([*RUNS, "--out", "what?"], "what?: the path of a checkpoint cannot contain ?. Give another path."),
        ([*RUNS, "--out", DIGITS], f"--out {DIGITS}: {DIGITS} is a file; give a folder."),
        ([*RUNS, "--out", "x" * 300], "cannot be read (File name too long)"),
        ([*GRID, "--config.reparam.a=3"], "config.reparam.a is set by the grid; --over says by which values."),
        ([*GRID, "--over", "seed=1,2"], "--over takes every key once, and seeds are given by --seeds."),
        ([*PAIRS, "--over", "reparam.a=2"], "--over takes every key once"),
        ([*GRID, "--over", "momentun=0.9"], "unknown config key 'momentun'. Did you mean 'momentum'?"),
        ([*GRID, "--over", "momentum=0.9,much"], "flag --config.momentum=much"),
        ([*GRID, "--over", "momentum=0.9,1.9"], "config.momentum must be between 0 and 1, found 1.9."),
        ([*GRID, "--over", "momentum=0.9,0.90"], "two runs of the sweep are the same; give each value once."),
        ([*GRID, "--config", f"{DIGITS}:resnet8,plain"], "a grid is over a and b, which 'none' has not"),
        ([*GRID, "--over", "reparam.a=0.5,-1"], "a must be"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(trainer, tmp_path, capsys, arguments, message):
    assert sweep.main([arguments[0], "--out", str(tmp_path / "out"), *arguments[1:]]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors
    assert errors.count("\n") == 1
    assert trainer.trained == []


def test_another_config_in_the_same_folder_is_an_error_with_the_difference(trainer, tmp_path, capsys):
    assert sweep.main([*RUNS, "--out", str(tmp_path)]) == 0
    assert sweep.main([*RUNS, "--out", str(tmp_path), "--config.epochs=3"]) == 2
    assert "epochs: 10 in the folder, 3 asked for" in capsys.readouterr().err


@pytest.mark.parametrize("text, found", [("0-2", [0, 1, 2]), ("3", [3]), ("5,7-8", [5, 7, 8])])
def test_seeds_are_numbers_and_ranges(text, found):
    assert sweep.seeds(text) == found


@pytest.mark.parametrize("text", ["", "1-", "4-2", "0-2,1", "a"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError):
        sweep.seeds(text)


@pytest.mark.parametrize("error", [DivergedError("it became nan"), InitialWeightsError("it does not fit")])
def test_a_run_that_cannot_finish_leaves_its_reason_in_its_folder(tmp_path, monkeypatch, error):
    def train(config, folder):
        raise error

    monkeypatch.setattr(training, "train", train, raising=False)
    assert sweep.train_one(tmp_path / "run", {"seed": 1}) == sweep.CANNOT_FINISH
    found = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert found == {"reason": str(error), "config": {"seed": 1}}


def test_an_error_that_another_start_may_mend_leaves_none(tmp_path, monkeypatch):
    def train(config, folder):
        raise InputError("the data set is not there")

    monkeypatch.setattr(training, "train", train, raising=False)
    with pytest.raises(InputError):
        sweep.train_one(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [InUseError("another process is at it"), Preempted("SIGTERM came")])
def test_a_run_that_was_stopped_or_is_in_use_asks_to_be_started_again(tmp_path, monkeypatch, error):
    def train(config, folder):
        raise error

    monkeypatch.setattr(training, "train", train, raising=False)
    assert sweep.train_one(tmp_path / "run", {}) == START_AGAIN


def test_a_run_that_asks_for_it_is_started_again_until_it_has_an_end(trainer, tmp_path):
    trainer.ends = {"resnet8_wc_seed0": [None, START_AGAIN, START_AGAIN]}
    assert sweep.main([*RUNS, "--variants", "wc", "--seeds", "0", "--out", str(tmp_path)]) == 0
    assert trainer.trained == ["resnet8_wc_seed0"] * 3


def test_the_table_is_redrawn_on_a_terminal_and_told_line_by_line_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    rows = {"r1": ("running", "1/3", "50.00%", ""), "r2": ("to do", "", "", "")}
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        table = LiveTable(rows, stream)
        table.show(rows)
        table.show(rows)
        table.show(rows | {"r1": ("finished", "3/3", "90.00%", "")})
    drawn = terminal.getvalue().split("\x1b[6F\x1b[J")
    assert len(drawn) == 3
    assert drawn[0].startswith("2 runs: 1 running, 1 to do\n\n| run | state |")
    assert "| r1 | finished | 3/3 | 90.00% |  |" in drawn[2]
    assert file.getvalue() == "r1: running, 1/3, 50.00%\nr1: finished, 3/3, 90.00%\n"


START = """import sys
from wcjax.sweep import __main__ as sweep, study
study.HEARTBEAT, study.GRACE = 1, 4
sys.exit(sweep.main(sys.argv[1:]))"""


@pytest.fixture
def cache(tmp_path_factory):
    """The environment for the compilation cache of tests/training/conftest.py."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return {
        "JAX_COMPILATION_CACHE_DIR": str(base / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


@pytest.mark.long
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, START_AGAIN), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_saves_its_runs(tmp_path, cache, number, code):
    command = [
        sys.executable,
        "-m",
        "wcjax.sweep",
        *RUNS,
        "--seeds",
        "0",
        "--variants",
        "plain",
        "--config.epochs=1000",  # more than it does before it is stopped
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.DEVNULL)
    run = tmp_path / "resnet8_plain_seed0"
    while not (run / "checkpoints" / "1").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == code
    assert not (run / "summary.json").exists()
    (step,) = (int(path.name) for path in (run / "midway").iterdir())
    assert step > 0


@pytest.mark.long
def test_a_sweep_that_is_killed_goes_on_and_repeats_no_finished_run(tmp_path, cache):
    arguments = ["runs", "--config", DIGITS, "--models", "resnet8", "--variants", "plain", "--seeds", "0-2"]
    arguments += ["--jobs", "2", "--config.epochs=1", "--out", str(tmp_path)]

    def start(log):
        output = (tmp_path / log).open("w")
        command = [sys.executable, "-c", START, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | cache, start_new_session=True
        )

    def finished():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}

    process = start("killed")
    while not finished():
        assert process.poll() is None, (tmp_path / "killed").read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the sweep and its runs at once, as when a machine fails
    process.wait()
    before = finished()
    assert 1 <= len(before) < 3

    process = start("restarted")
    assert process.wait() == 0, (tmp_path / "restarted").read_text()
    after = finished()
    assert after.keys() == {f"resnet8_plain_seed{seed}" for seed in range(3)}
    assert before.items() <= after.items()
    output = (tmp_path / "restarted").read_text()
    assert "3 runs: 3 finished" in output
    for name in after:
        accuracy = json.loads((tmp_path / name / "summary.json").read_text())["best_val_accuracy"]
        assert f"| {name} | finished | 1/1 | {accuracy:.2%} |  |" in output
