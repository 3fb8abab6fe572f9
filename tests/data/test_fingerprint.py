"""The fingerprint of a data set changes with every part of the data, in the part and the splits that say so."""

import functools
import shutil

import numpy as np
import pytest
from flax import traverse_util

from tests.data import pictures, sets
from wcjax import data

ARRAYS = sets.cifar_arrays()


def write_cifar(root, split="train", change=lambda x, y: (x, y)):
    """Writes cifar10.npz with a change of the images and labels of a split."""
    keys = f"x_{split}", f"y_{split}"
    changed = change(*map(ARRAYS.get, keys))
    np.savez(root / "cifar10.npz", **ARRAYS | dict(zip(keys, changed, strict=True)))


PIXEL = lambda x, y: (np.where(np.indices(x.shape).sum(0) == 0, x ^ 1, x), y)
LABEL = lambda x, y: (x, np.where(np.arange(len(y)) == 3, (y + 1) % 10, y))
FEWER = lambda x, y: (x[:-1], y[:-1])
IMAGE = "train/n00000001/train_13.JPEG"


def prepare_anew(root, **options):
    shutil.rmtree(root / "imagenet2012")
    sets.prepare_imagenet(root, **options)


BOTH = ["train", "test"]
CASES = {  # the data set and its change, the splits that change, and what changes in them
    f"{part} of {split}": ("npz", functools.partial(write_cifar, split=split, change=change), [split], part)
    for change, part in ((PIXEL, "content"), (LABEL, "labels"), (FEWER, "images"))
    for split in BOTH
}
CASES |= {
    "size of a file": ("folders", lambda root: (root / IMAGE).write_bytes(b"another size"), ["train"], "content"),
    "name": ("folders", lambda root: (root / IMAGE).rename(root / IMAGE.replace("13", "14")), ["train"], "content"),
    "class": ("folders", lambda root: (root / IMAGE).rename(root / "train/n00000002/14.JPEG"), ["train"], "labels"),
    "number of files": ("folders", lambda root: (root / IMAGE).unlink(), ["train"], "images"),
    "labels of records": ("records", lambda root: prepare_anew(root, classes=(4, 998, 0)), BOTH, "labels"),
    "files of records": ("records", lambda root: prepare_anew(root, shards=5), BOTH, "content"),
}
SETS = {  # how the set is made, its name, and the numbers of its classes and images
    "npz": (write_cifar, "cifar10", (10, 40, 6)),
    "folders": (pictures.class_folders, "imagenet", (3, 42, 15)),
    "records": (sets.prepare_imagenet, "imagenet", (1000, 5, 5)),
}


@pytest.mark.parametrize("kind, change, splits, part", CASES.values(), ids=CASES)
def test_the_fingerprint_changes_with_every_part_of_a_set(tmp_path, kind, change, splits, part):
    make, name, numbers = SETS[kind]
    fingerprint = lambda: traverse_util.flatten_dict(data.load(name, tmp_path).fingerprint(), sep=".")
    make(tmp_path)
    before = fingerprint()
    assert fingerprint() == before
    assert (before["classes"], before["train.images"], before["test.images"]) == numbers
    change(tmp_path)
    changed = {key for key, x in fingerprint().items() if x != before[key]}
    assert changed >= {f"{split}.{part}" for split in splits}
    assert {key.partition(".")[0] for key in changed} == set(splits)
