"""Image data sets, split into train, val and test: as NumPy arrays of uint8 pixels, or streamed from files.

    dataset = wcjax.data.load("cifar10", "~/data")
    dataset.train.images        # uint8 (45000, 32, 32, 3)

`wcjax.data.augment` augments and normalizes arrays inside the train step. `wcjax.data.streaming` decodes and augments
the images of streamed sets. It needs the extra `stream`.
"""

import numbers
import os
from collections.abc import Callable
from typing import NamedTuple

from wcjax.data import cifar, digits, imagenet, tiny_imagenet
from wcjax.data.dataset import Dataset, Split, arrays_dataset, hold_out, streamed_dataset
from wcjax.errors import InputError, unknown
from wcjax.system.files import reading

__all__ = ["NAMES", "Dataset", "Split", "image_shape", "load"]


class _Set(NamedTuple):
    """A data set that `load` knows.

    Attributes:
      read: (name, data_dir) -> (train, test, number of classes). The splits are the official ones, each a `Split` or,
        if images are streamed, a `wcjax.data.streaming.source.Source`.
      shape: (height, width, channels) of the images; None if images are streamed and the config sets their size.
    """

    read: Callable
    shape: tuple[int, int, int] | None


_SETS = {
    "digits": _Set(digits.read, (8, 8, 1)),
    "cifar10": _Set(cifar.read, (32, 32, 3)),
    "cifar100": _Set(cifar.read, (32, 32, 3)),
    "tiny_imagenet": _Set(tiny_imagenet.read, None),
    "imagenet": _Set(imagenet.read, None),
}
NAMES = tuple(_SETS)


def image_shape(name, image_size) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a data set. Streamed images are image_size × image_size."""
    return _SETS[name].shape or (image_size, image_size, 3)


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    val_fraction: float = 0.1,
    train_images: int = 0,
    seed: int = 0,
) -> Dataset:
    """Reads a data set and holds out a validation split from its official training images.

    Let n be the number of official training images, `order = np.random.default_rng(seed).permutation(n)` and
    `m = round(val_fraction * n)`. The validation split is the images `order[:m]` and the training split the images
    `order[m:]`, both in that order. The images of CIFAR are first sorted by their SHA-256, so that both splits are the
    same in every format. If `train_images` is not 0, the training split is only the first `train_images` of its images,
    and the validation split stays the same. The test split does not depend on `seed`.

    'tiny_imagenet' and 'imagenet' are streamed, and nothing is held out. As in the paper, accuracy is measured on the
    official validation split, which is both `val` and `test`, and `val_fraction` and `seed` have no effect.
    `train_images` must be 0.

    Args:
      name: one of NAMES. 'digits' (8x8 grey, 10 classes) comes with scikit-learn and ignores `data_dir`.
      data_dir: a local path, in which `~` is the home directory.
        For 'cifar10' and 'cifar100': an .npz file (arrays x_train, y_train, x_test, y_test), a directory that contains
        `<name>.npz`, or a directory in which tensorflow_datasets prepared `<name>` as array_record. In the last case
        the decoded images are cached in `$XDG_CACHE_HOME/wcjax` (`~/.cache/wcjax`), so that only the first call
        decodes them.
        For 'tiny_imagenet': the unpacked folder `tiny-imagenet-200`.
        For 'imagenet': a folder with `train/<class>/<image>` and `val/<class>/<image>`, with any number of classes, or
        a directory in which tensorflow_datasets prepared `imagenet2012` as array_record.
      val_fraction: share of the official training images to hold out, above 0 and below 1.
      train_images: the number of training images to use; 0 for all.
      seed: integer >= 0.

    Raises:
      InputError: the name is unknown, a value is out of range, the data are missing, damaged, unreadable or of the
        wrong kind, or a split would be empty. The message says what to do.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    if not (isinstance(val_fraction, numbers.Real) and 0 < val_fraction < 1):
        raise InputError(f"val_fraction must be a number above 0 and below 1, found {val_fraction!r}.")
    for argument, value in (("seed", seed), ("train_images", train_images)):
        if not (isinstance(value, numbers.Integral) and value >= 0):
            raise InputError(f"{argument} must be an integer of at least 0, found {value!r}.")

    with reading():
        train, test, num_classes = _SETS[name].read(name, data_dir)
    if not isinstance(train, Split):
        if train_images:
            raise InputError(f"train_images must be 0 for {name}, whose images are streamed, found {train_images}.")
        return streamed_dataset(train, test, num_classes)
    train, val = hold_out(train, val_fraction, seed)
    return arrays_dataset(name, train, val, test, num_classes, train_images)
