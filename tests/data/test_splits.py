"""The splits, statistics and fingerprint of a data set in memory, by value, and the arguments that are refused."""

import hashlib
import re
import shlex

import chex
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.data import sets
from wcjax import data
from wcjax.errors import InputError


def test_the_split_is_the_documented_permutation(cifar_dir, arrays):
    dataset = data.load("cifar10", cifar_dir, val_fraction=0.3, seed=7)
    order = np.argsort([hashlib.sha256(image.tobytes()).hexdigest() for image in arrays["x_train"]])
    order = order[np.random.default_rng(7).permutation(40)]
    split = lambda part, rows: data.Split(arrays[f"x_{part}"][rows], arrays[f"y_{part}"][rows])
    expected = split("train", order[12:]), split("train", order[:12]), split("test", np.arange(6))
    chex.assert_trees_all_equal(dataset[:3], expected, strict=True)
    assert (len(data.load("cifar10", cifar_dir).val.labels), dataset.num_classes) == (4, 10)


def test_the_order_in_a_file_changes_nothing(tmp_path, arrays):
    arrays["x_train"][::2] = arrays["x_train"][0]  # half of the training images are one image, with several labels
    np.savez(tmp_path / "one.npz", **arrays)
    for key, x in arrays.items():
        arrays[key] = x[np.random.default_rng(5).permutation(len(x))]
    np.savez(tmp_path / "other.npz", **arrays)
    one, other = (data.load("cifar10", tmp_path / f"{name}.npz") for name in ("one", "other"))
    chex.assert_trees_all_equal((one.train, one.val), (other.train, other.val))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("name", ["cifar10", "digits"])  # digits has 1,293 training images, counted in two pieces
def test_mean_and_std_are_those_of_the_training_split(cifar_dir, name):
    dataset = data.load(name, cifar_dir)
    pixels = dataset.train.images / 255
    assert (dataset.mean.dtype, dataset.std.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 1, 2)), rtol=1e-7)


def test_digits_are_the_scaled_ones_of_scikit_learn():
    digits, dataset = load_digits(), data.load("digits")
    assert [split.images.shape for split in dataset[:3]] == [(1293, 8, 8, 1), (144, 8, 8, 1), (360, 8, 8, 1)]
    assert dataset.num_classes == 10
    scaled = np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8)
    assert sets.pairs(*dataset[:3]) == sets.pairs((scaled, digits.target))
    shares = np.bincount(dataset.test.labels) / np.bincount(digits.target)
    assert np.all(abs(shares - 0.2) < 1 / 170), "the test split has a fifth of each class"


def test_train_images_keeps_the_first_of_the_same_order(cifar_dir):
    everything, few = data.load("cifar10", cifar_dir), data.load("cifar10", cifar_dir, train_images=7)
    first = data.Split(everything.train.images[:7], everything.train.labels[:7])
    chex.assert_trees_all_equal((few.train, few.val, few.test), (first, everything.val, everything.test))
    np.testing.assert_allclose(few.mean, (first.images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    assert few.fingerprint() == everything.fingerprint()


FROM_FILES = ("cifar10", "tiny_imagenet", "imagenet")
KNOWN = r"Known: digits, cifar10, cifar100, tiny_imagenet, imagenet\.$"


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("CIFAR100", {}, f"unknown data set 'CIFAR100'. Did you mean 'cifar100'\\? {KNOWN}"),
        (None, {}, f"unknown data set None. {KNOWN}"),
        ("digits", {"val_fraction": 1}, "val_fraction must be .* above 0 and below 1, found 1"),
        ("digits", {"val_fraction": "0.1"}, "val_fraction must be .* above 0 and below 1, found '0.1'"),
        ("digits", {"val_fraction": 1e-4}, "of 1437 training images leaves the validation split empty.*a larger val_"),
        ("digits", {"val_fraction": 0.9999}, "of 1437 training images leaves the training split empty.*a smaller val_"),
        ("digits", {"seed": 1.5}, "seed must be an integer of at least 0, found 1.5"),
        ("digits", {"train_images": -1}, "train_images must be an integer of at least 0, found -1"),
        ("digits", {"train_images": 1294}, "but digits has 1293 training images .* smaller number, or 0 for all"),
        *((name, {"data_dir": "s3://sets"}, "data_dir s3://sets: s3:// is not a local path") for name in FROM_FILES),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        data.load(name, **options)


@pytest.mark.parametrize(
    "name, data_dir, message",
    [
        ("cifar10", None, "cifar10 needs data_dir. Prepare it once"),
        ("cifar10", "notes.txt", "cifar10: {} is a file; data_dir must be a directory or an .npz file. Prepare it"),
        ("cifar10", "no", "cifar10: there is no directory {}. Prepare it once"),
        ("cifar10", "folder.npz", "cifar10: {} contains neither cifar10.npz nor cifar10/<version>/dataset_info"),
        ("cifar10", "cifar.npz", "cifar10: there is no file {}. Prepare it once"),
        ("cifar10", "", "cifar10: {} contains neither cifar10.npz nor cifar10/<version>/dataset_info.json. "),
        ("imagenet", "notes.txt", "imagenet: {} is a file; data_dir must be a directory. Pass as data_dir a folder"),
        ("imagenet", None, "imagenet needs data_dir. Pass as data_dir a folder with train/<class>/<image>"),
        ("tiny_imagenet", "no", "tiny_imagenet: there is no directory {}. Unpack tiny-imagenet-200.zip"),
    ],
)
def test_missing_data_are_explained_with_a_command(tmp_path, name, data_dir, message):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.npz").mkdir()
    path = None if data_dir is None else tmp_path / data_dir
    with pytest.raises(InputError, match="^" + re.escape(message.format(path))) as error:
        data.load(name, path)
    for line in str(error.value).splitlines():
        if "tensorflow_datasets" in line:
            python, option, code = shlex.split(line)
            assert (python, option) == ("python", "-c")
            compile(code, "command", "exec")
            missing_file = path is not None and path.suffix == ".npz" and not path.exists()
            directory = "DIR" if path is None or path.is_file() else tmp_path if missing_file else path
            assert f"data_dir='{directory}', file_format='array_record').download_and_prepare()" in code
