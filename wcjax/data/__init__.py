"""Image data sets, split in train, val and test: as NumPy arrays of uint8 pixels, or streamed from files.

    dataset = wcjax.data.load("cifar10", "~/data")
    dataset.train.images        # uint8 (45000, 32, 32, 3)

Augmentation and normalization of arrays run inside the train step: `wcjax.data.augment`. The images of streamed sets
are decoded and augmented by `wcjax.data.streaming`, which needs the extra `stream`.
"""

import numbers
from collections.abc import Callable
from typing import NamedTuple

from wcjax.data import cifar, digits, imagenet, tiny_imagenet
from wcjax.data.dataset import Dataset, Split, arrays_dataset, streamed_dataset
from wcjax.errors import InputError, unknown
from wcjax.files import permitted

__all__ = ["NAMES", "Dataset", "Split", "image_shape", "load"]


class _Set(NamedTuple):
    """A data set that `load` knows.

    Attributes:
      read: (name, data_dir) -> (train, test, number of classes), the official splits, as `Split` or, where images are
        streamed, as `wcjax.data.streaming.source.Source`.
      shape: (height, width, channels) of the images; None: as the config says, of streamed images.
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
    """(height, width, channels) of the images of a data set; image_size is that of streamed ones."""
    return _SETS[name].shape or (image_size, image_size, 3)


def load(name, data_dir=None, *, val_fraction=0.1, seed=0):
    """Reads a data set and holds a validation split out of its official training images.

    With n official training images, `order = np.random.default_rng(seed).permutation(n)` and
    `m = round(val_fraction * n)`, the validation split is the images `order[:m]` and the training split `order[m:]`,
    both in that order. The images of CIFAR are sorted by their SHA-256 first, so that both splits are the same from
    every format. The test split does not depend on `seed`.

    'tiny_imagenet' and 'imagenet' are streamed, and nothing is held out: as in the paper, accuracy is that on the
    official validation split. It is both `val` and `test`, and `val_fraction` and `seed` play no part.

    Args:
      name: one of NAMES. 'digits' (8x8 grey, 10 classes) comes with scikit-learn and ignores `data_dir`.
      data_dir: for 'cifar10' and 'cifar100', a local path, where `~` is the home directory. Either an .npz file, or a
        directory that holds `<name>.npz` (arrays x_train, y_train, x_test, y_test), or a directory in which
        tensorflow_datasets prepared `<name>` as array_record. The decoded images of the last kind are kept in
        `$XDG_CACHE_HOME/wcjax` (`~/.cache/wcjax`), so that only the first call has to decode them. For
        'tiny_imagenet', the unpacked folder `tiny-imagenet-200`. For 'imagenet', a folder with `train/<class>/<image>`
        and `val/<class>/<image>`, with any number of classes, or a directory in which tensorflow_datasets prepared
        `imagenet2012` as array_record.
      val_fraction: share of the official training images to hold out, above 0 and below 1.
      seed: integer >= 0.

    Returns:
      A Dataset.

    Raises:
      InputError: an unknown name, a value out of range, data that is not there, damaged or of the wrong kind, or a
        split that would be empty. The message says what to do.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    if not (isinstance(val_fraction, numbers.Real) and 0 < val_fraction < 1):
        raise InputError(f"val_fraction must be a number above 0 and below 1, found {val_fraction!r}.")
    if not (isinstance(seed, numbers.Integral) and seed >= 0):
        raise InputError(f"seed must be an integer of at least 0, found {seed!r}.")

    with permitted(data_dir):
        train, test, num_classes = _SETS[name].read(name, data_dir)
    if not isinstance(train, Split):
        return streamed_dataset(train, test, num_classes)
    return arrays_dataset(name, train, test, num_classes, val_fraction, seed)
