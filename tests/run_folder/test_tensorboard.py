"""What TensorBoard shows of a run."""

import collections
import sys

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.run_folder import read_lines

NAMES = {"train_loss": "train/loss", "train_accuracy": "train/accuracy", "learning_rate": "train/learning_rate"}
NAMES |= {"val_loss": "val/loss", "val_accuracy": "val/accuracy"}
RESULTS = {"test/accuracy": "test_accuracy", "test/loss": "test_loss", "val/best_accuracy": "best_val_accuracy"}


def events(path):
    """The events of a file for TensorBoard."""
    raw = path.read_bytes()
    while raw:  # a record: length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(raw[:8], "little")
        yield Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]


def scalars(run):
    """{name: {epoch: number}} as TensorBoard shows it: a session that starts at an epoch hides it in older files."""
    shown = collections.defaultdict(dict)
    for path in sorted((run / "tensorboard").iterdir()):
        for event in events(path):
            if event.HasField("session_log"):
                for name, numbers in shown.items():
                    shown[name] = {epoch: x for epoch, x in numbers.items() if epoch < event.step}
            for value in event.summary.value:
                if not value.tag.startswith("_hparams_/"):
                    assert event.step not in shown[value.tag], f"{value.tag} has two points at epoch {event.step}"
                    shown[value.tag][event.step] = value.simple_value
    return shown


def test_a_resumed_run_is_one_run_with_all_its_numbers(tmp_path):
    run = tmp_path / "run"
    runs.stop(runs.tiny(), run, 2 * STEPS + 1)
    runs.cut(run / "checkpoints" / "2")  # so that epoch 2 is repeated, which the first event file has already
    runs.resume(runs.tiny(), run)
    expected = collections.defaultdict(dict)
    for line in read_lines(run):
        epoch = line.pop("epoch")
        for name, x in line.items():
            expected[NAMES.get(name, name)][epoch] = np.float32(x)
    for line in read_lines(run, "weights.jsonl"):
        for layer, numbers in line["layers"].items():
            del numbers["histogram"]
            for name, x in numbers.items():
                expected[f"weights/{name}/{layer}"][line["epoch"]] = np.float32(x)
    expected |= {name: {EPOCHS: np.float32(runs.summary(run)[key])} for name, key in RESULTS.items()}
    assert scalars(run) == expected
    first, second = sorted((run / "tensorboard").iterdir())
    assert hyperparameters(first) == hyperparameters(second)


def hyperparameters(path):
    """What the HPARAMS tab gets from an event file: {key: value}, and the names of the results."""
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


def test_the_hyperparameters_are_the_config(tiny_run):
    (path,) = (tiny_run[0] / "tensorboard").iterdir()
    values, results = hyperparameters(path)
    assert (values["reparam.name"], values["learning_rate"], values["batch_size"]) == ("arctan", 0.1, 64)
    assert (values["augment.flip"], values["schedule.milestones"]) == (False, "(2, 3)")
    assert not {"data_dir", "mesh.data", "checkpoint_every"} & values.keys(), "they may change when a run resumes"
    assert results == RESULTS.keys()
    assert any(value.tag == "_hparams_/session_end_info" for event in events(path) for value in event.summary.value)


def test_a_run_without_tensorboardx_has_no_events(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wcjax.run_folder.tensorboard", raising=False)
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.setitem(sys.modules, name, None)  # so that an import of it fails
    training.train(runs.tiny(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
