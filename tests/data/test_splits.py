"""The splits, statistics and fingerprint of a data set in memory, by value, and the arguments that are refused."""

import hashlib
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.data import sets
from wcjax import data
from wcjax.data.dataset import channel_statistics
from wcjax.errors import InputError


def test_the_split_is_the_documented_permutation(cifar_dir, arrays):
    dataset = data.load("cifar10", cifar_dir, val_fraction=0.3, seed=7)
    order = np.argsort([hashlib.sha256(image.tobytes()).hexdigest() for image in arrays["x_train"]])
    order = order[np.random.default_rng(7).permutation(40)]
    for part, xy in (("images", "x"), ("labels", "y")):
        np.testing.assert_array_equal(getattr(dataset.val, part), arrays[f"{xy}_train"][order[:12]])
        np.testing.assert_array_equal(getattr(dataset.train, part), arrays[f"{xy}_train"][order[12:]])
        np.testing.assert_array_equal(getattr(dataset.test, part), arrays[f"{xy}_test"])
    assert {(split.images.dtype, split.labels.dtype) for split in dataset[:3]} == {
        (np.dtype(np.uint8), np.dtype(np.int32))
    }
    assert (len(data.load("cifar10", cifar_dir).val.labels), dataset.num_classes) == (4, 10)


@pytest.mark.parametrize("equal", [False, True])
def test_the_order_in_a_file_changes_nothing(tmp_path, arrays, equal):
    if equal:  # half of the training images are one image, with several labels
        arrays["x_train"][::2] = arrays["x_train"][0]
    datasets = []
    for name, order in (("one", np.arange(40)), ("other", np.random.default_rng(5).permutation(40))):
        shuffled = {f"{xy}_train": arrays[f"{xy}_train"][order] for xy in "xy"}
        shuffled |= {f"{xy}_test": arrays[f"{xy}_test"][:: 1 if name == "one" else -1] for xy in "xy"}
        np.savez(tmp_path / f"{name}.npz", **shuffled)
        datasets.append(data.load("cifar10", tmp_path / f"{name}.npz"))
    one, other = datasets
    sets.assert_same((one.train, one.val, one.val), (other.train, other.val, other.val))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_the_fingerprint_covers_pixels_labels_and_number(cifar_dir, arrays, split, other):
    fingerprint = data.load("cifar10", cifar_dir).fingerprint()
    assert (fingerprint["classes"], fingerprint["train"]["images"], fingerprint["test"]["images"]) == (10, 40, 6)
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    for part, changes in (
        ("content", {f"x_{split}": np.where(np.indices(images.shape).sum(0) == 0, images ^ 1, images)}),
        ("labels", {f"y_{split}": np.where(np.arange(len(labels)) == 3, (labels + 1) % 10, labels)}),
        ("images", {f"x_{split}": images[:-1], f"y_{split}": labels[:-1]}),
    ):
        np.savez(cifar_dir / "cifar10.npz", **arrays | changes)
        changed = data.load("cifar10", cifar_dir).fingerprint()
        assert changed[split][part] != fingerprint[split][part]
        assert changed[other] == fingerprint[other]


# 2,500 images are counted in three pieces, and the last piece is shorter.
@pytest.mark.parametrize("shape", [(2500, 4, 6, 3), (3, 5, 5, 1)])
def test_mean_and_std_are_those_of_float64_pixels(shape):
    images = np.random.default_rng(1).beta([0.3, 1, 4][: shape[-1]], 2, shape) * 255
    images = images.astype(np.uint8)
    pixels, statistics = images.astype(np.float64) / 255, channel_statistics(images)
    assert [x.dtype for x in statistics] == [np.float32, np.float32]
    np.testing.assert_allclose(statistics, (pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))), rtol=1e-7)


