"""What a run leaves behind: its folder and its numbers."""

import math
import runpy
import shutil

import pytest

from tests.processes import ROOT
from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.config import check_config, default_config
from wcjax.errors import InputError
from wcjax.run_folder import read, read_lines
from wcjax.run_folder.checkpoints import load_tree
from wcjax.training import loop

FOLDER = "checkpoints config.json data.json folded .lock metrics.jsonl summary.json tensorboard weights.jsonl"
METRICS = "epoch step train_loss train_accuracy val_loss val_accuracy learning_rate images_per_second seconds"
SUMMARY = (
    "best_epoch best_val_accuracy test_accuracy test_loss epochs images_per_second train_seconds compile_seconds "
    "num_parameters device num_devices jax_version"
)


def test_a_finished_folder_holds_what_the_docs_list(tiny_run):
    run, _ = tiny_run
    assert {path.name for path in run.iterdir()} == set(FOLDER.split())
    config, summary = read(run, "config.json"), read(run, "summary.json")
    assert check_config(config) == check_config(runs.tiny())
    assert config.keys() == default_config().to_dict().keys()

    lines, rates = read_lines(run), [0.1, 0.1, 0.05, 0.025]  # a milestone counts from the first step after that epoch
    for epoch, (line, rate) in enumerate(zip(lines, rates, strict=True), start=1):
        assert line.keys() == set(METRICS.split())
        assert (line["epoch"], line["step"]) == (epoch, epoch * STEPS)
        assert math.isclose(line["learning_rate"], rate, rel_tol=1e-6)
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_per_second"] > 0
        assert line["seconds"] > 0

    accuracies = [line["val_accuracy"] for line in lines]
    assert summary.keys() == set(SUMMARY.split())
    assert summary["best_val_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert (summary["epochs"], summary["num_devices"]) == (EPOCHS, 1)
    assert summary["num_parameters"] == 3 * 3 * 1 * 8 + 2 * 8 + 8 * 10 + 10


def test_the_first_of_the_best_epochs_is_folded(tmp_path, monkeypatch):
    runs.pretend(monkeypatch, [0.5, 0.7, 0.7, 0.6])
    summary = training.train(runs.tiny(), tmp_path / "run")
    assert summary == read(tmp_path / "run", "summary.json")
    assert (summary["best_epoch"], summary["best_val_accuracy"]) == (2, 0.7)
    folded, best = load_tree(tmp_path / "run" / "folded"), runs.checkpoint(tmp_path / "run", 2)
    runs.assert_same_bits(folded["batch_stats"], best["batch_stats"])
    runs.assert_same_bits(folded["params"]["head"]["bias"], best["params"]["head"]["bias"])


def test_on_step_and_on_epoch_follow_each_step_and_epoch(tmp_path):
    calls, rows = [], []

    def on_step(progress):
        calls.append((progress.step, int(progress.state.step), progress.epoch, int(progress.totals.seen)))

    training.train(runs.tiny(epochs=2), tmp_path / "run", on_step, rows.append)
    assert calls == [(i + 1, i + 1, i // STEPS, 64 * (i % STEPS + 1)) for i in range(2 * STEPS)]
    assert rows == read_lines(tmp_path / "run") and len(rows) == 2


def test_a_run_that_started_before_the_lock_is_refused(tiny_run, tmp_path, monkeypatch):
    def load(config, real=loop.load_dataset):
        shutil.copytree(tiny_run[0], tmp_path / "run")  # another process trains here while this one reads the data
        (tmp_path / "run" / "summary.json").unlink()
        return real(config)

    monkeypatch.setattr(loop, "load_dataset", load)
    with pytest.raises(InputError, match="holds a run with another config:\n  seed: 0 in the folder, 1 asked for"):
        training.train(runs.tiny(seed=1), tmp_path / "run")
    assert read(tmp_path / "run", "config.json")["seed"] == 0


def test_milestones_that_the_run_does_not_reach_are_named(tmp_path, caplog):
    training.train(runs.tiny(epochs=2), tmp_path / "run")
    assert "The run ends after epoch 2, before schedule.milestones [2, 3]." in caplog.text


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_resnet8_learns_the_digits(tmp_path):
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    config.epochs = 4
    assert training.train(config, tmp_path / "run")["test_accuracy"] > 0.9
