"""A folder or file that may not be read is named with the word permission, and never called damaged."""

import re

import numpy as np
import pytest

from tests.data import pictures
from tests.data.test_cifar_tfds import prepare
from tests.data.test_folder import tiny_imagenet
from tests.permissions import denied
from wcjax import data
from wcjax.errors import InputError


@pytest.fixture
def forbid():
    """forbid(path) takes all rights to a file or folder until the end of the test."""
    modes = {}

    def change(path):
        modes[path] = path.stat().st_mode
        path.chmod(0)
        return path

    yield change
    for path, mode in modes.items():
        path.chmod(mode)


def assert_refused(path, name, data_dir):
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: permission denied. Allow the user who")) as caught:
        denied(lambda: data.load(name, data_dir))
    assert "damaged" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["sets", "sets/cifar10.npz"])
def test_an_npz_file(tmp_path, make_arrays, forbid, part):
    (tmp_path / "sets").mkdir()
    np.savez(tmp_path / "sets" / "cifar10.npz", **make_arrays())
    forbid(tmp_path / part)
    assert_refused(tmp_path / "sets" / "cifar10.npz", "cifar10", tmp_path / "sets")


@pytest.fixture
def prepared(tmp_path, make_arrays):
    """The folder of the version of a tiny CIFAR-10, as tensorflow-datasets writes it."""
    pytest.importorskip("tensorflow_datasets", reason="needs pip install 'wcjax[data]'")
    prepare("cifar10", make_arrays(), tmp_path / "sets")
    (version,) = (tmp_path / "sets" / "cifar10").iterdir()
    return version


@pytest.mark.parametrize("pattern", ["dataset_info.json", "features.json", "*-test.array_record*", "*-train.*"])
def test_a_file_of_tensorflow_datasets(prepared, forbid, pattern):
    (file,) = prepared.glob(pattern)
    forbid(file)
    assert_refused(file, "cifar10", prepared.parent.parent)


def test_the_folders_of_tensorflow_datasets(prepared, forbid):
    forbid(prepared.parent)
    assert_refused(prepared.parent, "cifar10", prepared.parent.parent)
    prepared.parent.chmod(0o755)
    prepared.chmod(0o311)  # files in it can be opened, but not listed
    assert_refused(prepared, "cifar10", prepared.parent.parent)
    prepared.chmod(0o755)


def test_a_cache_that_may_not_be_read_or_written_costs_a_line_that_says_so(prepared, cache_home, forbid, caplog):
    expected = data.load("cifar10", prepared.parent.parent)
    (cached,) = (cache_home / "wcjax").iterdir()
    forbid(cached)
    (cache_home / "wcjax").chmod(0o555)
    dataset = denied(lambda: data.load("cifar10", prepared.parent.parent))
    (cache_home / "wcjax").chmod(0o755)
    np.testing.assert_array_equal(dataset.val.images, expected.val.images)
    (record,) = (record for record in caplog.records if record.name == "wcjax.data.formats.cache")
    assert re.search(r"Could not keep the decoded images in .* \(.*Permission denied", record.getMessage())


@pytest.mark.parametrize("part", ["", "train", "val", "train/n00000001"])
def test_a_folder_of_images(tmp_path, forbid, part):
    root = pictures.class_folders(tmp_path / "set", num_train=2, num_val=1)
    folder = forbid(root / part)
    path = root / "imagenet2012" if not part else folder
    assert_refused(path, "imagenet", root)


@pytest.mark.parametrize("part", ["wnids.txt", "train", "train/n03/images", "val/images", "val/val_annotations.txt"])
def test_a_part_of_tiny_imagenet(tmp_path, forbid, part):
    assert_refused(forbid(tiny_imagenet(tmp_path) / part), "tiny_imagenet", tmp_path)


def test_an_image_is_named_when_it_is_read(tmp_path, forbid):
    source = data.load("imagenet", pictures.class_folders(tmp_path / "set", num_train=2, num_val=1)).train
    path = forbid(tmp_path / "set" / "train" / "n00000001" / "train_1.JPEG")
    with pytest.raises(InputError, match=f"^{path}: permission denied"):
        denied(lambda: [source[i] for i in range(source.num_images)])
