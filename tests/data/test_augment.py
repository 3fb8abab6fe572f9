import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wcjax.data.augment import normalize, random_crop_and_flip
from wcjax.errors import InputError

SIDE = 9  # windows along one side for padding 4
crop_and_flip = jax.jit(random_crop_and_flip, static_argnames=("padding", "flip"))


def windows(images, padding):
    """All results that cropping and flipping may give, by (top, left, flipped): a plain NumPy loop."""
    h, w = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + h, left : left + w]
            yield (top, left, 0), window
            yield (top, left, 1), window[:, :, ::-1]


def draws(images, outputs, padding=4):
    """The (top, left, flipped) of each output, int (n, 3); fails where an output is none or several of the windows."""
    found, hits = np.zeros((len(images), 3), int), np.zeros(len(images), int)
    for draw, window in windows(images, padding):
        same = (window == outputs).all(axis=(1, 2, 3))
        found[same] = draw
        hits += same
    np.testing.assert_array_equal(hits, 1)
    return found


def random_images(n, h=8, w=8, c=1):
    return np.random.default_rng(n + h).integers(1, 256, (n, h, w, c), np.uint8)


@pytest.fixture(scope="module")
def many():
    """16,200 images, 100 for each window and direction, and what became of them."""
    images = random_images(16_200)
    return images, draws(images, np.asarray(crop_and_flip(jax.random.key(0), images)))


def test_every_result_is_one_window_of_the_padded_image(many):
    _, found = many  # `draws` has checked it for each image
    assert len(found) == 16_200


def test_all_162_windows_and_directions_are_equally_likely(many):
    _, found = many
    counts = np.bincount(np.ravel_multi_index(tuple(found.T), (SIDE, SIDE, 2)), minlength=162)
    assert counts.min() > 0
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_in_a_batch_draw_independently(many):
    _, found = many
    # Tops of neighbours, top and left of one image, mirroring of neighbours.
    for one, other in ((found[:-1, 0], found[1:, 0]), (found[:, 0], found[:, 1]), (found[:-1, 2], found[1:, 2])):
        assert scipy.stats.chi2_contingency(scipy.stats.contingency.crosstab(one, other).count).pvalue > 1e-3


def test_without_flip_the_windows_are_the_same_and_none_is_mirrored():
    images = random_images(200)
    key = jax.random.key(3)
    flipped = draws(images, np.asarray(crop_and_flip(key, images)))
    plain = draws(images, np.asarray(crop_and_flip(key, images, flip=False)))
    np.testing.assert_array_equal(plain[:, :2], flipped[:, :2])
    assert plain[:, 2].sum() == 0 and flipped[:, 2].sum() > 0


# Height and width must not be mixed up.
@pytest.mark.parametrize("h, w, c, padding", [(6, 11, 3, 2), (11, 6, 2, 4), (32, 32, 3, 4), (5, 7, 1, 1)])
def test_images_of_any_shape_are_cropped_as_by_numpy(h, w, c, padding):
    images = random_images(20, h, w, c)
    outputs = crop_and_flip(jax.random.key(1), images, padding=padding)
    assert outputs.shape == images.shape
    draws(images, np.asarray(outputs), padding)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, jnp.bfloat16])
def test_every_dtype_is_kept_and_cropped_alike(dtype):
    images = random_images(20)
    outputs = crop_and_flip(jax.random.key(1), images.astype(dtype))
    assert outputs.dtype == dtype
    np.testing.assert_array_equal(outputs, np.asarray(crop_and_flip(jax.random.key(1), images)).astype(dtype))


def test_padding_wider_than_the_image_gives_empty_windows_too():
    images = random_images(500, 2, 3)
    outputs = np.asarray(crop_and_flip(jax.random.key(1), images, padding=5, flip=False))
    empty = (outputs == 0).all(axis=(1, 2, 3))
    # A window meets the image for |shift| < 2 of 11 tops and < 3 of 11 lefts.
    assert abs(empty.mean() - (1 - 3 / 11 * 5 / 11)) < 0.05
    for image, output in zip(images[~empty], outputs[~empty], strict=True):
        assert any((window[0] == output).all() for _, window in windows(image[None], 5))


def test_no_padding_and_no_flip_change_nothing():
    images = random_images(10)
    np.testing.assert_array_equal(crop_and_flip(jax.random.key(0), images, padding=0, flip=False), images)


def test_the_key_alone_decides_in_and_out_of_jit():
    images = random_images(50)
    first = crop_and_flip(jax.random.key(7), images)
    np.testing.assert_array_equal(first, random_crop_and_flip(jax.random.key(7), images))
    assert not np.array_equal(first, crop_and_flip(jax.random.key(8), images))


def test_new_keys_and_batches_are_not_traced_again():
    step = jax.jit(chex.assert_max_traces(random_crop_and_flip, n=1))
    for seed in range(3):
        step(jax.random.key(seed), random_images(10) + np.uint8(seed))


def test_a_batch_sharded_over_devices_is_cropped_without_moving_images_between_them():
    code = """
import jax, numpy as np
from wcjax.data.augment import random_crop_and_flip
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
step = jax.jit(random_crop_and_flip, out_shardings=sharding)
lowered = step.lower(jax.random.key(0), jax.device_put(images, sharding)).compile()
print(any(word in lowered.as_text() for word in ("all-gather", "all-to-all", "collective-permute")))
outputs = lowered(jax.random.key(0), jax.device_put(images, sharding))
print(np.array_equal(outputs, random_crop_and_flip(jax.random.key(0), images)))
"""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 2, 32, 32, 3)])
def test_images_must_have_rank_4(shape):
    with pytest.raises(InputError, match=r"must have shape \(n, h, w, c\), found"):
        random_crop_and_flip(jax.random.key(0), jnp.zeros(shape, jnp.uint8))


@pytest.mark.parametrize("padding", [-1, 1.5, None])
def test_padding_must_be_an_integer_of_at_least_0(padding):
    with pytest.raises(InputError, match=f"padding must be an integer of at least 0, found {padding!r}"):
        random_crop_and_flip(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.uint8), padding=padding)


MEAN, STD = np.float32([0.49, 0.48, 0.45]), np.float32([0.25, 0.24, 0.26])


def test_normalize_is_the_formula_in_float64():
    images = random_images(20, c=3)
    expected = (images / 255.0 - MEAN.astype(np.float64)) / STD.astype(np.float64)
    normalized = jax.jit(normalize)(images, MEAN, STD)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)


def test_normalize_rounds_to_bfloat16_only_once():
    images = random_images(20, c=3)
    normalized = normalize(images, MEAN, STD, jnp.bfloat16)
    assert normalized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normalized, normalize(images, MEAN, STD).astype(jnp.bfloat16))


def test_normalize_gives_mean_0_and_deviation_1_with_the_statistics_of_the_images():
    images = random_images(300, c=3)
    mean, std = (images / 255).mean(axis=(0, 1, 2)), (images / 255).std(axis=(0, 1, 2))
    normalized = np.asarray(normalize(images, mean, std), np.float64)
    np.testing.assert_allclose(normalized.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(axis=(0, 1, 2)), 1, rtol=1e-5)


def test_normalize_refuses_images_that_are_scaled_already():
    with pytest.raises(InputError, match="takes uint8 images .* found float32"):
        normalize(np.zeros((1, 4, 4, 3), np.float32), MEAN, STD)
