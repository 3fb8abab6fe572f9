"""What the user got wrong is found before any work starts; the message says what was found and what is allowed."""

import json
import re

import numpy as np
import pytest

from tests.training import runs
from wcjax import training
from wcjax.config import keys
from wcjax.config.keys import VARIANTS
from wcjax.errors import InputError
from wcjax.training import loop
from wcjax.training import step as steps

WRONG = [
    # a number out of range
    ({"reparam": {"a": 0.0}}, "Arctan: a must be finite and greater than 0, found a=0.0."),
    ({"reparam": {"a": -1.0, "name": "erf"}}, "Erf: a must be finite and greater than 0, found a=-1.0."),
    ({"reparam": {"b": 0}}, "Arctan: b must be finite and greater than 0, found b=0.0."),
    ({"reparam": {"b": float("nan")}}, "Arctan: b must be finite and greater than 0, found b=nan."),
    (
        {"reparam": {"alpha": 0.5, "name": "powerprop"}},
        "PowerProp: alpha must be finite and at least 1, found alpha=0.5.",
    ),
    ({"epochs": 0}, "config.epochs must be between 1 and 2147483647, found 0."),
    ({"keep_checkpoints": 0}, "config.keep_checkpoints must be between 1 and 2147483647, found 0."),
    ({"batch_size": 0}, "config.batch_size must be between 1 and 2147483647, found 0."),
    ({"val_fraction": 0.0}, "config.val_fraction must be strictly between 0 and 1, found 0.0."),
    ({"val_fraction": 1}, "config.val_fraction must be strictly between 0 and 1, found 1.0."),
    ({"learning_rate": 0.0}, "config.learning_rate must be strictly between 0 and inf, found 0.0."),
    ({"learning_rate": float("inf")}, "config.learning_rate must be strictly between 0 and inf, found inf."),
    ({"learning_rate": float("nan")}, "config.learning_rate must be strictly between 0 and inf, found nan."),
    ({"momentum": 1.5}, "config.momentum must be between 0 and 1, found 1.5."),
    ({"weight_decay": -1e-4}, "config.weight_decay must be between 0 and inf, found -0.0001."),
    ({"seed": -1}, "config.seed must be between 0 and 4294967295, found -1."),
    ({"seed": 2**32}, "config.seed must be between 0 and 4294967295, found 4294967296."),  # the same bits as seed 0
    ({"augment": {"padding": -1}}, "config.augment.padding must be between 0 and 4096, found -1."),
    ({"schedule": {"factor": 0.0}}, "config.schedule.factor must be strictly between 0 and inf, found 0.0."),
    ({"schedule": {"milestones": (5, 3)}}, "milestones must be epochs in rising order, like (60, 120), found (5, 3)."),
    ({"schedule": {"milestones": [3, 3]}}, "milestones must be epochs in rising order, like (60, 120), found (3, 3)."),
    ({"schedule": {"milestones": (1.5,)}}, "milestones must be epochs in rising order, like (60, 120), found (1.5,)."),
    ({"schedule": {"milestones": (0, 3)}}, "milestones must be epochs in rising order, like (60, 120), found (0, 3)."),
    ({"epochs": 2**31}, "config.epochs must be between 1 and 2147483647, found 2147483648."),
    ({"batch_size": 10**400}, "config.batch_size must be between 1 and 2147483647, found 1000"),
    ({"learning_rate": 10**400}, "config.learning_rate must be strictly between 0 and inf, found inf."),
    ({"image_size": 4097}, "config.image_size must be between 1 and 4096, found 4097."),
    ({"data_workers": 1025}, "config.data_workers must be between 0 and 1024, found 1025."),
    ({"reparam": {"a": 1e7}}, "config.reparam.a must be between 1e-06 and 1000000.0, found 10000000.0."),
    ({"reparam": {"b": 1e-7}}, "config.reparam.b must be between 1e-06 and 1000000.0, found 1e-07."),
    # an unknown name
    ({"model": "resnt8"}, "unknown config.model 'resnt8'. Did you mean 'resnet8'? Known: resnet8, resnet20, "),
    (
        {"dataset": "cifar"},
        "unknown config.dataset 'cifar'. Did you mean 'cifar10'? Known: digits, cifar10, cifar100, ",
    ),
    ({"optimizer": "adamw"}, "unknown config.optimizer 'adamw'. Did you mean 'adam'? Known: sgd, adam."),
    ({"dtype": "float16"}, "unknown config.dtype 'float16'. Did you mean 'bfloat16'? Known: float32, bfloat16."),
    (
        {"reparam": {"name": "atan"}},
        "unknown config.reparam.name 'atan'. Did you mean 'arctan'? "
        "Known: arctan, arsinh, erf, powerprop, weightnorm, none.",
    ),
    ({"reparam": {"learn": "yes"}}, "unknown config.reparam.learn 'yes'. Known: none, fine, channel, coarse."),
    ({"stem": "mnist"}, "stem must be one of 'cifar', 'imagenet', found 'mnist'."),
    ({"model": "vgg16_bn", "dropout": 1}, "dropout must be a number of at least 0 and below 1, found 1.0."),
    ({"kernel_init": "he"}, "kernel_init must be one of 'kaiming', 'torch', found 'he'."),
    # a misspelt key
    (
        {"learning_rat": 0.1},
        "unknown config key 'learning_rat'. Did you mean 'learning_rate'? Known: augment, batch_size, ",
    ),
    (
        {"reparam": {"aa": 0.5}},
        "unknown config key 'reparam.aa'. Did you mean 'reparam.a'? "
        "Known: reparam.a, reparam.alpha, reparam.b, reparam.learn, reparam.name.",
    ),
    # a wrong type
    ({"epochs": "ten"}, "config.epochs must be of type int, found 'ten' of type str."),
    ({"epochs": 2.0}, "config.epochs must be of type int, found 2.0 of type float."),
    ({"epochs": True}, "config.epochs must be of type int, found True of type bool."),
    ({"learning_rate": "0.1"}, "config.learning_rate must be of type float, found '0.1' of type str."),
    ({"seed": None}, "config.seed must be of type int, found None of type NoneType."),
    ({"reparam": {"a": [0.5]}}, "config.reparam.a must be of type float, found [0.5] of type list."),
    ({"reparam": "arctan"}, "config.reparam has keys of its own (a, alpha, b, learn, name), found 'arctan'."),
    ({"dropout": "0.3"}, "config.dropout must be of type float, found '0.3' of type str."),
    # settings that do not go together
    ({"model": "wrn28_10", "stem": "imagenet"}, "config.stem must stay 'cifar': wrn28_10 has no such option."),
    ({"dropout": 0.1}, "config.dropout must stay None: resnet8 has no such option."),
    ({"reparam": {"name": "powerprop", "learn": "fine"}}, "PowerProp has no a and b to learn: use learn='none'."),
    ({"reparam": {"name": "weightnorm", "learn": "coarse"}}, "WeightNorm has no a and b to learn: use learn='none'."),
    ({"reparam": {"name": "none", "learn": "fine"}}, "None has no a and b to learn: use learn='none'."),
    ({"batch_size": 1294}, "config.batch_size is 1294, but digits has 1293 training images."),
    ({"dataset": "cifar10"}, "cifar10 needs data_dir. Prepare it once"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[json.dumps(change) for change, _ in WRONG])
def test_a_wrong_setting_is_named_before_anything_is_made(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "init_state", lambda *args: pytest.fail("it made a network"))
    with pytest.raises(InputError, match=re.escape(message)):
        training.train(change, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "reparam, message",
    [
        ({"a": 0.4}, r"head/kernel: largest \|w\| is 0\.86\d+, but Arctan\(a=0\.4, b=1\) only reaches \|w\| < 0\.628"),
        ({"a": 0.4, "learn": "coarse"}, r"head/kernel: largest \|w\| is 0\.86\d+, but Arctan\(a=0\.4, b=1\) only"),
        ({"a": 0.7, "name": "erf"}, r"head/kernel: largest \|w\| is 0\.86\d+, but Erf\(a=0\.7, b=1\) only"),
        (
            {"a": 0.005, "name": "arsinh"},
            r"head/kernel: Ψ⁻¹\(w\), or the norm of w, overflows for .* Arsinh\(a=0\.005",
        ),
    ],
)
def test_initial_weights_beyond_the_bound_are_refused(reparam, message, tmp_path):
    with pytest.raises(InputError, match=f"^initial weights: {message}"):
        training.train(runs.tiny(reparam=reparam), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_a_that_the_error_names_fits(tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def start(*args):
        raise Started

    monkeypatch.setattr(loop, "_run_epochs", start)
    with pytest.raises(InputError) as error:
        training.train(runs.tiny(reparam__a=0.4), tmp_path / "run")
    a = float(re.search(r"Choose a >= ([\d.]+), or smaller weights\.", str(error.value))[1])
    assert a < 0.4 * 1.5
    with pytest.raises(Started):
        training.train(runs.tiny(reparam__a=a), tmp_path / "run")


def test_a_config_without_keys_is_the_default_config_and_whole_numbers_may_stand_for_floats():
    assert training.check_config({}) == training.default_config()
    config = training.check_config({"learning_rate": 1, "reparam": {"a": 1}, "schedule": {"milestones": [3, 5]}})
    assert (config.learning_rate, config.reparam.a) == (1.0, 1.0)
    assert type(config.learning_rate) is type(config.reparam.a) is float
    assert config.schedule.milestones == (3, 5)


def test_numbers_and_bools_of_numpy_are_numbers():
    given = {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "augment": {"flip": np.bool_(False)}}
    given |= {"schedule": {"milestones": [np.int32(1), np.int32(2)]}, "reparam": {"a": np.array(0.75)}}
    found = training.check_config(given)
    expected = {"epochs": 3, "learning_rate": 0.5, "augment": {"flip": False}, "reparam": {"a": 0.75}}
    expected |= {"schedule": {"milestones": (1, 2)}}
    assert json.dumps(found.to_dict()) == json.dumps(training.check_config(expected).to_dict())
    with pytest.raises(InputError, match=re.escape("config.epochs must be of type int, found 2.5 of type float.")):
        training.check_config({"epochs": np.float64(2.5)})


def test_check_config_leaves_the_config_it_was_given_alone():
    config = training.default_config()
    checked = training.check_config(config)
    checked.epochs = 99
    assert config == training.default_config()


def test_variants_change_only_the_reparameterization():
    for variant in VARIANTS:
        config = training.with_variant(training.default_config(), f"resnet8,{variant}")
        checked = training.check_config(config).to_dict()
        checked.pop("reparam")
        expected = training.default_config().to_dict()
        expected.pop("reparam")
        assert checked == expected
    assert training.with_variant(training.default_config(), "resnet8").reparam.name == "arctan"
    known = "wc, arsinh, erf, learned, coarse, channel, pp, wn, plain"
    message = f"unknown variant 'plane'. Did you mean 'plain'? Known: {known}."
    with pytest.raises(InputError, match=re.escape(message)):
        training.with_variant(training.default_config(), "resnet8,plane")


def test_keys_are_checked_by_their_full_names():
    keys.check_keys(["epochs", "reparam.a", "schedule.milestones"])
    with pytest.raises(InputError, match=re.escape("unknown config key 'reparam.alfa'. Did you mean 'reparam.alpha'?")):
        keys.check_keys(["epochs", "reparam.alfa"])
    with pytest.raises(
        InputError, match=re.escape("config.augment has keys of its own: augment.flip, augment.padding.")
    ):
        keys.check_keys(["augment"])


def test_a_folder_with_another_config_is_left_alone_and_the_difference_printed(tiny_run, monkeypatch):
    run, _ = tiny_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("it looked at the data"))
    changed = runs.tiny(seed=7, learning_rate=0.2, reparam__a=0.9, data_dir="elsewhere")
    with pytest.raises(InputError) as error:
        training.train(changed, run)
    assert str(error.value).splitlines() == [
        f"workdir {run} holds a run with another config:",
        "  learning_rate: 0.1 in the folder, 0.2 asked for",
        "  reparam.a: 1.0 in the folder, 0.9 asked for",
        "  seed: 0 in the folder, 7 asked for",
        "Give a new folder, or that config.",
    ]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_data_of_a_run_may_have_moved(tiny_run):
    run, summary = tiny_run
    assert training.train(runs.tiny(data_dir="elsewhere"), run) == summary


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_file_in_place_of_the_workdir_is_named(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"workdir .*: .*/file is a file; give a folder\."):
        training.train(runs.tiny(), tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoints_without_a_config_are_not_touched(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(InputError, match=r"workdir .* holds checkpoints but no config\.json; give a new folder\."):
        training.train(runs.tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_json_that_is_none_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is no"):
        training.train(runs.tiny(), tmp_path)
    with pytest.raises(InputError, match=r"config\.json is no"):
        training.evaluate_folded(tmp_path)


@pytest.fixture
def cifar(tmp_path):
    """A folder with 40 and 6 random images in the form of CIFAR-10."""
    rng = np.random.default_rng(0)
    sizes = {"train": 40, "test": 6}
    images = {f"x_{split}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in sizes.items()}
    labels = {f"y_{split}": rng.integers(0, 10, n, np.int32) for split, n in sizes.items()}
    np.savez(tmp_path / "cifar10.npz", **images, **labels)
    return tmp_path


def test_data_that_cannot_be_read_is_named_before_anything_is_made(cifar):
    config = {"dataset": "cifar10", "data_dir": str(cifar), "batch_size": 8}
    file = cifar / "cifar10.npz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cifar10\.npz: not a readable \.npz file .* It is truncated, damaged, or"):
        training.train(config, cifar / "run")
    assert not (cifar / "run").exists()


def test_a_batch_larger_than_what_is_left_after_the_split_is_refused(cifar):
    config = {"dataset": "cifar10", "data_dir": str(cifar), "val_fraction": 0.5, "batch_size": 21}
    message = "config.batch_size is 21, but cifar10 has 20 training images."
    with pytest.raises(InputError, match=re.escape(message)):
        training.train(config, cifar / "run")
    assert not (cifar / "run").exists()
