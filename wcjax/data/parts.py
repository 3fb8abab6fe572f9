"""The images of an .npz file for many processes, each of which reads and checks its part of them.

An array that is not compressed lies in the file as it lies in memory, so that its rows can be read one by one. What is
there to check them is one CRC-32 for the whole array: each process computes that of its rows, and all put together must
give it.
"""

import contextlib
import dataclasses
import functools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

KEYS = ("x_train", "x_test")


class Part(NamedTuple):
    """The part of one of many processes.

    Attributes:
      index: of the process, from 0 on.
      count: number of processes.
      gather: uint32 array (...) -> (count, ...), what the processes gave it, in their order. All must call it.
    """

    index: int
    count: int
    gather: Callable[[np.ndarray], np.ndarray]

    def of(self, n: int) -> slice:
        """Its part of n rows."""
        return slice(n * self.index // self.count, n * (self.index + 1) // self.count)


@dataclasses.dataclass(frozen=True)
class Rows:
    """stored[index], not read yet.

    Attributes:
      stored: uint8 (n, ...), mapped from a file.
      index: integers (m,).
    """

    stored: np.memmap
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.stored.shape[1:]

    def among(self, part: slice) -> np.ndarray:
        """Those of stored[part], in the order of the file."""
        chosen = np.zeros(len(self.stored), bool)
        chosen[self.index] = True
        return self.stored[part][chosen[part]]


def map_images(path, part: Part) -> dict[str, np.memmap]:
    """{'x_train': images, 'x_test': images}, uint8, mapped; all processes together have checked them.

    All get the same answer: {} where one cannot map them, finds another file than the others, or they are damaged.
    """
    mapped, sums = {}, np.zeros((len(KEYS), 4), np.uint32)
    with contextlib.suppress(Exception):  # damaged files raise many types; who reads the whole file says what it is
        mapped = {key: _map(path, f"{key}.npy") for key in KEYS}
        for sum_, (images, header, expected) in zip(sums, mapped.values(), strict=True):
            header = header if part.index == 0 else b""
            mine = images[part.of(len(images))]
            sum_[:] = True, expected, zlib.crc32(mine, zlib.crc32(header)), len(header) + mine.nbytes
    found = part.gather(sums)
    for ok, expected, crcs, lengths in found.transpose(1, 2, 0):
        crc, _ = functools.reduce(_join, zip(crcs.tolist(), lengths.tolist(), strict=True))
        if not ok.all() or set(expected.tolist()) != {crc}:
            return {}
    return {key: images for key, (images, _, _) in mapped.items()}


def _map(path, name):
    """(array, bytes before it, CRC-32 of both) of a member of an .npz file. Raises some exception if it is no such."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
    with open(path, "rb") as file:
        file.seek(entry.header_offset + 26)
        start = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))  # the lengths of name and extra field
        file.seek(start)
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        length = file.tell() - start
        file.seek(start)
        header = file.read(length)
    if entry.compress_type != zipfile.ZIP_STORED or is_fortran or dtype != np.uint8:
        raise ValueError
    if length + np.prod(shape, dtype=object) != entry.file_size:
        raise ValueError
    return np.memmap(path, dtype, "r", start + length, shape), header, entry.CRC


def _join(first, second):
    """(CRC-32, length) of bytes from those of their first and second part."""
    (crc, n), (other, length) = first, second
    # CRC-32 is affine: after equal bytes, here zeros, two of them differ by what the bytes before made them differ.
    moved, zero = crc, 0
    for start in range(0, length, len(_ZEROS)):
        zeros = _ZEROS[: length - start]
        moved, zero = zlib.crc32(zeros, moved), zlib.crc32(zeros, zero)
    return moved ^ zero ^ other, n + length


_ZEROS = memoryview(bytes(2**20))
