"""An .npz file of the arrays x_train, y_train, x_test and y_test (the names that Keras uses), and their checks."""

import zipfile

import numpy as np

from wcjax.data.dataset import Split
from wcjax.errors import InputError

KEYS = ("x_train", "y_train", "x_test", "y_test")
IMAGE_SHAPE = (32, 32, 3)
MAX_BYTES = 2**32  # in the unpacked arrays; CIFAR has 184 MB


def read(path, num_classes):
    """(train, test) of the .npz file `path`. Nothing is unpickled.

    Raises:
      InputError: the file does not exist, is damaged or lacks an array, or `checked_splits` refuses an array.
      PermissionError: the file cannot be read.
    """
    try:
        names, arrays = _unpack(path)
    except (InputError, PermissionError):
        raise
    except Exception as error:  # damaged bytes can make the zip and array parsers raise nearly anything
        raise InputError(
            f"{path}: not a readable .npz file ({type(error).__name__}: {error}). It is truncated, damaged, or holds "
            "Python objects, which are never loaded. Make it again with np.savez and plain arrays."
        ) from error
    missing = [key for key in KEYS if key not in names]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; found {', '.join(names[:8]) or 'nothing'}. Make it again."
        )
    return checked_splits(arrays, path, num_classes)


def _unpack(path):
    """(the names of all arrays in the file, {name: array} of KEYS)."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())  # zipfile never unpacks more than this
    if size > MAX_BYTES:
        raise InputError(f"{path}: unpacks to {size:,} bytes; at most {MAX_BYTES:,} are allowed. Make it again.")
    with np.load(path, allow_pickle=False) as archive:
        return archive.files, {key: np.asarray(archive[key]) for key in KEYS if key in archive.files}


def checked_splits(arrays, source, num_classes):
    """(train, test) of a dict with KEYS, with labels as int32 (n,).

    Args:
      arrays: x_* uint8 (n, 32, 32, 3), n > 0; y_* 0..num_classes-1 of any integer dtype, (n,) or as in Keras (n, 1).
      source: the file or directory that errors name.
      num_classes: number of classes.

    Raises:
      InputError: an array has another dtype or shape, or values out of range, or the last class has no training image.
    """
    train, test = (_check_split(arrays, split, source, num_classes) for split in ("train", "test"))
    if train.labels.max() < num_classes - 1:  # CIFAR-10, or coarse labels, as CIFAR-100
        raise InputError(
            f"{source}: y_train contains labels up to {train.labels.max()}, but {num_classes} classes have labels up "
            f"to {num_classes - 1}. Is it another data set? Give the right one."
        )
    return train, test


def _check_split(arrays, split, source, num_classes):
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
        raise InputError(
            f"{source}: x_{split} is {images.dtype} of shape {images.shape}; allowed is uint8 (0..255) of shape "
            f"(n, {', '.join(map(str, IMAGE_SHAPE))}). Convert it and make the file again."
        )
    n = len(images)
    if n == 0:
        raise InputError(f"{source}: x_{split} contains no images; at least one is needed. Make it again.")
    if labels.dtype.kind not in "iu" or labels.shape not in ((n,), (n, 1)):
        raise InputError(
            f"{source}: y_{split} is {labels.dtype} of shape {labels.shape}; allowed are integers of shape ({n},) or "
            f"({n}, 1), one for each image of x_{split}. Convert it and make the file again."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"{source}: y_{split} contains labels from {labels.min()} to {labels.max()}; allowed are "
            f"0..{num_classes - 1}. Is it another data set? Make it again."
        )
    return Split(images, labels.reshape(n).astype(np.int32))
