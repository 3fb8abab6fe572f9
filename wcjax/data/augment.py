"""Augmentation and normalization of image batches, for use inside a jitted train step."""

import jax
import jax.numpy as jnp

from wcjax.errors import InputError


def random_crop_and_flip(key, images, *, padding=4, flip=True):
    """Shifts each image by up to `padding` pixels and mirrors half of them.

    Each image is padded with `padding` zeros on all four sides. A window of the original size is cut out, uniformly
    among the (2·padding + 1)² places, and its columns are reversed with probability 1/2. The draws of the images are
    independent.

    Args:
      key: a JAX random key. The result is a function of key and images.
      images: (n, h, w, c), any dtype.
      padding: integer >= 0, static under jit.
      flip: whether to mirror, static under jit. The windows are the same either way.

    Returns:
      Images of the same shape and dtype.

    Raises:
      InputError: images are not of rank 4, or padding is not an integer >= 0.
    """
    if images.ndim != 4:
        raise InputError(f"images must have shape (n, h, w, c), found {images.shape}.")
    if not (isinstance(padding, int) and padding >= 0):
        raise InputError(f"padding must be an integer of at least 0, found {padding!r}.")
    n, h, w, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    top, left = padding + jax.random.randint(crop_key, (2, n, 1, 1, 1), -padding, padding + 1)
    images = _windows(_windows(images, top, padding, axis=1), left, padding, axis=2)
    if not flip:
        return images
    mirrored = jax.random.bernoulli(flip_key, shape=(n, 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _windows(images, start, padding, axis):
    """Pads an axis of the images with zeros on both sides, and cuts out of each the window that begins at its `start`.

    start: (n, 1, 1, 1), from 0 to 2·padding. Each image selects one of all windows. That is elementwise, which every
    device does well, while a gather of pixels takes a TPU as long as a small network.
    """
    size = images.shape[axis]
    padded = jnp.pad(images, [(padding, padding) if i == axis else (0, 0) for i in range(images.ndim)])
    places = range(2 * padding + 1)
    windows = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in places]
    return jnp.select([start == k for k in places], windows)


def normalize(images, mean, std, dtype=jnp.float32):
    """(images / 255 - mean) / std, computed in float32 and then cast to `dtype`.

    Args:
      images: uint8 (n, h, w, c).
      mean, std: (c,), for pixels scaled to 0..1, as in `wcjax.data.Dataset`.
      dtype: dtype of the result.

    Raises:
      InputError: images are not uint8. Scaled images would be divided by 255 again.
    """
    if images.dtype != jnp.uint8:
        raise InputError(f"normalize takes uint8 images (0..255), found {images.dtype}.")
    scaled = images.astype(jnp.float32) / 255
    return ((scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)