def test_mean_and_std_cover_the_training_split_alone(cifar_dir, arrays):
    dataset = data.load("cifar10", cifar_dir, val_fraction=0.5)
    np.testing.assert_allclose(dataset.mean, (dataset.train.images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, (dataset.train.images / 255).std(axis=(0, 1, 2)), rtol=1e-6)
    arrays["x_train"][..., 1] = 77
    np.savez(cifar_dir / "cifar10.npz", **arrays)
    with pytest.raises(InputError, match="cifar10: channel 1 has the same value in every pixel"):
        data.load("cifar10", cifar_dir)


def test_digits_are_the_scaled_ones_of_scikit_learn():
    digits, dataset = load_digits(), data.load("digits")
    assert [split.images.shape for split in dataset[:3]] == [(1293, 8, 8, 1), (144, 8, 8, 1), (360, 8, 8, 1)]
    assert dataset.num_classes == 10
    # Each of the 17 values has its own level; the counts pair them up.
    levels, counts = np.unique(np.concatenate([split.images.ravel() for split in dataset[:3]]), return_counts=True)
    values, expected_counts = np.unique(digits.images, return_counts=True)
    np.testing.assert_array_equal(counts, expected_counts)
    assert all(
        abs(int(level) - Fraction(255 * int(x), 16)) <= Fraction(1, 2) for level, x in zip(levels, values, strict=True)
    )
    assert (levels[0], levels[8], levels[-1]) == (0, 128, 255)

    def count(images, labels):
        return Counter((np.rint(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    images = [count(split.images[..., 0] * (16 / 255), split.labels) for split in dataset[:3]]
    assert sum(images, Counter()) == count(digits.images, digits.target)
    shares = np.bincount(dataset.test.labels) / np.bincount(digits.target)
    assert np.all(abs(shares - 0.2) < 1 / 170), "the test split has a fifth of each class"


def test_train_images_keeps_the_first_of_the_same_order(cifar_dir):
    everything, few = data.load("cifar10", cifar_dir), data.load("cifar10", cifar_dir, train_images=7)
    first = data.Split(everything.train.images[:7], everything.train.labels[:7])
    sets.assert_same((few.train, few.val, few.test), (first, everything.val, everything.test))
    np.testing.assert_allclose(few.mean, (first.images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    assert few.fingerprint() == everything.fingerprint()


KNOWN = r"Known: digits, cifar10, cifar100, tiny_imagenet, imagenet\.$"


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cifar_10", {}, f"unknown data set 'cifar_10'. Did you mean 'cifar10'\\? {KNOWN}"),
        ("CIFAR100", {}, f"unknown data set 'CIFAR100'. Did you mean 'cifar100'\\? {KNOWN}"),
        ("svhn", {}, f"unknown data set 'svhn'. {KNOWN}"),
        (None, {}, f"unknown data set None. {KNOWN}"),
        *(
            ("digits", {"val_fraction": x}, f"val_fraction must be .* above 0 and below 1, found {x!r}")
            for x in (0, 1, float("nan"), "0.1")
        ),
        ("digits", {"seed": 1.5}, "seed must be an integer of at least 0, found 1.5"),
        ("digits", {"train_images": -1}, "train_images must be an integer of at least 0, found -1"),
        (
            "digits",
            {"train_images": 1294},
            "but digits has 1293 training images .* smaller number, or 0 for all",
        ),
        (
            "digits",
            {"val_fraction": 1e-4},
            "of 1437 training images leaves the validation split empty.*a larger val_fr",
        ),
        ("digits", {"val_fraction": 0.9999}, "of 1437 training images leaves the training split empty.*a smaller val_"),
    ],
)
def test_an_argument_out_of_range_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        data.load(name, **options)


@pytest.mark.parametrize("options", [{"seed": 5}, {"val_fraction": 0.4}])
def test_seed_and_fraction_change_train_and_val_alone(options):
    dataset, same, other = data.load("digits"), data.load("digits"), data.load("digits", **options)
    sets.assert_same(dataset, same)
    np.testing.assert_array_equal(dataset.test.images, other.test.images)
    np.testing.assert_array_equal(dataset.test.labels, other.test.labels)
    assert sets.pairs(dataset.val) != sets.pairs(other.val)


def test_digits_without_scikit_learn_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"^digits needs scikit-learn: pip install 'wcjax\[train\]'$"):
        data.load("digits")
