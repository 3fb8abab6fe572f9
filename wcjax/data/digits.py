"""Handwritten digits of 8x8 pixels, which come with scikit-learn. They need no download, and a run takes seconds."""

import numpy as np

from wcjax.data.dataset import Split
from wcjax.extras import needs

NUM_CLASSES = 10


def read(name, data_dir):
    """(train, test, 10) of scikit-learn's 1,797 digits: always the same 1,437 and 360 images, (n, 8, 8, 1).

    The images are ordered by class, and within a class as in scikit-learn. Every fifth is a test image, so that each
    class gives a fifth of its images, within one. scikit-learn's values x = 0..16 become (255·x + 8) // 16, which is
    255·x/16 rounded to the nearest integer, halves up.

    Raises:
      InputError: scikit-learn is not installed.
    """
    needs("digits", "train", "sklearn")
    from sklearn.datasets import load_digits  # here, because it takes seconds, and no other data set needs it

    digits = load_digits()
    images = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)

    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test]), NUM_CLASSES
