"""A file or folder without permission is named, with the word permission, and is never called damaged."""

import re
import shutil
import stat

import numpy as np
import pytest

from tests.data import pictures, sets
from tests.permissions import denied
from wcjax import data
from wcjax.errors import InputError


@pytest.fixture
def forbid():
    """forbid(path, mode=0) takes rights to a file or folder until the end of the test."""
    modes = {}

    def change(path, mode=0):
        modes[path] = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)

    yield change
    for path, mode in reversed(modes.items()):
        path.chmod(mode)


def assert_refused(call, path):
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        denied(call)
    assert str(error.value) == (
        f"{path}: cannot be read (Permission denied). Change its permissions (chmod, chown), or give another path."
    )


@pytest.mark.parametrize("part", ["sets", "sets/cifar10.npz"])
def test_an_npz_file(tmp_path, arrays, forbid, part):
    (tmp_path / "sets").mkdir()
    np.savez(tmp_path / "sets" / "cifar10.npz", **arrays)
    forbid(tmp_path / part)
    assert_refused(lambda: data.load("cifar10", tmp_path / "sets"), tmp_path / "sets" / "cifar10.npz")


@pytest.mark.parametrize(
    "pattern, mode",
    [
        (".", 0),
        ("3*", 0o311),  # files in it can be opened, but not listed
        ("3*/dataset_info.json", 0),
        ("3*/features.json", 0),
        ("3*/*-test.array_record*", 0),
        ("3*/*-train.*", 0),
    ],
)
def test_a_directory_of_tensorflow_datasets(prepared, tmp_path, forbid, pattern, mode):
    directory = shutil.copytree(prepared[0] / "cifar10", tmp_path / "cifar10")
    (path,) = directory.glob(pattern) if pattern != "." else [directory]
    forbid(path, mode)
    assert_refused(lambda: data.load("cifar10", tmp_path), path)


def test_a_cache_without_permission_is_one_warning(prepared, cache_home, forbid, caplog):
    dataset = data.load("cifar10", prepared[0])
    (file,) = (cache_home / "wcjax").iterdir()
    forbid(file)
    forbid(cache_home / "wcjax", 0o555)
    sets.assert_same(denied(lambda: data.load("cifar10", prepared[0])), dataset)
    (line,) = (record.getMessage() for record in caplog.records if record.name.startswith("wcjax"))
    assert re.search(r"Could not cache the decoded images in .* \(.*Permission denied", line)


@pytest.mark.parametrize("part", ["", "train", "val", "train/n00000001"])
def test_a_folder_of_images(tmp_path, forbid, part):
    root = pictures.class_folders(tmp_path / "set", num_train=2, num_val=1)
    forbid(root / part)
    assert_refused(lambda: data.load("imagenet", root), root / (part or "imagenet2012"))


@pytest.mark.parametrize("part", ["wnids.txt", "train", "train/n03/images", "val/images", "val/val_annotations.txt"])
def test_a_part_of_tiny_imagenet(tmp_path, forbid, part):
    root = pictures.tiny_imagenet(tmp_path)
    forbid(root / part)
    assert_refused(lambda: data.load("tiny_imagenet", tmp_path), root / part)


def test_an_image(tmp_path, forbid):
    source = data.load("imagenet", pictures.class_folders(tmp_path / "set", num_train=2, num_val=1)).train
    path = tmp_path / "set" / "train" / "n00000001" / "train_1.JPEG"
    forbid(path)
    assert_refused(lambda: [source[i] for i in range(source.num_images)], path)
