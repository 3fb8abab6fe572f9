"""A file or folder without permission is named, with the word permission, and is never called damaged."""

import re
import shutil

import numpy as np
import pytest

from tests.data import pictures, sets
from tests.permissions import denied, mode
from wcjax import data
from wcjax.errors import InputError

FORMS = {
    "npz": ("cifar10", lambda folder, _: np.savez(folder / "cifar10.npz", **sets.cifar_arrays())),
    "prepared": ("cifar10", lambda folder, prepared: shutil.copytree(prepared / "cifar10", folder / "cifar10")),
    "class folders": ("imagenet", lambda folder, _: pictures.class_folders(folder, num_train=2, num_val=1)),
    "tiny": ("tiny_imagenet", lambda folder, _: pictures.tiny_imagenet(folder)),
}
CASES = [  # the form, the file or folder without permission, its mode, and what is named if it is something else
    ("npz", "", 0, "cifar10.npz"),
    ("npz", "cifar10.npz", 0, ""),
    ("prepared", "cifar10", 0, ""),
    ("prepared", "cifar10/3*/dataset_info.json", 0, ""),
    ("prepared", "cifar10/3*/*-test.*", 0, ""),
    ("prepared", "cifar10/3*", 0o311, ""),  # files in it can be opened, but not listed
    ("class folders", "", 0, "imagenet2012"),
    ("class folders", "train", 0, ""),
    ("class folders", "train/n00000001", 0, ""),
    ("tiny", "tiny-imagenet-200/wnids.txt", 0, ""),
    ("tiny", "tiny-imagenet-200/val/images", 0, ""),
    ("tiny", "tiny-imagenet-200/val/val_annotations.txt", 0, ""),
]


@pytest.mark.parametrize("form, closed, bits, named", CASES)
def test_a_part_without_permission_is_named(prepared, tmp_path, form, closed, bits, named):
    (name, make), folder = FORMS[form], tmp_path / "set"
    folder.mkdir()
    make(folder, prepared[0])
    (path,) = folder.glob(closed) if closed else [folder]
    message = re.escape(f"{folder / named if named else path}: cannot be read (Permission denied). Change its perm")
    with mode(path, bits), pytest.raises(InputError, match=f"^{message}"):
        denied(lambda: data.load(name, folder))
