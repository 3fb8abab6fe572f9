"""The form every data set has once it is read, and the two things derived from its training images."""

from typing import NamedTuple

import numpy as np

from wcjax.data.encoded import Source
from wcjax.data.parts import Part, Rows, Stored
from wcjax.errors import InputError


class Split(NamedTuple):
    """Images with their classes.

    Attributes:
      images: uint8 (n, h, w, c), 0..255. For one of many processes still in the file.
      labels: int32 (n,), 0..num_classes-1.
    """

    images: np.ndarray | Stored | Rows
    labels: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.labels)


class Dataset(NamedTuple):
    """A data set in three splits.

    Attributes:
      train, val, test: Split, or `wcjax.data.encoded.Source` where the images are streamed.
      num_classes: number of classes.
      mean, std: float32 (c,), per channel over all pixels of `train`, in units where a pixel is 0..1. `std` is the
        population's (divided by the number of pixels). For streamed sets the usual values of ImageNet.
    """

    train: Split | Source
    val: Split | Source
    test: Split | Source
    num_classes: int
    mean: np.ndarray
    std: np.ndarray

    @property
    def streamed(self) -> bool:
        """Whether images are decoded while the run goes on (`wcjax.data.stream`), not held as arrays."""
        return not isinstance(self.train, Split)


def hold_out(train, val_fraction, seed):
    """Returns (train, val): `round(val_fraction * n)` images drawn with `seed` are val, see `wcjax.data.load`.

    Raises:
      InputError: one of the two would be empty.
    """
    n = len(train.labels)
    num_val = round(val_fraction * n)
    if not 0 < num_val < n:
        empty = "validation" if num_val == 0 else "training"
        raise InputError(
            f"val_fraction={val_fraction} of {n} training images leaves the {empty} split empty. "
            f"Choose a {'larger' if num_val == 0 else 'smaller'} val_fraction, or use more images."
        )
    order = np.random.default_rng(seed).permutation(n)

    def take(rows):
        images = Rows(train.images, rows) if isinstance(train.images, Stored) else train.images[rows]
        return Split(images, train.labels[rows])

    return take(order[num_val:]), take(order[:num_val])


def channel_statistics(images, part: Part | None = None):
    """Returns mean and std of the channels of uint8 images (n, h, w, c): float32 (c,), a pixel counting 0..1.

    part: of one of many processes, which counts its part of the pixels where images are Rows.
    """
    if isinstance(images, Rows):
        counts = _pixel_counts(images.among(part.of(len(images.stored))))
        counts = part.gather(counts.astype(np.uint32)).sum(axis=0, dtype=np.int64)
    else:
        counts = _pixel_counts(images)
    pixels = counts[0].sum()
    level = np.arange(256)
    mean = counts @ level / pixels
    variance = (counts * (level - mean[:, None]) ** 2).sum(axis=1) / pixels
    return (mean / 255).astype(np.float32), (np.sqrt(variance) / 255).astype(np.float32)


def _pixel_counts(images):
    """How often each value stands in each channel of uint8 images (n, h, w, c): int64 (c, 256)."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In pieces, because np.bincount widens its argument to eight bytes a pixel.
    for start in range(0, len(images), 1000):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + 1000, ..., channel].ravel(), minlength=256)
    return counts
