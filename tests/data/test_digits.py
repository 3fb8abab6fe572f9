import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from sklearn.datasets import load_digits

from wcjax import data
from wcjax.errors import InputError


@pytest.fixture(scope="module")
def stored():
    return load_digits()


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


def test_the_sizes_are_those_of_the_documentation(dataset):
    assert [split.images.shape for split in dataset[:3]] == [(1293, 8, 8, 1), (144, 8, 8, 1), (360, 8, 8, 1)]
    assert dataset.num_classes == 10


def test_pixels_are_scaled_to_the_nearest_of_256_levels_and_no_two_values_fall_together(dataset, stored):
    # Each of the 17 values must have gone to its own level; the counts pair them up.
    pixels = np.concatenate([split.images.ravel() for split in dataset[:3]])
    levels, counts = np.unique(pixels, return_counts=True)
    values, stored_counts = np.unique(stored.images, return_counts=True)
    np.testing.assert_array_equal(counts, stored_counts)
    for level, value in zip(levels, values, strict=True):
        assert abs(int(level) - Fraction(255 * int(value), 16)) <= Fraction(1, 2)
    assert (levels[0], levels[8], levels[-1]) == (0, 128, 255)


def test_every_stored_image_is_in_one_split_with_its_own_label(dataset, stored):
    def counted(images, labels):
        return Counter((np.rint(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    found = sum((counted(split.images[..., 0] * (16 / 255), split.labels) for split in dataset[:3]), Counter())
    assert found == counted(stored.images, stored.target)


def test_the_test_split_holds_a_fifth_of_each_class(dataset, stored):
    shares = np.bincount(dataset.test.labels) / np.bincount(stored.target)
    assert np.all(abs(shares - 0.2) < 1 / 170)


def test_the_test_split_does_not_depend_on_seed_or_val_fraction(dataset):
    other = data.load("digits", seed=5, val_fraction=0.4)
    np.testing.assert_array_equal(dataset.test.images, other.test.images)
    np.testing.assert_array_equal(dataset.test.labels, other.test.labels)
    assert not np.array_equal(dataset.val.labels, other.val.labels[:144])


def test_without_scikit_learn_the_error_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="digits: scikit-learn cannot be imported .* pip install scikit-learn"):
        data.load("digits")
