"""CIFAR from an .npz file, and one clear line for every file that is not one."""

import os
import re

import numpy as np
import pytest

from tests.data import sets
from wcjax import data
from wcjax.data.formats import npz
from wcjax.errors import InputError


@pytest.mark.parametrize("name, num_classes, data_dir", [("cifar10", 10, "~/sets"), ("cifar100", 100, "{}/any.npz")])
def test_files_and_folders_give_the_arrays(tmp_path, monkeypatch, name, num_classes, data_dir):
    arrays = sets.cifar_arrays(num_classes=num_classes)
    (tmp_path / "sets").mkdir()
    path = tmp_path / "sets" / f"{name}.npz" if data_dir == "~/sets" else tmp_path / "any.npz"
    np.savez_compressed(path, **arrays | {"y_test": arrays["y_test"].astype(np.uint8)[:, None]})
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = data.load(name, data_dir.format(tmp_path))
    assert (dataset.num_classes, dataset.test.labels.dtype) == (num_classes, np.int32)
    np.testing.assert_array_equal(dataset.test.images, arrays["x_test"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["y_test"])
    assert sets.pairs(dataset.train, dataset.val) == sets.pairs((arrays["x_train"], arrays["y_train"]))


def with_first(label):
    return lambda y: np.array([label, *y[1:]])


def constant_green(x):
    return np.where(np.arange(3) == 1, np.uint8(77), x)


IMAGES = "x_train is {}; allowed is uint8 (0..255) of shape (n, 32, 32, 3)"
LABELS = "y_test is {}; allowed are integers of shape (6,) or (6, 1)"


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("x_train", lambda x: x.astype(np.float32) / 255, IMAGES.format("float32 of shape (40, 32, 32, 3)")),
        ("x_train", lambda x: x.transpose(0, 3, 1, 2), IMAGES.format("uint8 of shape (40, 3, 32, 32)")),
        ("x_train", constant_green, "channel 1 has the same value in every pixel of the 36 training images"),
        ("x_test", lambda x: x[:0], "x_test contains no images"),
        ("x_test", None, "lacks x_test; found x_train, y_train, y_test. Make it again."),
        ("y_test", lambda y: y > 4, LABELS.format("bool of shape (6,)")),
        ("y_test", lambda y: y[:-1], LABELS.format("int32 of shape (5,)")),
        ("y_test", with_first(-1), "y_test contains labels from -1 to "),
        ("y_train", with_first(10), " to 10; allowed are 0..9. Is it another data set?"),
        ("y_train", lambda y: y % 5, "y_train contains labels up to 4, but 10 classes have labels up to 9."),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, arrays, key, change, message):
    array = arrays.pop(key)
    np.savez(tmp_path / "a.npz", **arrays | ({key: change(array)} if change else {}))
    with pytest.raises(InputError, match=re.escape(message)):
        data.load("cifar10", tmp_path / "a.npz")


def test_a_damaged_file_is_named_with_the_cure(cifar_dir, arrays):
    path = cifar_dir / "cifar10.npz"
    content = bytearray(path.read_bytes())
    content[content.index(arrays["x_train"][20].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file.*CRC.*Make it again"):
        data.load("cifar10", cifar_dir)
    os.truncate(path, len(content) // 2)
    with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file.*Make it again"):
        data.load("cifar10", cifar_dir)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, arrays, monkeypatch):
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays, extra=np.zeros(10**7, np.uint8))
    assert (tmp_path / "cifar10.npz").stat().st_size < 10**6
    monkeypatch.setattr(npz, "MAX_BYTES", 10**7)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it unpacked the arrays"))
    with pytest.raises(InputError, match=r"unpacks to 10,14\d,\d\d\d bytes; at most 10,000,000 are allowed"):
        data.load("cifar10", tmp_path)


class Bomb:
    """Unpickling this makes the folder `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays | {"y_train": np.array([Bomb(str(tmp_path / "exploded"))], object)})
    with pytest.raises(InputError, match="holds Python objects, which are never loaded"):
        data.load("cifar10", tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["y_train"]
    assert (tmp_path / "exploded").exists(), "the file explodes if it is unpickled"
