"""Crops and flips against a plain NumPy loop, and normalization against its formula."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wcjax.data.augment import normalize, random_crop_and_flip
from wcjax.errors import InputError

crop_and_flip = jax.jit(random_crop_and_flip, static_argnames=("padding", "flip"))


def draws(images, outputs, padding=4):
    """The (top, left, mirrored) of each output, int (n, 3). Fails unless each output is a window of its image."""
    h, w = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = np.full((len(images), 3), -1)
    for top, left, mirrored in itertools.product(range(2 * padding + 1), range(2 * padding + 1), (0, 1)):
        window = padded[:, top : top + h, left : left + w][:, :, :: -1 if mirrored else 1]
        rows[(window == outputs).all(axis=(1, 2, 3))] = top, left, mirrored
    assert rows.min() >= 0
    return rows


def random_images(n, h=8, w=8, c=1):
    return np.random.default_rng(n + h).integers(1, 256, (n, h, w, c), np.uint8)


def test_windows_and_flips_are_uniform_and_independent():
    images = random_images(16_200)  # 100 for each of the 162 windows and directions
    rows = draws(images, np.asarray(crop_and_flip(jax.random.key(0), images)))
    counts = np.bincount(np.ravel_multi_index(tuple(rows.T), (9, 9, 2)), minlength=162)
    assert counts.min() > 0
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # The tops of neighbours, top and left of an image, and the flips of neighbours.
    for one, other in ((rows[:-1, 0], rows[1:, 0]), (rows[:, 0], rows[:, 1]), (rows[:-1, 2], rows[1:, 2])):
        assert scipy.stats.chi2_contingency(scipy.stats.contingency.crosstab(one, other).count).pvalue > 1e-3


def test_a_key_draws_the_same_windows_with_and_without_flips():
    images, key = random_images(200), jax.random.key(3)
    crop = jax.jit(chex.assert_max_traces(random_crop_and_flip, n=1))
    flipped, again, other = (draws(images, np.asarray(crop(k, images))) for k in (key, key, jax.random.key(4)))
    plain = draws(images, np.asarray(crop_and_flip(key, images, flip=False)))
    np.testing.assert_array_equal(flipped, again)
    assert not np.array_equal(flipped, other)
    np.testing.assert_array_equal(plain[:, :2], flipped[:, :2])
    assert plain[:, 2].sum() == 0
    np.testing.assert_array_equal(crop_and_flip(key, images, padding=0, flip=False), images)


@pytest.mark.parametrize("h, w, c, padding, dtype", [(6, 11, 3, 2, jnp.bfloat16), (2, 3, 1, 5, np.float32)])
def test_every_shape_and_dtype_is_cropped_as_by_numpy(h, w, c, padding, dtype):
    images = random_images(20, h, w, c).astype(dtype)
    outputs = crop_and_flip(jax.random.key(1), images, padding=padding)
    assert (outputs.shape, outputs.dtype) == (images.shape, dtype)
    draws(images, np.asarray(outputs), padding)


MEAN, STD = np.float32([0.49, 0.48, 0.45]), np.float32([0.25, 0.24, 0.26])


def test_normalize_is_its_formula_rounded_once():
    images = random_images(20, c=3)
    expected = (images / 255.0 - MEAN.astype(np.float64)) / STD.astype(np.float64)
    outputs = jax.jit(normalize)(images, MEAN, STD)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    rounded = normalize(images, MEAN, STD, jnp.bfloat16)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, normalize(images, MEAN, STD).astype(jnp.bfloat16))


KEY, ONE = jax.random.key(0), np.zeros((1, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random_crop_and_flip(KEY, ONE[0]), r"must have shape \(n, h, w, c\), found \(4, 4, 3\)"),
        (lambda: random_crop_and_flip(KEY, ONE, padding=-1), "an integer of at least 0, found -1"),
        (lambda: random_crop_and_flip(KEY, ONE, padding=1.5), "an integer of at least 0, found 1.5"),
        (lambda: normalize(ONE.astype(np.float32), MEAN, STD), "takes uint8 images .* found float32"),
    ],
)
def test_an_argument_of_another_form_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
