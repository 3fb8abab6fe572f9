"""Image data sets, split in train, val and test: as NumPy arrays of uint8 pixels, or streamed from files.

    dataset = wcjax.data.load("cifar10", "~/data")
    dataset.train.images        # uint8 (45000, 32, 32, 3)

Augmentation and normalization of arrays run inside the train step: `wcjax.data.augment`. The images of streamed sets
are decoded and augmented by `wcjax.data.stream`, which needs the extra `stream`.
"""

import numbers

from wcjax.data import cifar, digits, imagenet, npz
from wcjax.data.splits import Dataset, Split, channel_statistics, hold_out
from wcjax.errors import InputError, permitted, unknown

__all__ = ["NAMES", "Dataset", "Split", "image_shape", "load"]

NAMES = ("digits", *cifar.NUM_CLASSES, *imagenet.NAMES)


def image_shape(name, image_size) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a data set; image_size is that of streamed ones."""
    if name in imagenet.NAMES:
        return image_size, image_size, 3
    return digits.IMAGE_SHAPE if name == "digits" else npz.IMAGE_SHAPE


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
        if name in imagenet.NAMES:
            return imagenet.read(name, data_dir)
        if name == "digits":
            num_classes = digits.NUM_CLASSES
            train, test = digits.read()
        else:
            num_classes = cifar.NUM_CLASSES[name]
            train, test = cifar.read(name, data_dir)

    train, val = hold_out(train, val_fraction, seed)
    mean, std = channel_statistics(train.images)
    if not std.all():
        raise InputError(
            f"{name}: channel {int(std.argmin())} has the same value in every pixel of the {len(train.labels)} "
            "training images, so it cannot be normalized. Check the data, or use more images."
        )
    return Dataset(train, val, test, num_classes, mean, std)
