"""A mistake in a config is found before any work starts; the message names the value and what is allowed."""

import json
import re

import flax.linen as nn
import numpy as np
import pytest

from tests.run_folder.examples import SUMMARY
from tests.training import runs
from wcjax import models, training
from wcjax.config import check_config, default_config
from wcjax.errors import InputError

NUMBERS = {
    "epochs": [(0, "between 1 and 2147483647"), ("ten", "of type int"), (2.0, "of type int"), (True, "of type int")],
    "batch_size": [(10**400, "between 1 and 2147483647")],
    "seed": [(2**32, "between 0 and 4294967295")],  # the same bits as seed 0
    "momentum": [(1.5, "between 0 and 1")],
    "weight_decay": [(-1e-4, "a finite number of at least 0")],
    "val_fraction": [(1.0, "strictly between 0 and 1")],
    "learning_rate": [(x, "a finite number above 0") for x in (0.0, float("inf"), float("nan"))],
    "image_size": [(4097, "between 1 and 4096")],
    "data_workers": [(1025, "between 0 and 1024")],
    "reparam.a": [*((x, "between 1e-08 and 100000000.0") for x in (-1.0, 1e9)), ([0.5], "of type float")],
    "dropout": [("0.3", "of type float")],
}
NAMES = {
    "dataset": ("cifar", " Did you mean 'cifar10'? Known: digits, cifar10, cifar100, "),
    "model": ("resnt8", " Did you mean 'resnet8'? Known: resnet8, resnet20, "),
    "optimizer": ("adamw", " Did you mean 'adam'? Known: sgd, adam."),
    "dtype": ("float16", " Did you mean 'bfloat16'? Known: float32, bfloat16."),
    "reparam.name": ("atan", " Did you mean 'arctan'? Known: arctan, arsinh, erf, powerprop, weightnorm, none."),
    "reparam.learn": ("yes", " Known: none, fine, channel, coarse."),
}
TINY = {"dataset": "digits", "model": "tiny"}
MILESTONES = "config.schedule.milestones must be epochs in rising order, like (60, 120), found "
WRONG = [
    *(
        ({key: value}, f"config.{key} must be {allowed}, found {repr(value)[:4]}")
        for key, cases in NUMBERS.items()
        for value, allowed in cases
    ),
    *(({key: value}, f"unknown config.{key} '{value}'.{hint}") for key, (value, hint) in NAMES.items()),
    (
        {"reparam.alpha": 0.5, "reparam.name": "powerprop"},
        "PowerProp: alpha must be from 1 to 1e+08, found alpha=0.5.",
    ),
    ({"reparam.name": "powerprop", "reparam.learn": "fine"}, "PowerProp has no a and b to learn: use learn='none'."),
    ({"reparam": "arctan"}, "config.reparam has its own keys (a, alpha, b, learn, name), found 'arctan'."),
    ({"reparam.aa": 0.5}, "unknown config key 'reparam.aa'. Did you mean 'reparam.a'? Known: reparam.a, reparam.alp"),
    ({"stem": "mnist"}, "stem must be one of 'cifar', 'imagenet', found 'mnist'."),
    ({"kernel_init": "he"}, "kernel_init must be one of 'kaiming', 'torch', found 'he'."),
    ({"dropout": 0.1}, "config.dropout must stay None: resnet8 has no such option."),
    ({"model": "vgg16_bn", "kernel_init": "torch", "stem": "imagenet"}, "config.stem must stay 'cifar': vgg16_bn has "),
    ({"model": "vgg16_bn", "dropout": 1}, "dropout must be a number of at least 0 and below 1, found 1.0."),
    ({"schedule.milestones": [3, 3]}, f"{MILESTONES}(3, 3)."),
    ({"schedule.milestones": (1.5,)}, f"{MILESTONES}(1.5,)."),
    (TINY | {"batch_size": 1294}, "config.batch_size is 1294, but digits has 1293 training images."),
    (TINY | {"epochs": 2**31 - 1}, " steps each, but a run has at most 2147483647 steps: choose at most "),
    ({"data_dir": ""}, "cifar10 needs data_dir. Prepare it once"),
    (TINY | {"model": "own"}, "the network own has no companded layer, but config.reparam.name is arctan"),
    # Kaiming's uniform weights of the head, whose fan-in is 8, reach √(6/8).
    (TINY | {"reparam.a": 0.4, "reparam.learn": "coarse"}, "initial weights: head/kernel: largest |w| is 0.86"),
]


