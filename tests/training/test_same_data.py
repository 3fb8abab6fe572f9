"""A run stays with its data: resumed or evaluated on other data it ends with one line that says what differs."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import pictures
from tests.training import runs
from wcjax import data, training
from wcjax.data import augment
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import Checkpoints
from wcjax.training import evaluate, loop

ORDER = np.random.default_rng(1).permutation(120)


def arrays():
    rng = np.random.default_rng(0)
    images = {
        f"x_{split}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in (("train", 120), ("test", 30))
    }
    return images | {"y_train": np.arange(120) % 10, "y_test": np.arange(30) % 10}


def write(folder, **changes):
    """folder/cifar10.npz with these arrays replaced; returns the folder."""
    folder.mkdir(parents=True)
    np.savez(folder / "cifar10.npz", **arrays() | changes)
    return folder


def cifar(data_dir):
    return runs.tiny(dataset="cifar10", data_dir=str(data_dir), batch_size=16, val_fraction=0.3)


def streamed(data_dir):
    return runs.tiny(dataset="imagenet", data_dir=str(data_dir), image_size=16, batch_size=8, epochs=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on CIFAR's arrays."""
    folder = tmp_path_factory.mktemp("cifar")
    training.train(cifar(write(folder / "set")), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def streamed_run(tmp_path_factory):
    """A finished run on a folder of images."""
    folder = tmp_path_factory.mktemp("streamed")
    training.train(streamed(pictures.class_folders(folder / "set")), folder / "run")
    return folder / "run"


@pytest.fixture
def untrained(monkeypatch):
    """Makes a run fail that goes beyond its data."""
    monkeypatch.setattr(loop, "make_model", lambda *_: pytest.fail("it made a network"))


def unfinished(run, folder):
    """A copy of a run as it was before its last epoch."""
    copy = shutil.copytree(run, folder / "run")
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "folded")
    shutil.rmtree(copy / "checkpoints" / str(max(runs.epochs_kept(copy))))
    return copy


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_keeps_what_its_data_are_with_mean_and_std(run):
    stored = json.loads((run / "data.json").read_text())
    dataset = data.load("cifar10", run.parent / "set", val_fraction=0.3)
    assert stored.keys() == {"classes", "train", "test", "mean", "std"}
    assert (stored["classes"], stored["train"]["images"], stored["test"]["images"]) == (10, 120, 30)
    np.testing.assert_allclose(stored["mean"], (dataset.train.images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(stored["std"], (dataset.train.images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


def changed(key, index, value):
    array = arrays()[key].copy()
    array[index] = value
    return {key: array}


HOW = "(in their pixels, or in the names and sizes of their files)"
OTHER = {
    "119 train images": (
        {k: v[:-1] for k, v in arrays().items() if "train" in k},
        "120 train images in the run, 119 found",
    ),
    "one pixel": (changed("x_train", (7, 3, 3, 0), 99), f"other train images {HOW}"),
    "one label": (changed("y_train", 7, 1), "other labels of the train images"),
    "a test image": (changed("x_test", 3, 0), f"other test images {HOW}"),
}


@pytest.mark.parametrize("change, message", OTHER.values(), ids=OTHER)
def test_a_run_is_not_resumed_on_other_data(run, tmp_path, untrained, change, message):
    copy, other = unfinished(run, tmp_path), write(tmp_path / "set", **change)
    before = files(copy)
    with pytest.raises(InputError) as caught:
        training.train(cifar(other), copy)
    assert str(caught.value) == (
        f"{copy}: the data found differ from the data that the run was trained on: {message}. "
        "Give that data as data_dir, or train in a new folder."
    )
    assert files(copy) == before


def test_a_run_resumed_on_the_same_images_in_another_order_ends_in_the_same_bits(run, tmp_path):
    copy = unfinished(run, tmp_path)
    other = write(tmp_path / "set", x_train=arrays()["x_train"][ORDER], y_train=arrays()["y_train"][ORDER])
    training.train(cifar(other), copy)
    runs.assert_same_run(copy, run)


def test_a_class_removed_between_two_starts_is_one_line(streamed_run, tmp_path, untrained):
    copy = unfinished(streamed_run, tmp_path)
    fewer = shutil.copytree(streamed_run.parent / "set", tmp_path / "set")
    for split in ("train", "val"):
        shutil.rmtree(fewer / split / "n00000002")
    with pytest.raises(InputError) as caught:
        training.train(streamed(fewer), copy)
    expected = (
        "3 classes in the run, 2 found; 42 train images in the run, 28 found; 15 test images in the run, 10 found. "
    )
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["size", "name", "class"])
def test_a_streamed_run_is_not_resumed_when_one_file_has_another_size_name_or_class(
    streamed_run, tmp_path, untrained, change
):
    copy = unfinished(streamed_run, tmp_path)
    other = shutil.copytree(streamed_run.parent / "set", tmp_path / "set")
    image = other / "train" / "n00000000" / "train_13.JPEG"
    if change == "size":
        image.write_bytes(image.read_bytes() + b"\0")
    else:
        image.rename(image.with_name("train_14.JPEG") if change == "name" else other / "train/n00000001/train_14.JPEG")
    with pytest.raises(InputError, match=r"differ from the data .* trained on: other train images \(in their pixels,"):
        training.train(streamed(other), copy)


def test_a_run_that_is_stopped_before_its_first_epoch_ends_stays_with_its_data_too(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(cifar(run.parent / "set"), tmp_path / "run")
    with pytest.raises(InputError, match="other labels of the train images"):
        training.train(cifar(write(tmp_path / "set", **OTHER["one label"][0])), tmp_path / "run")


def test_evaluation_of_the_same_images_in_another_order_gives_the_same_accuracies(run, tmp_path):
    order = ORDER[ORDER < 30]
    changes = {f"{xy}_train": arrays()[f"{xy}_train"][ORDER] for xy in "xy"}
    changes |= {f"{xy}_test": arrays()[f"{xy}_test"][order] for xy in "xy"}
    expected, found = (
        training.evaluate_folded(run, data_dir=where) for where in (None, str(write(tmp_path / "set", **changes)))
    )
    for split in ("val", "test"):
        assert found[split]["accuracy"] == expected[split]["accuracy"]
        np.testing.assert_allclose(found[split]["loss"], expected[split]["loss"], rtol=1e-6)


@pytest.mark.parametrize("change, message", OTHER.values(), ids=OTHER)
def test_evaluation_on_other_data_is_an_error_of_one_line(run, tmp_path, capsys, change, message):
    assert evaluate.main([str(run), "--data_dir", str(write(tmp_path / "set", **change))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}: the data found differ from ") and message in line


def test_only_the_splits_that_are_evaluated_must_be_the_same(streamed_run, run, tmp_path):
    fewer = shutil.copytree(streamed_run.parent / "set", tmp_path / "set")
    (fewer / "train" / "n00000001" / "train_1.JPEG").unlink()
    expected = training.evaluate_folded(streamed_run)
    assert training.evaluate_folded(streamed_run, data_dir=str(fewer)) == expected
    (fewer / "val" / "n00000001" / "val_1.JPEG").unlink()
    with pytest.raises(InputError, match="15 test images in the run, 14 found"):
        training.evaluate_folded(streamed_run, data_dir=str(fewer))
    other = str(write(tmp_path / "cifar", **OTHER["one pixel"][0]))
    expected = training.evaluate_folded(run, splits=("test",))
    assert training.evaluate_folded(run, data_dir=other, splits=("test",)) == expected


def test_images_are_normalized_with_the_mean_and_std_of_the_run(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    stored = json.loads((copy / "data.json").read_text()) | statistics
    (copy / "data.json").write_text(json.dumps(stored))
    test = data.load("cifar10", run.parent / "set").test
    model, variables = training.load_folded(copy)
    images = augment.normalize(jnp.asarray(test.images), **{name: np.array(x) for name, x in statistics.items()})
    logits = np.float64(model.apply(variables, images, train=False))
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(30), test.labels]
    found = training.evaluate_folded(copy, splits=("test",))["test"]
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    assert found["accuracy"] == np.mean(logits.argmax(1) == test.labels)
    assert abs(found["loss"] - training.evaluate_folded(run, splits=("test",))["test"]["loss"]) > 1e-3


def test_a_run_from_before_data_were_kept_is_resumed_and_keeps_them(run, tmp_path):
    copy = unfinished(run, tmp_path)
    (copy / "data.json").unlink()
    training.train(cifar(run.parent / "set"), copy)
    runs.assert_same_run(copy, run)
    assert (copy / "data.json").read_text() == (run / "data.json").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mean": [0.5]}, "data.json: mean and std must have 3 numbers, one for each channel."),
        ({"std": [-1, 1, 1]}, "data.json, std is not what a run writes: a list of 1 to 4 finite numbers of at least 0"),
        ({"train": None}, "data.json, train is not what a run writes: a JSON object is needed, found None."),
        ({"classes": 1.5}, "data.json, classes is not what a run writes: a whole number"),
        (
            {"test": {"images": 30, "labels": "| x |", "content": "0" * 16}},
            "data.json, test, labels is not what a run writes: 16 hexadecimal digits is needed, found '| x |'.",
        ),
    ],
)
def test_a_data_json_that_no_run_writes_is_refused(run, tmp_path, change, message):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "data.json").write_text(json.dumps(json.loads((copy / "data.json").read_text()) | change))
    with pytest.raises(InputError, match=re.escape(message)):
        training.evaluate_folded(copy)
