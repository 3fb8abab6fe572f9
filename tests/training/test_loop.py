"""What a run leaves behind: its folder and its numbers."""

import collections
import math
import runpy
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.run_folder import read, read_lines
from wcjax.run_folder.checkpoints import load_tree
from wcjax.training import loop
from wcjax.training import step as steps

FOLDER = "checkpoints config.json data.json folded .lock metrics.jsonl summary.json tensorboard weights.jsonl"
METRICS = "epoch step train_loss train_accuracy val_loss val_accuracy learning_rate images_per_second seconds"
SUMMARY = (
    "best_epoch best_val_accuracy test_accuracy test_loss epochs images_per_second train_seconds compile_seconds "
    "num_parameters device num_devices jax_version"
)


def test_a_finished_folder_holds_what_the_docs_list(tiny_run):
    run, summary = tiny_run
    assert {path.name for path in run.iterdir()} == set(FOLDER.split())
    config = read(run, "config.json")
    assert training.check_config(config) == training.check_config(runs.tiny())
    assert config.keys() == training.default_config().to_dict().keys()

    lines, rates = read_lines(run), [0.1, 0.1, 0.05, 0.025]  # a milestone counts from the first step after that epoch
    for epoch, (line, rate) in enumerate(zip(lines, rates, strict=True), start=1):
        assert line.keys() == set(METRICS.split())
        assert (line["epoch"], line["step"]) == (epoch, epoch * STEPS)
        assert math.isclose(line["learning_rate"], rate, rel_tol=1e-6)
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_per_second"] > 0 < line["seconds"]

    accuracies = [line["val_accuracy"] for line in lines]
    assert summary == read(run, "summary.json")
    assert summary.keys() == set(SUMMARY.split())
    assert summary["best_val_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert (summary["epochs"], summary["num_devices"]) == (EPOCHS, 1)
    assert summary["num_parameters"] == 3 * 3 * 1 * 8 + 2 * 8 + 8 * 10 + 10


def test_the_first_of_the_best_epochs_is_folded(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
    summary = training.train(runs.tiny(), tmp_path / "run")
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


def events(path):
    """The events of a file for TensorBoard."""
    raw = path.read_bytes()
    while raw:  # a record: length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(raw[:8], "little")
        yield Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]


def scalars_of(run):
    """{name: {epoch: number}} as TensorBoard shows it: a session that starts at an epoch hides it in older files."""
    shown = collections.defaultdict(dict)
    for path in sorted((run / "tensorboard").iterdir()):
        for event in events(path):
            if event.HasField("session_log"):
                for numbers in shown.values():
                    for epoch in [epoch for epoch in numbers if epoch >= event.step]:
                        del numbers[epoch]
            for value in event.summary.value:
                if not value.tag.startswith("_hparams_/"):
                    assert event.step not in shown[value.tag], f"{value.tag} has two points at epoch {event.step}"
                    shown[value.tag][event.step] = value.simple_value
    return shown


def test_tensorboard_shows_every_number_under_the_usual_names(tiny_run):
    names = {"train_loss": "train/loss", "train_accuracy": "train/accuracy", "learning_rate": "train/learning_rate"}
    names |= {"val_loss": "val/loss", "val_accuracy": "val/accuracy"}
    expected = collections.defaultdict(dict)
    for line in read_lines(tiny_run[0]):
        epoch = line.pop("epoch")
        for name, x in line.items():
            expected[names.get(name, name)][epoch] = np.float32(x)
    for line in read_lines(tiny_run[0], "weights.jsonl"):
        for layer, numbers in line["layers"].items():
            del numbers["histogram"]
            for name, x in numbers.items():
                expected[f"weights/{name}/{layer}"][line["epoch"]] = np.float32(x)
    results = {"test/accuracy": "test_accuracy", "test/loss": "test_loss", "val/best_accuracy": "best_val_accuracy"}
    expected |= {name: {EPOCHS: np.float32(tiny_run[1][key])} for name, key in results.items()}
    assert scalars_of(tiny_run[0]) == expected


def test_a_resumed_run_is_one_run_in_tensorboard(tiny_run, tmp_path):
    run = tmp_path / "run"
    runs.stop(runs.tiny(), run, 2 * STEPS + 1)
    runs.cut(run / "checkpoints" / "2")  # so that epoch 2 is repeated, which the first event file has already
    runs.resume(runs.tiny(), run)
    shown, expected = scalars_of(run), scalars_of(tiny_run[0])
    timeless = shown.keys() - runs.TIMES
    assert {name: shown[name] for name in timeless} == {name: expected[name] for name in timeless}
    assert shown.keys() == expected.keys()
    first, second = sorted((run / "tensorboard").iterdir())
    assert hyperparameters(first) == hyperparameters(second)


def hyperparameters(path):
    """What the HPARAMS tab gets from an event file: {key: value}, the names of the results, whether the run ended."""
    data = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(path)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    keys = data["_hparams_/session_start_info"].session_start_info.hparams
    experiment = data["_hparams_/experiment"].experiment
    assert {info.name for info in experiment.hparam_infos} == keys.keys()
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in keys.items()}
    return values, {info.name.tag for info in experiment.metric_infos}


def test_the_hyperparameters_of_tensorboard_are_the_config(tiny_run):
    (path,) = (tiny_run[0] / "tensorboard").iterdir()
    values, results = hyperparameters(path)
    assert (values["reparam.name"], values["learning_rate"], values["batch_size"]) == ("arctan", 0.1, 64)
    assert (values["augment.flip"], values["schedule.milestones"]) == (False, "(2, 3)")
    assert not {"data_dir", "mesh.data", "checkpoint_every"} & values.keys(), "they may change when a run resumes"
    assert results == {"test/accuracy", "test/loss", "val/best_accuracy"}
    assert any(value.tag == "_hparams_/session_end_info" for event in events(path) for value in event.summary.value)


def test_a_run_without_tensorboardx_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    for name in [n for n in sys.modules if n.startswith(("tensorboardX", "wcjax.run_folder.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # so that an import of it fails
    caplog.set_level("INFO", "wcjax")
    training.train(runs.tiny(epochs=1), tmp_path / "run")
    assert "No events for TensorBoard: tensorboardX is not installed." in caplog.messages
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_finished_run_returns_its_summary_and_does_nothing(tiny_run, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny_run[0].rglob("*")}
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("it looked at the data"))
    monkeypatch.setattr(steps, "init_state", lambda *args: pytest.fail("it made a network"))
    assert training.train(runs.tiny(), tiny_run[0]) == tiny_run[1]
    assert {path: path.stat().st_mtime_ns for path in tiny_run[0].rglob("*")} == before


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_resnet8_learns_the_digits(tmp_path):
    config = runpy.run_path(str(runs.ROOT / "configs" / "digits.py"))["get_config"]()
    config.epochs = 4
    assert training.train(config, tmp_path / "run")["test_accuracy"] > 0.9