class Own(nn.Module):
    num_classes: int
    reparam: object
    learn: str
    dtype: object

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@pytest.mark.parametrize("changes, message", WRONG, ids=[str(changes)[:60] for changes, _ in WRONG])
def test_a_wrong_setting_is_named_before_any_work(changes, message, tmp_path, monkeypatch):
    runs.register_tiny()
    monkeypatch.setitem(models.NETWORKS, "own", Own)
    config = runs.changed({"dataset": "cifar10", "data_dir": str(tmp_path / "nowhere")}, changes)
    with pytest.raises(InputError, match=re.escape(message)):
        training.train(config, tmp_path / "run", on_step=lambda _: pytest.fail("it trains"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, {}),
        ({"learning_rate": 1, "schedule.milestones": [3, 5]}, {"learning_rate": 1.0, "schedule.milestones": (3, 5)}),
        ({"epochs": np.int64(3), "learning_rate": np.float32(0.5)}, {"epochs": 3, "learning_rate": 0.5}),
        ({"augment.flip": np.bool_(False), "reparam.a": np.array(0.75)}, {"augment.flip": False, "reparam.a": 0.75}),
        ({"schedule.milestones": np.array([1, 2])}, {"schedule.milestones": (1, 2)}),
        ({"schedule.milestones": [np.int32(1), np.int32(2)]}, {"schedule.milestones": (1, 2)}),
    ],
)
def test_a_config_is_completed_and_numbers_take_their_type(changes, expected):
    config, changed = default_config(), default_config()
    config.update(runs.changed({}, expected))
    checked = check_config(runs.changed({}, changes))
    assert json.dumps(checked.to_dict()) == json.dumps(config.to_dict())
    checked.epochs = 99
    assert check_config(config) == config, "it is copied"
    changed.update_from_flattened_dict(changes)  # as in a config file
    assert json.dumps(changed.to_dict()) == json.dumps(config.to_dict())


GONE = {"dataset": "cifar10", "data_dir": "gone"}


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["config.json", "failed.json"])  # a run that could not start has no config.json
def test_another_config_is_refused_with_the_difference(tmp_path, name):
    stored = check_config(GONE).to_dict()
    del stored["label_smoothing"]  # as if that key were younger than the run
    (tmp_path / name).write_text(json.dumps(stored if name == "config.json" else {"reason": "", "config": stored}))
    changes = {"seed": 7, "learning_rate": 0.2, "reparam": {"a": 0.9}, "data_dir": "moved"}
    with pytest.raises(InputError) as error:
        training.train(GONE | changes, tmp_path)
    assert str(error.value).splitlines() == [
        f"workdir {tmp_path} holds a run with another config:",
        "  learning_rate: 0.1 in the folder, 0.2 asked for",
        "  reparam.a: 1.0 in the folder, 0.9 asked for",
        "  seed: 0 in the folder, 7 asked for",
        "Give a new folder, or that config.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_finished_run_returns_its_summary_without_its_data(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(check_config(GONE).to_dict()))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    before = modified(tmp_path)
    assert training.train(GONE | {"data_dir": "moved"}, tmp_path) == SUMMARY, "the data of a run may have moved"
    assert modified(tmp_path) == before


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "workdir {} holds checkpoints but no config.json; give a new folder."),
        ("{", "{}/config.json is not JSON"),
        ("[]", "{}/config.json: expected a JSON object, found []."),
    ],
)
def test_a_workdir_that_cannot_be_used_is_named_and_kept(tmp_path, text, message):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    if text:
        (tmp_path / "config.json").write_text(text)
    before = modified(tmp_path)
    message = re.escape(message.replace("{}", str(tmp_path)))
    with pytest.raises(InputError, match=message):
        training.train(GONE, tmp_path)
    if text:
        with pytest.raises(InputError, match=message):
            training.evaluate_folded(tmp_path)
    assert modified(tmp_path) == before
