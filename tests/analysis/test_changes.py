"""Changes of weights and images against their definitions, written out for one weight or pixel at a time."""

import colorsys

import numpy as np
import pytest
from scipy import stats

from wcjax.analysis import changes

DRAW = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": DRAW.normal(0, 0.1, (3, 3, 4, 8)).astype(np.float32), "bias": np.ones(8, np.float32)},
    "head": {"kernel": DRAW.normal(0, 1, (8, 10)).astype(np.float32)},
    "norm": {"scale": np.ones(8, np.float32)},
}
IMAGES = DRAW.integers(0, 256, (5, 12, 10, 3), np.uint8)


def changed(change, level, seed=3):
    """[(w before, w after) of each kernel], after checking that nothing else has changed."""
    after = change(PARAMS, level, np.random.default_rng(seed))
    assert after["conv"]["bias"] is PARAMS["conv"]["bias"] and after["norm"]["scale"] is PARAMS["norm"]["scale"]
    return [(PARAMS[name]["kernel"], after[name]["kernel"]) for name in ("conv", "head")]


def test_pruning_removes_the_smallest_weights_of_a_layer_or_all():
    for before, after in changed(changes.prune_smallest, 0.7):
        smallest = sorted(abs(before.ravel()))[: round(0.7 * before.size)]
        np.testing.assert_array_equal(after, np.where(abs(before) <= smallest[-1], 0, before))
    pairs = changed(changes.prune_smallest_of_all, 0.5)
    threshold = sorted(np.abs(np.concatenate([before.ravel() for before, _ in pairs])))[round(0.5 * (288 + 80)) - 1]
    for before, after in pairs:
        np.testing.assert_array_equal(after, np.where(abs(before) <= threshold, 0, before))


def test_random_pruning_ignores_the_size_of_weights():
    for before, after in changed(changes.prune_at_random, 0.3):
        pruned = after == 0
        assert pruned.sum() == round(0.3 * before.size)
        np.testing.assert_array_equal(after[~pruned], before[~pruned])
        assert stats.mannwhitneyu(abs(before[pruned]), abs(before[~pruned])).pvalue > 0.01
    assert (changed(changes.prune_at_random, 0.3, seed=4)[0][1] != changed(changes.prune_at_random, 0.3)[0][1]).any()


def test_noise_on_weights_is_relative_to_their_spread():
    for before, after in changed(changes.add_weight_noise, 0.5):
        noise = (after - before) / (0.5 * np.std(before))
        assert after.dtype == np.float32
        assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01


def test_quantization_rounds_to_a_grid_for_each_output_channel():
    for before, after in changed(changes.quantize, 3):
        for channel in range(before.shape[-1]):
            w = np.float64(before[..., channel])
            grid = np.linspace(-1, 1, 7) * abs(w).max()  # a sign and two bits more
            nearest = grid[np.argmin(abs(w[..., None] - grid), axis=-1)]
            np.testing.assert_allclose(after[..., channel], nearest, rtol=0, atol=1e-6 * abs(w).max())


def test_lower_contrast_moves_pixels_to_the_mean_of_a_channel():
    x = IMAGES / 255
    flatter = changes.lower_contrast(IMAGES, 5, None) / 255
    mean = x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(flatter, mean + 0.15 * (x - mean), atol=0.51 / 255)


def test_brighter_pixels_keep_their_hue_and_saturation():
    brighter = changes.brighten(IMAGES, 4, None) / 255
    for pixel, found in zip((IMAGES / 255).reshape(-1, 3), brighter.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        np.testing.assert_allclose(found, colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2)), atol=0.51 / 255)


def test_pixel_noise_has_the_standard_deviation_of_its_severity():
    middle = np.full((50, 20, 20, 1), 128, np.uint8)
    noise = (changes.add_pixel_noise(middle, 2, np.random.default_rng(0)) / 255.0 - 128 / 255).ravel()
    np.testing.assert_allclose((noise.mean(), noise.std()), (0, 0.06), atol=1e-3)


def test_a_blurred_point_is_a_gaussian():
    point = np.zeros((1, 11, 11, 1), np.uint8)
    point[0, 5, 5] = 255
    gaussian = np.exp(-((np.arange(11) - 5) ** 2) / 2)
    expected = np.outer(gaussian, gaussian) / gaussian.sum() ** 2
    np.testing.assert_allclose(changes.blur(point, 5, None)[0, ..., 0] / 255, expected, atol=0.6 / 255)


@pytest.mark.parametrize("change", [function for function, _ in changes.IMAGE_CHANGES.values()])
def test_each_severity_changes_images_more(change):
    images = [change(IMAGES, severity, np.random.default_rng(0)) for severity in changes.SEVERITIES]
    assert all(after.dtype == np.uint8 and after.shape == IMAGES.shape for after in images)
    distances = [np.abs(after.astype(float) - IMAGES).mean() for after in images]
    assert sorted(set(distances)) == distances
