import re
import shlex
import zipfile

import numpy as np
import pytest

from wcjax import data
from wcjax.data.formats import npz
from wcjax.errors import InputError


@pytest.fixture
def arrays(make_arrays):
    return make_arrays()


@pytest.fixture
def load_with(tmp_path, arrays):
    """load_with(x_train=...) loads CIFAR-10 from a file in which these arrays are replaced, or left out where None."""

    def load(**changes):
        changed = {key: value for key, value in (arrays | changes).items() if value is not None}
        np.savez(tmp_path / "changed.npz", **changed)
        return data.load("cifar10", tmp_path / "changed.npz")

    return load


@pytest.mark.parametrize("name, num_classes", [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("as_file", [True, False])
def test_file_and_directory_give_the_same_arrays(tmp_path, make_arrays, name, num_classes, as_file):
    arrays = make_arrays(num_classes=num_classes)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    dataset = data.load(name, tmp_path / f"{name}.npz" if as_file else str(tmp_path))
    assert dataset.num_classes == num_classes
    np.testing.assert_array_equal(dataset.test.images, arrays["x_test"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["y_test"])


def test_a_tilde_is_the_home_directory(tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets").mkdir()
    np.savez(tmp_path / "sets" / "cifar10.npz", **arrays)
    np.testing.assert_array_equal(data.load("cifar10", "~/sets").test.images, arrays["x_test"])


def test_compressed_files_and_labels_as_keras_gives_them_are_read(tmp_path, arrays):
    changed = arrays | {"y_test": arrays["y_test"].astype(np.uint8)[:, None]}
    np.savez_compressed(tmp_path / "cifar10.npz", **changed)
    labels = data.load("cifar10", tmp_path).test.labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, arrays["y_test"])


def test_missing_arrays_are_listed_with_those_found(load_with):
    with pytest.raises(InputError, match="changed.npz: lacks y_train, x_test; found x_train, y_test, extra"):
        load_with(y_train=None, x_test=None, extra=np.zeros(1))


@pytest.mark.parametrize(
    "make_images, found",
    [
        (lambda x: x.astype(np.float32) / 255, "float32 of shape (40, 32, 32, 3)"),
        (lambda x: x.astype(np.int64), "int64 of shape (40, 32, 32, 3)"),
        (lambda x: x.transpose(0, 3, 1, 2), "uint8 of shape (40, 3, 32, 32)"),
        (lambda x: x[..., :1], "uint8 of shape (40, 32, 32, 1)"),
        (lambda x: x[..., 0], "uint8 of shape (40, 32, 32)"),
        (lambda x: x.reshape(40, -1), "uint8 of shape (40, 3072)"),
    ],
)
def test_images_other_than_uint8_nhwc_are_refused(load_with, arrays, make_images, found):
    expected = f"changed.npz: x_train is {found}; allowed is uint8 (0..255) of shape (n, 32, 32, 3)"
    with pytest.raises(InputError, match=re.escape(expected)):
        load_with(x_train=make_images(arrays["x_train"]))


@pytest.mark.parametrize(
    "make_labels, found",
    [
        (lambda y: y.astype(np.float64), "float64 of shape (6,)"),
        (lambda y: y > 4, "bool of shape (6,)"),
        (lambda y: y[:-1], "int32 of shape (5,)"),
        (lambda y: np.eye(10, dtype=np.int32)[y], "int32 of shape (6, 10)"),
    ],
)
def test_labels_other_than_one_integer_an_image_are_refused(load_with, arrays, make_labels, found):
    expected = f"changed.npz: y_test is {found}; allowed are integers of shape (6,) or (6, 1)"
    with pytest.raises(InputError, match=re.escape(expected)):
        load_with(y_test=make_labels(arrays["y_test"]))


@pytest.mark.parametrize("label, found", [(-1, "from -1 to "), (10, "to 10")])
def test_labels_beyond_the_classes_are_refused(load_with, arrays, label, found):
    labels = arrays["y_train"].copy()
    labels[17] = label
    with pytest.raises(InputError, match=f"changed.npz: y_train holds labels .*{found}.*; allowed are 0..9"):
        load_with(y_train=labels)


def test_an_empty_split_is_refused(load_with, arrays):
    with pytest.raises(InputError, match="changed.npz: x_test holds no images"):
        load_with(x_test=arrays["x_test"][:0], y_test=arrays["y_test"][:0])


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_file_is_named_and_to_be_made_again(tmp_path, arrays, kept):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file.*Make it again"):
        data.load("cifar10", tmp_path)


def test_one_flipped_bit_among_the_pixels_is_found(tmp_path, arrays):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[content.index(arrays["x_train"][20].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file.*CRC.*Make it again"):
        data.load("cifar10", tmp_path)


def test_other_files_named_npz_are_refused(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "b.npz").write_text("hello")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", "hello")
    for letter in "abc":
        with pytest.raises(InputError, match=f"{letter}.npz: (not a readable .npz file|x_train is )"):
            data.load("cifar10", tmp_path / f"{letter}.npz")


def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused_before_it_is_unpacked(tmp_path, arrays, monkeypatch):
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays, extra=np.zeros(10**7, np.uint8))
    assert (tmp_path / "cifar10.npz").stat().st_size < 10**6
    monkeypatch.setattr(npz, "MAX_BYTES", 10**7)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it unpacked the arrays"))
    with pytest.raises(
        InputError, match=r"cifar10.npz: unpacks to 10,14\d,\d\d\d bytes; at most 10,000,000 are allowed"
    ):
        data.load("cifar10", tmp_path)


def test_an_array_that_claims_to_be_larger_than_its_file_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "whole.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "cifar10.npz", "w") as forged:
        for name in whole.namelist():
            forged.writestr(name, whole.read(name).replace(b"(40, 32, 32, 3), }  ", b"(9999, 32, 32, 3), }"))
    with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file"):
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
    # That the file would have exploded is what makes the claim above one.
    np.load(tmp_path / "changed.npz", allow_pickle=True)["y_train"]
    assert Bomb.exploded


def places(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    return {
        "cifar10 needs data_dir": None,
        "needs data_dir": "",
        f"there is no directory {tmp_path}/nowhere": tmp_path / "nowhere",
        f"there is no directory {tmp_path}/notes.txt": tmp_path / "notes.txt",
        f"there is no file {tmp_path}/cifar.npz": tmp_path / "cifar.npz",
        f"{tmp_path}/empty holds neither cifar10.npz nor cifar10/<version>/dataset_info.json": tmp_path / "empty",
    }


def test_data_that_is_not_there_is_told_apart_and_explained(tmp_path):
    for message, data_dir in places(tmp_path).items():
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            data.load("cifar10", data_dir)
        told = str(caught.value)
        assert "pip install 'wcjax[prepare]'" in told
        for key in ("x_train", "y_train", "x_test", "y_test", ".npz", "0..9"):
            assert key in told


def test_the_command_in_the_message_is_one_that_a_shell_and_python_accept(tmp_path):
    with pytest.raises(InputError) as caught:
        data.load("cifar100", tmp_path / "sets")
    (line,) = (line for line in str(caught.value).splitlines() if "tensorflow_datasets" in line)
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    compile(code, "command", "exec")
    assert f"tfds.builder('cifar100', data_dir='{tmp_path}/sets', file_format='array_record')" in code
    assert code.endswith(".download_and_prepare()")
