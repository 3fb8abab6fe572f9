"""Benchmarks and runs that have a number of minutes end within it, and keep what they have."""

import pathlib
import signal
import subprocess
import sys
import time

import chex
import pytest

from benchmarks import small_data, timed_runs
from tests.processes import python
from wcjax import run_folder, training
from wcjax.training.evaluate import evaluate_folded

FAKE_TRAIN = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
folder.mkdir(parents=True)
(folder / "arguments").write_text(" ".join(sys.argv[1:]))
sys.exit(folder.parent.name == "wc" and folder.name == "1")
"""


def train(tmp_path, monkeypatch, seeds, overrides, seconds):
    """Runs `timed_runs.train` with a train.py that does nothing; returns (failed runs, runs that were started)."""
    (tmp_path / "train.py").write_text(FAKE_TRAIN)
    monkeypatch.setattr(timed_runs, "ROOT", tmp_path)
    until, out = time.monotonic() + seconds, tmp_path / "out"
    failed = timed_runs.train(timed_runs.commands("c.py:resnet8", ["plain", "wc"], seeds, out, overrides), until, 60.0)
    started = {str(path.parent.relative_to(out)): path.read_text() for path in out.rglob("arguments")}
    return [str(pathlib.Path(folder).relative_to(out)) for folder in failed], started


def test_timed_runs_train_each_variant_with_each_seed(tmp_path, monkeypatch):
    failed, started = train(tmp_path, monkeypatch, 2, ["--config.data_dir=D"], seconds=600)
    assert failed == ["wc/1"], "a run that fails does not keep the others from running"
    assert set(started) == {"plain/0", "wc/0", "plain/1", "wc/1"}
    folder = tmp_path / "out" / "wc" / "0"
    assert started["wc/0"] == f"--config c.py:resnet8,wc --workdir {folder} --config.seed=0 --config.data_dir=D"


def test_timed_runs_start_no_second_run_after_the_time(tmp_path, monkeypatch):
    failed, started = train(tmp_path, monkeypatch, 2, [], seconds=0)
    assert (failed, set(started) - {"plain/0"}) == ([], set())


def test_a_process_that_ignores_sigterm_is_killed():
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    assert timed_runs.wait(process, 0, 0.1) is None
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_benchmarks_end_when_their_minutes_are_over(tmp_path):
    ended = python("-m", "benchmarks", "--out", tmp_path / "out.json", "--minutes", "0")
    assert ended.stdout == "0 minutes are over: the rest is omitted.\n"


@pytest.mark.long
def test_a_run_in_one_program_has_the_results_of_train(tmp_path):
    trainer, small = small_data.Trainer(tmp_path), ["--config.dataset=digits", "--config.batch_size=64"]
    experiment = small_data.Experiment(trainer, "few", "resnet8", 256, small)
    experiment.setting |= {"epochs": 3, "schedule.milestones": (2,)}
    config = experiment.config("channel", 3, {"learning_rate": 0.05, "reparam.a": 0.6})
    best = trainer.train("one", {"one": config})["one"]
    summary = training.train(config, tmp_path / "train")

    ours, theirs = tmp_path / "one", tmp_path / "train"
    assert best == summary["best_val_accuracy"]
    assert evaluate_folded(ours)["test"]["accuracy"] == summary["test_accuracy"]
    for name in ("config.json", "data.json"):
        assert run_folder.read(ours, name) == run_folder.read(theirs, name)
    for ours_line, line in zip(run_folder.read_lines(ours), run_folder.read_lines(theirs), strict=True):
        same = ours_line.keys() - {"seconds"}
        chex.assert_trees_all_close({k: ours_line[k] for k in same}, {k: line[k] for k in same}, rtol=1e-3)
    stds = [
        [{layer: numbers["std"] for layer, numbers in line["layers"].items()} for line in lines]
        for lines in (run_folder.read_lines(folder, "weights.jsonl") for folder in (ours, theirs))
    ]
    chex.assert_trees_all_close(*stds, rtol=1e-4)
