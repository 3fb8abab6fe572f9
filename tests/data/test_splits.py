import hashlib
import subprocess
import sys

import numpy as np
import pytest

from wcjax import data
from wcjax.data.dataset import channel_statistics
from wcjax.errors import InputError


@pytest.fixture
def arrays(make_arrays):
    return make_arrays()


@pytest.fixture
def cifar_dir(tmp_path, arrays):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path


def pairs(*splits):
    """Every image with its label, sorted."""
    return sorted((image.tobytes(), int(label)) for split in splits for image, label in zip(*split, strict=True))


def test_train_and_val_hold_every_training_image_with_its_label_once(cifar_dir, arrays):
    dataset = data.load("cifar10", cifar_dir)
    assert (len(dataset.train.labels), len(dataset.val.labels)) == (36, 4)
    assert pairs(dataset.train, dataset.val) == pairs((arrays["x_train"], arrays["y_train"]))


def test_the_split_is_the_documented_permutation(cifar_dir, arrays):
    dataset = data.load("cifar10", cifar_dir, val_fraction=0.3, seed=7)
    order = np.argsort([hashlib.sha256(image.tobytes()).hexdigest() for image in arrays["x_train"]])
    order = order[np.random.default_rng(7).permutation(40)]
    np.testing.assert_array_equal(dataset.val.images, arrays["x_train"][order[:12]])
    np.testing.assert_array_equal(dataset.val.labels, arrays["y_train"][order[:12]])
    np.testing.assert_array_equal(dataset.train.images, arrays["x_train"][order[12:]])


def with_equal_images(arrays):
    """Half of the training images are one image, with several labels."""
    arrays["x_train"][::2] = arrays["x_train"][0]
    return arrays


@pytest.mark.parametrize("change", [dict, with_equal_images], ids=["different images", "equal images"])
def test_the_order_in_a_file_changes_neither_the_splits_nor_the_fingerprint(tmp_path, arrays, change):
    arrays = change(arrays)
    found = []
    for name, order in (("one", np.arange(40)), ("other", np.random.default_rng(5).permutation(40))):
        changed = arrays | {f"{xy}_train": arrays[f"{xy}_train"][order] for xy in "xy"}
        changed |= {f"{xy}_test": arrays[f"{xy}_test"][:: 1 if name == "one" else -1] for xy in "xy"}
        np.savez(tmp_path / f"{name}.npz", **changed)
        found.append(data.load("cifar10", tmp_path / f"{name}.npz"))
    for split, other in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_array_equal(split.images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)
    assert found[0].fingerprint() == found[1].fingerprint()


def test_the_fingerprint_changes_with_each_pixel_label_and_number(cifar_dir, arrays, tmp_path):
    whole = data.load("cifar10", cifar_dir).fingerprint()
    assert (whole["classes"], whole["train"]["images"], whole["test"]["images"]) == (10, 40, 6)

    def changed(**changes):
        np.savez(tmp_path / "changed.npz", **arrays | changes)
        return data.load("cifar10", tmp_path / "changed.npz").fingerprint()

    for split in ("train", "test"):
        other = {"train": "test", "test": "train"}[split]
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        for name, value in (
            ("content", {f"x_{split}": np.where(np.indices(images.shape).sum(0) == 0, images ^ 1, images)}),
            ("labels", {f"y_{split}": np.where(np.arange(len(labels)) == 3, (labels + 1) % 10, labels)}),
            ("images", {f"x_{split}": images[:-1], f"y_{split}": labels[:-1]}),
        ):
            found = changed(**value)
            assert found[split][name] != whole[split][name]
            assert found[other] == whole[other]


def test_only_the_seed_moves_images_between_train_and_val(cifar_dir):
    first, same, other = (data.load("cifar10", cifar_dir, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.val.images, same.val.images)
    assert pairs(first.val) != pairs(other.val)


def test_the_test_split_is_the_official_one_whatever_the_seed(cifar_dir, arrays):
    for seed in (0, 1):
        test = data.load("cifar10", cifar_dir, seed=seed).test
        np.testing.assert_array_equal(test.images, arrays["x_test"])
        np.testing.assert_array_equal(test.labels, arrays["y_test"])


def test_splits_have_the_documented_dtypes(cifar_dir):
    dataset = data.load("cifar10", cifar_dir)
    for split in (dataset.train, dataset.val, dataset.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert (dataset.mean.dtype, dataset.std.dtype, dataset.num_classes) == (np.float32, np.float32, 10)


# 2,500 images are more than one of the pieces the histogram is counted in, and not a multiple of it.
@pytest.mark.parametrize("shape", [(2500, 4, 6, 3), (3, 5, 5, 1)])
def test_mean_and_std_are_those_of_float64_pixels(shape):
    images = np.random.default_rng(1).beta([0.3, 1, 4][: shape[-1]], 2, shape) * 255
    images = images.astype(np.uint8)
    mean, std = channel_statistics(images)
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-7)


def test_mean_and_std_are_of_the_training_split_alone(cifar_dir):
    dataset = data.load("cifar10", cifar_dir, val_fraction=0.5)
    np.testing.assert_allclose(dataset.mean, (dataset.train.images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, (dataset.train.images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name, near", [("cifar_10", "cifar10"), ("CIFAR100", "cifar100"), ("digit", "digits")])
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(name, near):
    message = f"unknown data set '{name}'. Did you mean '{near}'\\? Known: digits, cifar10, cifar100"
    with pytest.raises(InputError, match=message):
        data.load(name)


@pytest.mark.parametrize("name", ["svhn", None])
def test_a_name_near_to_none_gets_the_list_alone(name):
    known = "digits, cifar10, cifar100, tiny_imagenet, imagenet"
    with pytest.raises(InputError, match=rf"unknown data set .*\. Known: {known}\.$"):
        data.load(name)


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, float("nan"), "0.1", None])
def test_val_fraction_must_lie_between_0_and_1(val_fraction):
    with pytest.raises(InputError, match=f"val_fraction must be .* above 0 and below 1, found {val_fraction!r}"):
        data.load("digits", val_fraction=val_fraction)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_seed_must_be_an_integer_of_at_least_0(seed):
    with pytest.raises(InputError, match=f"seed must be an integer of at least 0, found {seed!r}"):
        data.load("digits", seed=seed)


@pytest.mark.parametrize("val_fraction, empty, do", [(0.01, "validation", "larger"), (0.99, "training", "smaller")])
def test_a_split_left_empty_is_an_error(cifar_dir, val_fraction, empty, do):
    with pytest.raises(InputError, match=f"of 40 training images leaves the {empty} split empty.*a {do} val_fraction"):
        data.load("cifar10", cifar_dir, val_fraction=val_fraction)


def test_a_constant_channel_is_an_error_as_it_cannot_be_normalized(tmp_path, arrays):
    arrays["x_train"][..., 1] = 77
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(InputError, match="cifar10: channel 1 has the same value in every pixel"):
        data.load("cifar10", tmp_path)


def test_importing_the_package_leaves_heavy_packages_alone():
    heavy = {"tensorflow_datasets", "tensorflow", "sklearn", "PIL"}
    code = f"import sys, wcjax.data; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
