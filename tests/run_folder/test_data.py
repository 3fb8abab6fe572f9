"""A run stays with its data: resumed or evaluated on other data it ends with one line that says what differs."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.training import runs
from tests.training.runs import STEPS, cifar_arrays, write_cifar
from wcjax import data, training
from wcjax.errors import InputError
from wcjax.run_folder import read
from wcjax.training import evaluate, loop


@pytest.fixture
def run(cifar_run, tmp_path):
    """A copy of a run as it was before its last epoch."""
    return runs.unfinished_copy(cifar_run[0], tmp_path / "run", epoch=3)


@pytest.fixture
def untrained(monkeypatch):
    """Makes a run fail that goes beyond its data."""
    monkeypatch.setattr(loop, "Run", lambda *_: pytest.fail("it trained"))


def test_data_json_has_the_fingerprint_the_mean_and_the_std(cifar_run):
    stored = read(cifar_run[0], "data.json")
    images = data.load("cifar10", cifar_run[1]["data_dir"], val_fraction=0.1).train.images / 255
    assert stored.keys() == {"classes", "train", "test", "mean", "std"}
    assert (stored["classes"], stored["train"]["images"], stored["test"]["images"]) == (10, 101, 21)
    np.testing.assert_allclose(stored["mean"], images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(stored["std"], images.std(axis=(0, 1, 2)), rtol=1e-6)


def changed(key, index, value):
    array = cifar_arrays()[key]
    array[index] = value
    return {key: array}


def one_less(split):
    return {f"{xy}_{split}": cifar_arrays()[f"{xy}_{split}"][:-1] for xy in "xy"}


OTHER = {
    "one image less": (one_less("train"), "101 train images in the run, 100 found"),
    "one pixel": (changed("x_train", (7, 3, 3, 0), 99), "other train images "),
    "one label": (changed("y_train", 7, 1), "other labels of the train images"),
    "a test image": (changed("x_test", 3, 0), "other test images "),
}
other_data = pytest.mark.parametrize("change, message", OTHER.values(), ids=OTHER)


@other_data
def test_a_run_is_not_resumed_on_other_data(run, tmp_path, untrained, change, message):
    before = runs.files(run)
    with pytest.raises(InputError, match=f"^{run}: the data found differ from .*: {message}"):
        training.train(runs.cifar(write_cifar(tmp_path / "set", **change)), run)
    assert runs.files(run) == before


@other_data
def test_a_run_is_not_evaluated_on_other_data(cifar_run, tmp_path, capsys, change, message):
    folder = write_cifar(tmp_path / "set", **change)
    assert evaluate.main([str(cifar_run[0]), "--data_dir", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {cifar_run[0]}: the data found differ from ") and message in line


def test_a_run_that_was_never_saved_stays_with_its_data(cifar_run, tmp_path):
    runs.stop(cifar_run[1], tmp_path / "run", 1)
    with pytest.raises(InputError, match="other labels of the train images"):
        training.train(runs.cifar(write_cifar(tmp_path / "set", **OTHER["one label"][0])), tmp_path / "run")


def change_size(image):
    image.write_bytes(image.read_bytes() + b"\0")


STREAMED = {
    "size": (change_size, r"other train images \(in their pixels,"),
    "name": (lambda image: image.rename(image.with_name("train_14.JPEG")), r"other train images \(in their pixels,"),
    "class": (lambda image: image.rename(image.parents[1] / "n00000001/train_14.JPEG"), "other train images"),
    "one class less": (
        lambda image: [shutil.rmtree(image.parents[2] / split / "n00000002") for split in ("train", "val")],
        "3 classes in the run, 2 found; 42 train images in the run, 28 found; 15 test images in the run, 10 found",
    ),
}


@pytest.mark.parametrize("change, message", STREAMED.values(), ids=STREAMED)
def test_a_streamed_run_stays_with_its_files(streamed_run, tmp_path, untrained, change, message):
    run = runs.unfinished_copy(streamed_run[0], tmp_path / "run", epoch=3)
    images = shutil.copytree(streamed_run[1]["data_dir"], tmp_path / "set")
    change(images / "train" / "n00000000" / "train_13.JPEG")
    with pytest.raises(InputError, match=message) as error:
        training.train(runs.streamed(images), run)
    assert "\n" not in str(error.value)


def test_only_the_splits_that_are_evaluated_count(streamed_run, cifar_run, tmp_path):
    images = shutil.copytree(streamed_run[1]["data_dir"], tmp_path / "set")
    (images / "train" / "n00000001" / "train_1.JPEG").unlink()
    expected = training.evaluate_folded(streamed_run[0])
    assert training.evaluate_folded(streamed_run[0], data_dir=str(images)) == expected
    (images / "val" / "n00000001" / "val_1.JPEG").unlink()
    with pytest.raises(InputError, match="15 test images in the run, 14 found"):
        training.evaluate_folded(streamed_run[0], data_dir=str(images))
    other = str(write_cifar(tmp_path / "cifar", **OTHER["one pixel"][0]))
    expected = training.evaluate_folded(cifar_run[0], splits=("test",))
    assert training.evaluate_folded(cifar_run[0], data_dir=other, splits=("test",)) == expected


@pytest.mark.parametrize("kept", [True, False], ids=["data.json kept", "a run from before data.json"])
def test_the_order_of_the_images_in_a_file_does_not_count(run, cifar_run, tmp_path, kept):
    shuffled = lambda array: array[np.random.default_rng(1).permutation(len(array))]
    arrays = {name: shuffled(array) for name, array in cifar_arrays().items()}
    if not kept:
        (run / "data.json").unlink()
    assert len(runs.resume(runs.cifar(write_cifar(tmp_path / "set", **arrays)), run)) == STEPS
    runs.assert_same_run(run, cifar_run[0])
    assert read(run, "data.json") == read(cifar_run[0], "data.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mean": [0.5]}, "data.json: mean and std must have 3 numbers, one for each channel."),
        ({"std": [-1, 1, 1]}, "data.json, std is not what a run writes: a list of 1 to 4 finite numbers of at least 0"),
        ({"train": None}, "data.json, train is not what a run writes: a JSON object is needed, found None."),
        ({"classes": 1.5}, "data.json, classes is not what a run writes: a whole number"),
        ({"test": {"images": 30, "labels": "| x |", "content": "0" * 16}}, "16 hexadecimal digits is needed, found '|"),
    ],
)
def test_a_data_json_that_no_run_writes_is_refused(cifar_run, tmp_path, change, message):
    run = shutil.copytree(cifar_run[0], tmp_path / "run")
    (run / "data.json").write_text(json.dumps(read(run, "data.json") | change))
    with pytest.raises(InputError, match=re.escape(message)):
        training.evaluate_folded(run)
