"""The form that every data set has once it is read, and the quantities computed from its images."""

import hashlib
from typing import NamedTuple

import numpy as np

from wcjax.data.streaming.source import Source
from wcjax.errors import InputError

# The statistics of ImageNet's training images that torchvision, timm and tensorflow/models use. Other streamed sets
# are normalized with them too.
IMAGENET_MEAN, IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


class Split(NamedTuple):
    """Images with their classes.

    Attributes:
      images: uint8 (n, h, w, c), 0..255.
      labels: int32 (n,), 0..num_classes-1.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.labels)


class Dataset(NamedTuple):
    """A data set in three splits.

    Attributes:
      train, val, test: Split, or `wcjax.data.streaming.source.Source` if the images are streamed.
      num_classes: number of classes.
      mean, std: float32 (c,), per channel over all pixels of `train`, for pixels scaled to 0..1. `std` divides by the
        number of pixels. Streamed sets have the usual values of ImageNet.
      unused: Split, the official training images that are in neither `train` nor `val`; None if streamed.
    """

    train: Split | Source
    val: Split | Source
    test: Split | Source
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    unused: Split | None = None

    @property
    def splits(self) -> tuple[Split | Source, Split | Source, Split | Source]:
        """(train, val, test)"""
        return self.train, self.val, self.test

    @property
    def streamed(self) -> bool:
        """Whether images are decoded during training (`wcjax.data.streaming`) instead of stored in arrays."""
        return not isinstance(self.train, Split)

    def fingerprint(self, splits=("train", "test")) -> dict:
        """{'classes': number, 'train': ..., 'test': ...}: the official splits in the form of `Source.fingerprint`.

        'train' includes the held-out and the unused images. The checksum of an array covers every pixel and does not
        depend on the order of the images, so that CIFAR has the same fingerprint in every format. splits: the official
        splits to include.
        """
        if self.streamed:
            fingerprints = {name: getattr(self, name).fingerprint() for name in splits}
        else:
            official = {"train": (self.train, self.val, self.unused), "test": (self.test,)}
            fingerprints = {name: _fingerprint(official[name]) for name in splits}
        return {"classes": self.num_classes} | fingerprints


def streamed_dataset(train: Source, val: Source, num_classes: int) -> Dataset:
    """The Dataset of streamed splits. The official validation split is both `val` and `test`."""
    return Dataset(train, val, val, num_classes, IMAGENET_MEAN, IMAGENET_STD)


def arrays_dataset(name: str, train: Split, val: Split, test: Split, num_classes: int, train_images: int) -> Dataset:
    """The Dataset of splits in memory, of which train has the first train_images images, or all if it is 0.

    Raises:
      InputError: train has fewer than train_images images, or a channel is constant and cannot be normalized.
    """
    if train_images > train.num_images:
        raise InputError(
            f"train_images={train_images}, but {name} has {train.num_images} training images that are not held out. "
            "Choose a smaller number, or 0 for all."
        )
    used = train_images or train.num_images
    train, unused = Split(*(x[:used] for x in train)), Split(*(x[used:] for x in train))
    mean, std = channel_statistics(train.images)
    if not std.all():
        raise InputError(
            f"{name}: channel {int(std.argmin())} has the same value in every pixel of the {train.num_images} training "
            "images, so it cannot be normalized. Check the data, or use more images."
        )
    return Dataset(train, val, test, num_classes, mean, std, unused)


def checksum(content) -> str:
    """16 hexadecimal digits of the SHA-256 of bytes, or of a contiguous array."""
    return hashlib.sha256(content).hexdigest()[:16]


def sorted_by_content(split: Split) -> Split:
    """Sorts the images by their SHA-256, and equal images by their labels.

    The result depends on the images alone, and not on the file that they were read from.
    """
    keys = _content_keys(split)
    order = sorted(range(split.num_images), key=keys.__getitem__)
    return Split(split.images[order], split.labels[order])


def _content_keys(split):
    """[(SHA-256, label) of each image]."""
    digests = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(split.images)]
    return list(zip(digests, split.labels.tolist(), strict=True))


def _fingerprint(splits):
    digests, labels = zip(*sorted(key for split in splits for key in _content_keys(split)), strict=True)
    labels = checksum(np.array(labels, "<i4"))
    return {"images": len(digests), "labels": labels, "content": checksum(b"".join(digests))}


def hold_out(train: Split, val_fraction: float, seed: int) -> tuple[Split, Split]:
    """(train, val) of a split of n images, `round(val_fraction * n)` of them drawn with `seed` for val.

    See `wcjax.data.load`.

    Raises:
      InputError: one of the two would be empty.
    """
    n = train.num_images
    num_val = round(val_fraction * n)
    if not 0 < num_val < n:
        empty, change = ("validation", "larger") if num_val == 0 else ("training", "smaller")
        raise InputError(
            f"val_fraction={val_fraction} of {n} training images leaves the {empty} split empty. "
            f"Choose a {change} val_fraction, or use more images."
        )
    order = np.random.default_rng(seed).permutation(n)
    take = lambda rows: Split(train.images[rows], train.labels[rows])
    return take(order[num_val:]), take(order[:num_val])


def num_full_batches(num_images: int, batch_size: int) -> int:
    """The number of steps in an epoch of training. Images that do not fill a last batch are omitted."""
    return num_images // batch_size


def num_batches(num_images: int, batch_size: int) -> int:
    """The number of batches that show each image once. The last batch may not be full."""
    return -(-num_images // batch_size)


def channel_statistics(images):
    """The mean and std of each channel of uint8 images (n, h, w, c), scaled to 0..1: float32 (c,)."""
    counts = _pixel_counts(images)
    pixels = counts[0].sum()
    level = np.arange(256)
    mean = counts @ level / pixels
    variance = (counts * (level - mean[:, None]) ** 2).sum(axis=1) / pixels
    return (mean / 255).astype(np.float32), (np.sqrt(variance) / 255).astype(np.float32)


def _pixel_counts(images):
    """How often each channel of uint8 images (n, h, w, c) has each value: int64 (c, 256)."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In pieces, because np.bincount widens its argument to eight bytes per pixel.
    for start in range(0, len(images), 1000):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + 1000, ..., channel].ravel(), minlength=256)
    return counts
