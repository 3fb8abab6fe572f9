"""Changes of the weights and of the images of a trained network, by which `wcjax.analysis.robustness` tests it.

Each change has a level. Weights are the kernels that Ψ acts on; biases and batch norm stay as they are. The images are
uint8 (n, h, w, c), and the constants of their changes are those of CIFAR-10-C (Hendrycks and Dietterich, 2019, arXiv
1903.12261), severity 1 to 5.
"""

import jax
import numpy as np
from scipy import ndimage

from wcjax.params import is_kernel


def prune_smallest(params, share, rng):
    """Sets a share of each kernel to 0: the elements with the smallest |w|."""
    return _map_kernels(lambda w: _prune(w, np.abs(w), share), params)


def prune_smallest_of_all(params, share, rng):
    """Sets a share of the elements of all kernels together to 0: those with the smallest |w|."""
    kernels = [np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params) if is_kernel(path, x)]
    sizes = np.concatenate([np.abs(w).ravel() for w in kernels])
    keep = iter(np.split(_prune(np.ones_like(sizes), sizes, share), np.cumsum([w.size for w in kernels])))
    return _map_kernels(lambda w: w * next(keep).reshape(w.shape), params)


def prune_at_random(params, share, rng):
    """Sets a share of each kernel to 0: elements that rng draws."""
    return _map_kernels(lambda w: _prune(w, rng.random(w.shape), share), params)


def add_weight_noise(params, size, rng):
    """Adds Gaussian noise to each kernel; its standard deviation is size times that of the kernel."""
    return _map_kernels(lambda w: w + (size * w.std() * rng.standard_normal(w.shape)).astype(w.dtype), params)


def quantize(params, bits, rng):
    """Quantizes each kernel to signed integers of `bits` bits, with one scale per output channel."""
    levels = 2 ** (bits - 1) - 1

    def quantize_kernel(w):
        scale = np.abs(w).max(axis=tuple(range(w.ndim - 1)), keepdims=True) / levels
        return np.round(w / np.where(scale > 0, scale, 1)) * scale

    return _map_kernels(quantize_kernel, params)


def _map_kernels(function, params):
    change_leaf = lambda path, x: function(np.asarray(x)) if is_kernel(path, x) else x
    return jax.tree_util.tree_map_with_path(change_leaf, params)


def _prune(w, scores, share):
    """A copy of w in which the share of its elements with the lowest scores is 0."""
    pruned = w.copy()
    pruned.flat[np.argsort(scores, axis=None, kind="stable")[: round(share * w.size)]] = 0
    return pruned


def add_pixel_noise(images, severity, rng):
    """Adds Gaussian noise to each pixel."""
    size = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return _pixels(images / 255 + size * rng.standard_normal(images.shape, np.float32))


def blur(images, severity, rng):
    """Blurs each channel with a Gaussian kernel."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    return _pixels(
        ndimage.gaussian_filter(images / np.float32(255), (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    )


def lower_contrast(images, severity, rng):
    """Moves each pixel towards the mean of its channel in its image."""
    remaining = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    x = images / np.float32(255)
    mean = x.mean(axis=(1, 2), keepdims=True)
    return _pixels(mean + remaining * (x - mean))


def brighten(images, severity, rng):
    """Adds to the value of each pixel, the V of HSV."""
    more = (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]
    x = images / np.float32(255)
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return _pixels(np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter))


def _pixels(x):
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


SHARES, SEVERITIES = (0.5, 0.7, 0.8, 0.9, 0.95), (1, 2, 3, 4, 5)
WEIGHT_CHANGES = {  # {name: (function, levels)}
    "prune_each_layer": (prune_smallest, SHARES),
    "prune_all_layers": (prune_smallest_of_all, SHARES),
    "prune_at_random": (prune_at_random, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "weight_noise": (add_weight_noise, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "weight_bits": (quantize, (8, 6, 5, 4, 3)),
}
IMAGE_CHANGES = {
    "image_noise": (add_pixel_noise, SEVERITIES),
    "image_blur": (blur, SEVERITIES),
    "image_contrast": (lower_contrast, SEVERITIES),
    "image_brightness": (brighten, SEVERITIES),
}
