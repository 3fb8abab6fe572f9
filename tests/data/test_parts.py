"""Many processes load a set together: threads stand in for them here, real ones are in tests/training."""

import concurrent.futures
import os
import pathlib
import re
import threading

import numpy as np
import pytest

from wcjax import data
from wcjax.data import npz, tfds
from wcjax.data.parts import Part, Rows, Stored, find_images
from wcjax.errors import InputError

COUNT = 3


def together(call, count=COUNT):
    """[call(part) for each part], at the same time, with a gather as that of JAX."""
    barrier, given = threading.Barrier(count, timeout=60), [None] * count

    def gather(index, array):
        assert array.dtype == np.uint32
        given[index] = array
        barrier.wait()
        gathered = np.stack(given)
        barrier.wait()
        return gathered

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        parts = [Part(i, count, 2 * count, lambda array, i=i: gather(i, array)) for i in range(count)]
        return list(pool.map(call, parts))


def loaded(tmp_path):
    return together(lambda part: data.load("cifar10", tmp_path, part=part))


@pytest.fixture
def arrays(make_arrays):
    return make_arrays(num_train=1001, num_test=500)


def assert_whole(dataset, expected):
    for split, other in zip(dataset[:3], expected[:3], strict=True):
        images = split.images
        if isinstance(images, Rows):
            images = images.stored[:][images.index]
        elif isinstance(images, Stored):
            images = images[:]
        np.testing.assert_array_equal(images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)
        assert split.images.shape == other.images.shape
    np.testing.assert_array_equal(dataset.mean, expected.mean)
    np.testing.assert_array_equal(dataset.std, expected.std)


def test_the_parts_are_all_rows_once():
    for n in (0, 1, 2, 7, 50_000):
        for devices in (3, 6, 24):
            rows = [range(n)[Part(i, COUNT, devices, None).of(n)] for i in range(COUNT)]
            assert sum(map(list, rows), []) == list(range(n))


def test_each_process_has_the_same_images_and_statistics_as_one_alone(tmp_path, arrays):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    expected = data.load("cifar10", tmp_path)
    for dataset in loaded(tmp_path):
        assert isinstance(dataset.train.images, Rows) and isinstance(dataset.test.images, Stored)
        assert_whole(dataset, expected)


def test_a_process_reads_its_part_of_the_images_and_no_more(tmp_path, make_arrays):
    np.savez(tmp_path / "cifar10.npz", **make_arrays(num_train=2000, num_test=600))
    read = lambda: int(re.search(r"rchar: (\d+)", pathlib.Path("/proc/thread-self/io").read_text())[1])

    def bytes_read(part):
        before = read()
        data.load("cifar10", tmp_path, part=part)
        return read() - before

    whole = bytes_read(None)
    for found in together(bytes_read, count=8):
        # Its part of the images is read for the checksum, and once more, but for those of test, to count pixels.
        assert whole / 8 < found < 2 * whole / 8 + 100_000 < whole / 3


def test_compressed_files_are_read_whole(tmp_path, arrays):
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays)
    expected = data.load("cifar10", tmp_path)
    for dataset in loaded(tmp_path):
        assert isinstance(dataset.train.images, np.ndarray)
        assert_whole(dataset, expected)


@pytest.mark.parametrize("key, row", [("x_train", 0), ("x_train", 500), ("x_train", 1000), ("x_test", 499)])
def test_all_find_one_flipped_bit_in_the_part_of_one(tmp_path, arrays, key, row):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    content = bytearray((tmp_path / "cifar10.npz").read_bytes())
    content[content.index(arrays[key][row].tobytes()) + 100] ^= 1
    (tmp_path / "cifar10.npz").write_bytes(content)

    def load(part):
        with pytest.raises(InputError, match="cifar10.npz: not a readable .npz file.*CRC"):
            data.load("cifar10", tmp_path, part=part)

    assert together(load) == [None] * COUNT


@pytest.mark.parametrize("other", ["missing", "different", "cut", "header"])
def test_none_uses_a_file_that_one_finds_otherwise(tmp_path, arrays, make_arrays, other):
    np.savez(tmp_path / "one.npz", **arrays)
    if other == "different":
        np.savez(tmp_path / "other.npz", **arrays | {"x_test": arrays["x_test"][::-1]})
    if other == "header":  # which only the first process puts into the checksum
        (tmp_path / "other.npz").write_bytes((tmp_path / "one.npz").read_bytes().replace(b"False, ", b"False,\t", 1))
    if other == "cut":
        (tmp_path / "other.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:-100])
    found = together(lambda part: find_images(tmp_path / ("other.npz" if part.index == 1 else "one.npz"), part))
    assert found == [{}] * COUNT


def test_arrays_of_another_kind_are_not_left_in_the_file(tmp_path, arrays):
    for i, images in enumerate([arrays["x_test"].astype(np.int8), arrays["x_test"].T]):
        np.savez(tmp_path / f"{i}.npz", **arrays | {"x_test": images})
        assert together(lambda part, i=i: find_images(tmp_path / f"{i}.npz", part)) == [{}] * COUNT


def test_digits_are_read_whole_by_each():
    expected = data.load("digits")
    for dataset in together(lambda part: data.load("digits", part=part)):
        assert_whole(dataset, expected)


def test_all_decode_where_the_cache_of_one_is_damaged(tmp_path, arrays, monkeypatch):
    np.savez(tmp_path / "cached.npz", **arrays)
    read, decoded = npz.read, []

    def read_but_of_one(path, num_classes, part):
        splits = read(path, num_classes, part)
        if part.index == 1:
            raise InputError("labels that cannot be read")
        return splits

    monkeypatch.setattr(npz, "read", read_but_of_one)
    monkeypatch.setattr(tfds.cache, "path", lambda directory: tmp_path / "cached.npz")
    monkeypatch.setattr(tfds.cache, "write", lambda *_: None)
    monkeypatch.setattr(tfds, "_decode", lambda directory: decoded.append(directory) or arrays)
    for train, _ in together(lambda part: tfds.read(tmp_path, 10, part)):
        assert train.images is arrays["x_train"]
    assert len(decoded) == COUNT


def test_a_file_that_was_replaced_is_read_as_it_was_and_one_that_was_cut_is_an_error(tmp_path, arrays):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    images = loaded(tmp_path)[0].test.images
    path.rename(tmp_path / "before.npz")
    np.savez(path, **{key: array[:1] for key, array in arrays.items()})
    np.testing.assert_array_equal(images[7:9], arrays["x_test"][7:9])
    os.truncate(tmp_path / "before.npz", 1000)
    with pytest.raises(InputError, match="cifar10.npz was cut while it was in use"):
        images[7:9]
