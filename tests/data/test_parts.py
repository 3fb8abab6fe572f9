"""Many processes load a set together: threads stand in for them here, real ones are in tests/training."""

import concurrent.futures
import pathlib
import re
import threading

import numpy as np
import pytest

from wcjax import data
from wcjax.data.parts import Part, Rows, map_images
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
        parts = [Part(i, count, lambda array, i=i: gather(i, array)) for i in range(count)]
        return list(pool.map(call, parts))


def loaded(tmp_path):
    return together(lambda part: data.load("cifar10", tmp_path, part=part))


@pytest.fixture
def arrays(make_arrays):
    return make_arrays(num_train=1001, num_test=500)


def assert_whole(dataset, expected):
    for split, other in zip(dataset[:3], expected[:3], strict=True):
        images = split.images.stored[split.images.index] if isinstance(split.images, Rows) else split.images
        np.testing.assert_array_equal(images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)
        assert split.images.shape == other.images.shape
    np.testing.assert_array_equal(dataset.mean, expected.mean)
    np.testing.assert_array_equal(dataset.std, expected.std)


def test_the_parts_are_all_rows_once():
    for n in (0, 2, 7, 50_000):
        rows = [range(n)[Part(i, COUNT, None).of(n)] for i in range(COUNT)]
        assert sum(map(list, rows), []) == list(range(n))


def test_each_process_has_the_same_images_and_statistics_as_one_alone(tmp_path, arrays):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    expected = data.load("cifar10", tmp_path)
    for dataset in loaded(tmp_path):
        assert isinstance(dataset.train.images, Rows) and isinstance(dataset.test.images, np.memmap)
        assert_whole(dataset, expected)


def test_a_process_reads_its_part_of_the_images_and_no_more(tmp_path, make_arrays):
    np.savez(tmp_path / "cifar10.npz", **make_arrays(num_train=9000, num_test=6000))
    datasets = loaded(tmp_path)
    mapped = re.findall(
        r"cifar10.npz\nSize: +(\d+) kB(?:\n.*){2}\nRss: +(\d+) kB", pathlib.Path("/proc/self/smaps").read_text()
    )
    assert len(mapped) == 2 * len(datasets)
    for size, rss in (map(int, found) for found in mapped):
        # Besides, Linux maps what lies near and is in its memory already: up to 2 MiB at each end.
        assert size > 18_000 and size / COUNT - 8 <= rss <= size / COUNT + 4096


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


@pytest.mark.parametrize("other", ["missing", "different", "cut"])
def test_none_maps_a_file_that_one_finds_otherwise(tmp_path, arrays, make_arrays, other):
    np.savez(tmp_path / "one.npz", **arrays)
    if other == "different":
        np.savez(tmp_path / "other.npz", **arrays | {"x_test": arrays["x_test"][::-1]})
    if other == "cut":
        (tmp_path / "other.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:-100])
    found = together(lambda part: map_images(tmp_path / ("other.npz" if part.index == 1 else "one.npz"), part))
    assert found == [{}] * COUNT


def test_arrays_of_another_kind_are_not_mapped(tmp_path, arrays):
    for i, images in enumerate(
        [arrays["x_test"].astype(object), arrays["x_test"].T, arrays["x_test"].astype(np.int16)]
    ):
        np.savez(tmp_path / f"{i}.npz", **arrays | {"x_test": images})
        assert together(lambda part, i=i: map_images(tmp_path / f"{i}.npz", part)) == [{}] * COUNT


def test_digits_are_read_whole_by_each():
    expected = data.load("digits")
    for dataset in together(lambda part: data.load("digits", part=part)):
        assert_whole(dataset, expected)
