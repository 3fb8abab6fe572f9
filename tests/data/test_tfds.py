"""Directories of tensorflow_datasets: every image and label, the cache, and one clear line for damaged ones."""

import os
import re
import shutil
import sys

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data import sets
from tests.permissions import denied, mode
from tests.processes import python
from wcjax import data
from wcjax.errors import InputError


@pytest.fixture
def data_dir(prepared, tmp_path):
    """A copy of the CIFAR-10 that a test may change."""
    shutil.copytree(prepared[0] / "cifar10", tmp_path / "sets" / "cifar10")
    return tmp_path / "sets"


@pytest.fixture
def version_dir(data_dir):
    (directory,) = (data_dir / "cifar10").iterdir()
    return directory


def uninstall(monkeypatch):
    """Makes the import of tensorflow_datasets fail, so that only the cache can give images."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_images_come_with_fine_labels_in_official_order(prepared, name):
    root, arrays = prepared
    dataset = data.load(name, root)
    for split, parts in (("train", (dataset.train, dataset.val)), ("test", (dataset.test,))):
        assert sets.pairs(*parts) == sets.pairs((arrays[name][f"x_{split}"], arrays[name][f"y_{split}"]))
    official = tfds.builder(name, data_dir=root).as_data_source("test")
    np.testing.assert_array_equal(dataset.test.images, [record["image"] for record in official])
    np.testing.assert_array_equal(dataset.test.labels, [record["label"] for record in official])


def test_tensorflow_is_not_imported(prepared, tmp_path):
    (tmp_path / "tensorflow").mkdir()  # a package of that name, so that an import would succeed
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '2.99.0'")
    code = f"import sys, wcjax.data\nwcjax.data.load('cifar10', {str(prepared[0])!r})\n"
    code += "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
    ended = python("-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert ended.stdout.split() == ["True", "False"]


def test_the_newest_finished_version_is_read(data_dir, version_dir):
    version_dir.rename(data_dir / "cifar10" / "10.0.0")
    for name in ("9.0.0", "incomplete.ABC_11.0.0"):
        (data_dir / "cifar10" / name).mkdir()
        (data_dir / "cifar10" / name / "dataset_info.json").write_text("{}")
    assert data.load("cifar10", data_dir).test.num_images == 7


def grow_info(directory):
    info = directory / "dataset_info.json"
    modified = info.stat().st_mtime_ns
    info.write_text(info.read_text() + "\n")
    os.utime(info, ns=(modified, modified))


CHANGES = {
    "modified": lambda directory: os.utime(directory / "dataset_info.json", ns=(0, 1)),
    "grown": grow_info,
    "new": lambda directory: (directory / "extra.txt").write_text(""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_an_unchanged_directory_uses_the_cache(data_dir, version_dir, monkeypatch, change):
    dataset = data.load("cifar10", data_dir)
    uninstall(monkeypatch)
    chex.assert_trees_all_equal(dataset, data.load("cifar10", data_dir))
    CHANGES[change](version_dir)
    with pytest.raises(InputError, match=r"cannot be imported .* pip install 'wcjax\[data\]'"):
        data.load("cifar10", data_dir)


@pytest.mark.parametrize("damage", ["flipped bit", "other arrays"])
def test_a_damaged_cache_is_replaced(prepared, cache_home, monkeypatch, damage):
    dataset = data.load("cifar10", prepared[0])
    (file,) = (cache_home / "wcjax").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(dataset.test.images[0].tobytes()) + 7] ^= 4
    if damage == "flipped bit":
        file.write_bytes(content)
    else:
        np.savez(file, x_train=np.zeros((3, 8, 8, 1), np.uint8))
    chex.assert_trees_all_equal(dataset, data.load("cifar10", prepared[0]))
    uninstall(monkeypatch)
    chex.assert_trees_all_equal(dataset, data.load("cifar10", prepared[0]))


def test_a_cache_that_cannot_be_used_is_one_warning(prepared, cache_home, monkeypatch, caplog):
    def fill_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    dataset = data.load("cifar10", prepared[0])
    (file,) = (cache_home / "wcjax").iterdir()
    monkeypatch.setattr(np, "savez", fill_disk)
    with mode(file, 0):
        chex.assert_trees_all_equal(dataset, denied(lambda: data.load("cifar10", prepared[0])))
    (record,) = (record for record in caplog.records if record.name.startswith("wcjax"))
    assert record.levelname == "WARNING"
    assert re.match("Could not cache the decoded images in .*No space left on device", record.getMessage())
    assert list(file.parent.iterdir()) == [file], "half a file is removed"


@pytest.mark.parametrize("variable, folder", [("HOME", ".cache/wcjax"), ("XDG_CACHE_HOME", "wcjax"), ("", None)])
def test_the_environment_says_where_the_cache_is(prepared, tmp_path, monkeypatch, caplog, variable, folder):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    if variable:
        monkeypatch.setenv(variable, ".")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a user without an entry
    monkeypatch.chdir(tmp_path)
    assert data.load("cifar10", prepared[0]).test.num_images == 7
    folders = [str(file.parent.relative_to(tmp_path)) for file in tmp_path.rglob("cifar10-*.npz")]
    assert folders == ([folder] if folder else []), "no folder called ~"
    assert ("There is no home directory to cache decoded images in. Set XDG_CACHE" in caplog.text) == (folder is None)


def edit(name, old, new):
    """Replaces text in a file of the directory."""

    def damage(directory):
        text = (directory / name).read_text()
        assert old in text
        (directory / name).write_text(text.replace(old, new, 1))

    return damage


FEATURES, HOSTILE = "tensorflow_datasets.core.features.", "hostile.Feature"
DAMAGE = {
    "truncated": lambda directory: os.truncate(*directory.glob("*test.array_record*"), 10_000),
    "broken info": edit("dataset_info.json", "{", ""),
    "of another format": edit("dataset_info.json", '"fileFormat": "array_record"', '"fileFormat": "tfrecord"'),
    "a hostile feature": edit("features.json", f"{FEATURES}text_feature.Text", HOSTILE),
    "hostile features": edit("features.json", f"{FEATURES}features_dict.FeaturesDict", HOSTILE),
    "hostile legacy": edit("features.json", "{", f'{{"type": "{HOSTILE}", "content": {{}}, '),
    "hostile twice": edit("features.json", '"text": {}', f'"text": {{}}, "python_class_name": "{HOSTILE}"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_directory_that_cannot_be_read_is_named_with_the_cure(
    data_dir, version_dir, tmp_path, cache_home, monkeypatch, damage
):
    (tmp_path / "hostile.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    DAMAGE[damage](version_dir)
    message = "cannot be read; a file is missing, truncated or damaged"
    if damage == "of another format":
        message = "prepared as tfrecord, .*; allowed is array_record"
    with pytest.raises(InputError, match=f"^{version_dir}: {message}") as error:
        data.load("cifar10", data_dir)
    assert f"tfds.builder('cifar10', data_dir='{data_dir}', file_format='array_record')" in str(error.value)
    assert not cache_home.exists()


def test_images_of_another_size_are_refused(tmp_path):
    images = np.zeros((4, 28, 30, 3), np.uint8)
    sets.prepare_cifar("cifar10", tmp_path, sets.cifar_arrays(4, 4) | {"x_train": images, "x_test": images})
    message = r"/cifar10/3.*, train, train_0: an image of 30 x 28 pixels of mode RGB; allowed"
    with pytest.raises(InputError, match=message):
        data.load("cifar10", tmp_path)


@pytest.mark.skipif(not os.environ.get("WCJAX_DATA_DIR"), reason="real CIFAR-10: set WCJAX_DATA_DIR to its data_dir")
def test_the_real_cifar10_has_its_known_statistics():
    dataset = data.load("cifar10", os.environ["WCJAX_DATA_DIR"])
    assert [split.num_images for split in dataset[:3]] == [45_000, 5_000, 10_000]
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1_000] * 10)
    # These are published for the 50,000 official training images; 45,000 of them differ a little.
    np.testing.assert_allclose(dataset.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(dataset.std, [0.2470, 0.2435, 0.2616], atol=2e-3)
