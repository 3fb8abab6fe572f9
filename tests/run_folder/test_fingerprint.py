"""A run stays with its data: resumed or evaluated on other data it ends with one line that says what differs."""

import shutil

import pytest

from tests.training import runs
from wcjax import data, training
from wcjax.errors import InputError
from wcjax.run_folder import read
from wcjax.system.files import write_json
from wcjax.training import loop


def change(name, index, value):
    """Changes an element of an array of CIFAR."""

    def act(folder):
        array = runs.cifar_arrays()[name]
        array[index] = value
        runs.write_cifar(folder, **{name: array})

    return act


def drop_class(folder):
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "n00000002")


PIXELS = r"other test images \(in their pixels, or in the names and sizes of their files\)"
FEWER = "3 classes in the run, 2 found; 42 train images in the run, 28 found; 15 test images in the run, 10 found"
OTHER = {  # the kind of run, whether it has checkpoints, and what is done to its data
    "one label": ("cifar", False, change("y_train", 7, 1), "other labels of the train images"),
    "a test image": ("cifar", True, change("x_test", 3, 0), PIXELS),
    "one class less": ("streamed", True, drop_class, FEWER),
}


@pytest.mark.parametrize("kind, is_saved, act, message", OTHER.values(), ids=OTHER)
def test_a_run_refuses_other_data(request, tmp_path, monkeypatch, kind, is_saved, act, message):
    finished, config = request.getfixturevalue(f"{kind}_run")
    run, folder = tmp_path / "run", tmp_path / "set"
    runs.unfinished_copy(finished, run, epoch=3) if is_saved else runs.stop(config, run, 1)
    act(shutil.copytree(config["data_dir"], folder))
    monkeypatch.setattr(loop, "Run", lambda *_: pytest.fail("it trained"))
    before = runs.files(run)
    with pytest.raises(InputError, match=rf"^{run}: the data found differ from [^\n]*: {message}[^\n]*$"):
        training.train(config | {"data_dir": str(folder)}, run)
    assert runs.files(run) == before
    with pytest.raises(InputError, match=message):
        training.evaluate_folded(finished, data_dir=str(folder), splits=("train", "test"))


def test_only_the_splits_that_are_evaluated_count(cifar_run, tmp_path):
    folder = shutil.copytree(cifar_run[1]["data_dir"], tmp_path / "set")
    change("x_train", (7, 3, 3, 0), 99)(folder)
    expected = training.evaluate_folded(cifar_run[0], splits=("test",))
    assert training.evaluate_folded(cifar_run[0], data_dir=str(folder), splits=("test",)) == expected


def test_data_json_has_the_mean_and_std_of_the_training_images(cifar_run):
    stored = read(cifar_run[0], "data.json")
    dataset = data.load("cifar10", cifar_run[1]["data_dir"], val_fraction=0.1)
    assert stored == dataset.fingerprint() | {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}


def test_a_stored_mean_of_too_few_channels_is_refused(cifar_run, tmp_path):
    run = shutil.copytree(cifar_run[0], tmp_path / "run")
    write_json(run / "data.json", read(run, "data.json") | {"mean": [0.5]})
    with pytest.raises(InputError, match=r"data\.json: mean and std must have 3 numbers"):
        training.evaluate_folded(run)
