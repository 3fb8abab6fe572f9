"""Handwritten digits of 8x8 pixels, which come with scikit-learn: no download, a run takes seconds."""

import numpy as np

from wcjax.data.dataset import Split
from wcjax.errors import InputError

NUM_CLASSES = 10
IMAGE_SHAPE = (8, 8, 1)


def read(name, data_dir):
    """Returns (train, test, 10) of scikit-learn's 1,797 digits, images (n, 8, 8, 1): 1,437 and 360, always the same.

    A test image is every fifth of the images ordered by class (and within a class as scikit-learn has them), so each
    class gives a fifth of its images, give or take one. scikit-learn's values x = 0..16 become (255·x + 8) // 16,
    which is 255·x/16 rounded to the nearest integer, halves up.

    Raises:
      InputError: scikit-learn is not installed.
    """
    try:
        # Here and not above: the import takes seconds, and only this data set needs it.
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(f"digits: scikit-learn cannot be imported ({error}). Run: pip install scikit-learn") from error
    stored = load_digits()
    images = ((stored.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    labels = stored.target.astype(np.int32)

    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test]), NUM_CLASSES
