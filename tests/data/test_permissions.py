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


@pytest.fixture
def data_dir(request, tmp_path):
    """The folder of a data set in the form that the parameter names."""
    folder = tmp_path / "set"
    if request.param == "npz":
        folder.mkdir()
        np.savez(folder / "cifar10.npz", **sets.cifar_arrays())
    elif request.param == "prepared":
        shutil.copytree(request.getfixturevalue("prepared")[0] / "cifar10", folder / "cifar10")
    elif request.param == "class folders":
        pictures.class_folders(folder, num_train=2, num_val=1)
    else:
        pictures.tiny_imagenet(folder)
    return folder


# The form, the data set, the file or folder without permission, and the one that is named if it is another one.
CASES = [("npz", "cifar10", part, 0, "cifar10.npz") for part in ("", "cifar10.npz")]
CASES += [("prepared", "cifar10", f"cifar10{part}", 0, "") for part in ("", "/3*/dataset_info.json")]
CASES += [("prepared", "cifar10", f"cifar10/3*/{part}", 0, "") for part in ("features.json", "*-test.*", "*-train.*")]
CASES += [("prepared", "cifar10", "cifar10/3*", 0o311, "")]  # files in it can be opened, but not listed
CASES += [("class folders", "imagenet", part, 0, "") for part in ("train", "val", "train/n00000001")]
CASES += [("class folders", "imagenet", "", 0, "imagenet2012")]
TINY = ("wnids.txt", "train", "train/n03/images", "val/images", "val/val_annotations.txt")
CASES += [("tiny", "tiny_imagenet", f"tiny-imagenet-200/{part}", 0, "") for part in TINY]


@pytest.mark.parametrize("data_dir, name, part, mode, named", CASES, indirect=["data_dir"])
def test_a_part_without_permission_is_named(data_dir, forbid, name, part, mode, named):
    (path,) = data_dir.glob(part) if part else [data_dir]
    forbid(path, mode)
    assert_refused(lambda: data.load(name, data_dir), data_dir / named if named else path)


def test_an_image_without_permission_is_named(tmp_path, forbid):
    source = data.load("imagenet", pictures.class_folders(tmp_path / "set", num_train=2, num_val=1)).train
    path = tmp_path / "set" / "train" / "n00000001" / "train_1.JPEG"
    forbid(path)
    assert_refused(lambda: [source[i] for i in range(source.num_images)], path)


def test_a_cache_without_permission_is_one_warning(prepared, cache_home, forbid, caplog):
    dataset = data.load("cifar10", prepared[0])
    (file,) = (cache_home / "wcjax").iterdir()
    forbid(file)
    forbid(cache_home / "wcjax", 0o555)
    sets.assert_same(denied(lambda: data.load("cifar10", prepared[0])), dataset)
    (line,) = (record.getMessage() for record in caplog.records if record.name.startswith("wcjax"))
    assert re.search(r"Could not cache the decoded images in .* \(.*Permission denied", line)
