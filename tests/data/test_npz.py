"""CIFAR from an .npz file, and one clear line for every file or path that is not one."""

import io
import re
import shlex
import zipfile

import numpy as np
import pytest

from tests.data import sets
from wcjax import data
from wcjax.data.formats import npz
from wcjax.errors import InputError


@pytest.fixture
def load_with(tmp_path, arrays):
    """load_with(x_train=...) loads CIFAR-10 from a file with these arrays changed, or omitted if None."""

    def load(**changes):
        np.savez(tmp_path / "a.npz", **{key: x for key, x in (arrays | changes).items() if x is not None})
        return data.load("cifar10", tmp_path / "a.npz")

    return load


@pytest.mark.parametrize("name, num_classes", [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("data_dir", ["~/sets", "sets/{}.npz", "sets"])
def test_files_and_folders_give_the_arrays(tmp_path, monkeypatch, name, num_classes, data_dir):
    arrays = sets.cifar_arrays(num_classes=num_classes)
    (tmp_path / "sets").mkdir()
    np.savez_compressed(
        tmp_path / "sets" / f"{name}.npz", **arrays | {"y_test": arrays["y_test"].astype(np.uint8)[:, None]}
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = data.load(name, data_dir if "~" in data_dir else tmp_path / data_dir.format(name))
    assert (dataset.num_classes, dataset.test.labels.dtype) == (num_classes, np.int32)
    np.testing.assert_array_equal(dataset.test.images, arrays["x_test"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["y_test"])
    assert sets.pairs(dataset.train, dataset.val) == sets.pairs((arrays["x_train"], arrays["y_train"]))


def replace_label(labels, label):
    return np.where(np.arange(len(labels)) == 3, label, labels)


IMAGES = "a.npz: x_train is {}; allowed is uint8 (0..255) of shape (n, 32, 32, 3)"
LABELS = "a.npz: y_test is {}; allowed are integers of shape (6,) or (6, 1)"


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("x_train", lambda x: x.astype(np.float32) / 255, IMAGES.format("float32 of shape (40, 32, 32, 3)")),
        ("x_train", lambda x: x.transpose(0, 3, 1, 2), IMAGES.format("uint8 of shape (40, 3, 32, 32)")),
        ("x_train", lambda x: x[..., 0], IMAGES.format("uint8 of shape (40, 32, 32)")),
        ("x_test", lambda x: x[:0], "a.npz: x_test contains no images"),
        ("x_test", lambda x: None, "a.npz: lacks x_test; found x_train, y_train, y_test. Make it again."),
        ("y_test", lambda y: y.astype(np.float64), LABELS.format("float64 of shape (6,)")),
        ("y_test", lambda y: y > 4, LABELS.format("bool of shape (6,)")),
        ("y_test", lambda y: y[:-1], LABELS.format("int32 of shape (5,)")),
        ("y_test", lambda y: np.eye(10, dtype=np.int32)[y], LABELS.format("int32 of shape (6, 10)")),
        ("y_test", lambda y: replace_label(y, -1), "a.npz: y_test contains labels from -1 to "),
        ("y_train", lambda y: replace_label(y, 10), " to 10; allowed are 0..9. Is it another data set?"),
    ],
)
def test_arrays_of_another_form_are_refused(load_with, arrays, key, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_with(**{key: change(arrays[key])})


def flip_a_bit(content, arrays):
    at = content.index(arrays["x_train"][20].tobytes()) + 100
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def rewrite(content, change):
    """The .npz file with change(bytes) of each member. Its checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)))
    return file.getvalue()


SHAPES = b"(40, 32, 32, 3), }  ", b"(9999, 32, 32, 3), }"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content, arrays: b"", "not a readable .npz file"),
        (lambda content, arrays: content[: len(content) // 2], "not a readable .npz file"),
        (lambda content, arrays: content[:-100], "not a readable .npz file"),
        (flip_a_bit, "not a readable .npz file.*CRC"),
        (lambda content, arrays: b"hello", "not a readable .npz file"),
        (lambda content, arrays: rewrite(content, lambda member: b"hello"), r"x_train is \|S5 of shape \(\)"),
        (lambda content, arrays: rewrite(content, lambda member: member.replace(*SHAPES)), "not a readable .npz file"),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(cifar_dir, arrays, damage, message):
    path = cifar_dir / "cifar10.npz"
    path.write_bytes(damage(path.read_bytes(), arrays))
    with pytest.raises(InputError, match=rf"cifar10.npz: {message}.*(Make it again|make the file again)"):
        data.load("cifar10", cifar_dir)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, arrays, monkeypatch):
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays, extra=np.zeros(10**7, np.uint8))
    assert (tmp_path / "cifar10.npz").stat().st_size < 10**6
    monkeypatch.setattr(npz, "MAX_BYTES", 10**7)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it unpacked the arrays"))
    message = r"cifar10.npz: unpacks to 10,14\d,\d\d\d bytes; at most 10,000,000 are allowed"
    with pytest.raises(InputError, match=message):
        data.load("cifar10", tmp_path)


class Bomb:
    """Unpickling this calls `explode`."""

    exploded = False

    def __reduce__(self):
        return explode, ()


def explode():
    Bomb.exploded = True


def test_nothing_is_unpickled(load_with, tmp_path):
    with pytest.raises(InputError, match="holds Python objects, which are never loaded"):
        load_with(y_train=np.array([Bomb()], object))
    assert not Bomb.exploded
    np.load(tmp_path / "a.npz", allow_pickle=True)["y_train"]
    assert Bomb.exploded, "the file explodes if it is unpickled"


@pytest.mark.parametrize(
    "data_dir, message",
    [
        (None, "cifar10 needs data_dir. "),
        ("", "cifar10 needs data_dir. "),
        ("notes.txt", "cifar10: there is no directory {}. "),
        ("cifar.npz", "cifar10: there is no file {}. "),
        ("empty", "cifar10: {} contains neither cifar10.npz nor cifar10/<version>/dataset_info.json. "),
    ],
)
def test_missing_data_are_explained_with_a_command(tmp_path, data_dir, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    path = tmp_path / data_dir if data_dir else data_dir
    with pytest.raises(InputError, match="^" + re.escape(message.format(path))) as error:
        data.load("cifar10", path)
    for part in ("pip install 'wcjax[prepare]'", "x_train", "y_train", "x_test", "y_test", ".npz", "0..9"):
        assert part in str(error.value)
    (line,) = (line for line in str(error.value).splitlines() if "tensorflow_datasets" in line)
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    compile(code, "command", "exec")
    directory = {None: "DIR", "": "DIR", "cifar.npz": tmp_path}.get(data_dir, path)
    assert f"tfds.builder('cifar10', data_dir='{directory}', file_format='array_record')" in code
    assert code.endswith(".download_and_prepare()")
