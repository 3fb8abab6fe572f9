"""The images of an .npz file for many processes, each of which reads and checks its part of them.

An array that is not compressed lies in the file as it lies in memory, so that its rows can be read one by one. What is
there to check them is one CRC-32 for the whole array: each process computes that of its rows, and all put together must
give it.
"""

import contextlib
import dataclasses
import functools
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

from wcjax.errors import InputError

KEYS = ("x_train", "x_test")


class Part(NamedTuple):
    """The part of one of many processes.

    Attributes:
      index: of the process, from 0 on.
      count: number of processes.
      devices: number of devices of all processes, which have equally many.
      gather: uint32 array (...) -> (count, ...), what the processes gave it, in their order. All must call it.
    """

    index: int
    count: int
    devices: int
    gather: Callable[[np.ndarray], np.ndarray]

    def of(self, n: int) -> slice:
        """Its part of n rows: those that `wcjax.training.mesh.share_rows` gives to its devices."""
        rows = -(-n // self.devices) * (self.devices // self.count)
        return slice(min(n, rows * self.index), min(n, rows * (self.index + 1)))


@dataclasses.dataclass(frozen=True)
class Stored:
    """uint8 (n, ...) in an open file, from the byte `start` on; stored[first:last] reads these rows."""

    file: BinaryIO
    start: int
    shape: tuple[int, ...]
    dtype = np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        row = math.prod(self.shape[1:])
        self.file.seek(self.start + first * row)
        found = np.fromfile(self.file, np.uint8, (last - first) * row)
        if found.size != (last - first) * row:
            raise InputError(f"{self.file.name} was cut while it was in use. Make it again.")
        return found.reshape(last - first, *self.shape[1:])


@dataclasses.dataclass(frozen=True)
class Rows:
    """stored[index], not read yet. index: integers (m,)."""

    stored: Stored
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.stored.shape[1:]

    def among(self, part: slice) -> np.ndarray:
        """Those of stored[part], in the order of the file."""
        chosen = np.zeros(len(self.stored), bool)
        chosen[self.index] = True
        return self.stored[part][chosen[part]]


def find_images(path, part: Part) -> dict[str, Stored]:
    """{'x_train': images, 'x_test': images}, uint8, which all processes together have checked.

    All get the same answer: {} where one cannot find them, finds another file than the others, or they are damaged.
    """
    found, sums = {}, np.zeros((len(KEYS), 5), np.uint32)
    with contextlib.suppress(Exception):  # damaged files raise many types; who reads the whole file says what it is
        found = {key: _find(path, f"{key}.npy") for key in KEYS}
        for sum_, (images, header, expected) in zip(sums, found.values(), strict=True):
            mine = images[part.of(len(images))]
            sum_[:] = True, expected, zlib.crc32(header), zlib.crc32(mine), mine.nbytes
    for ok, expected, headers, crcs, lengths in part.gather(sums).transpose(1, 2, 0).tolist():
        whole, _ = functools.reduce(_join, zip(crcs, lengths, strict=True), (headers[0], 0))
        if not all(ok) or set(expected) != {whole} or set(headers) != {headers[0]}:
            return {}
    return {key: images for key, (images, _, _) in found.items()}


def _find(path, name):
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
    if length + math.prod(shape) != entry.file_size:
        raise ValueError
    file = open(path, "rb")  # noqa: SIM115, it stays open, so that another may come in its place
    return Stored(file, start + length, shape), header, entry.CRC


def _join(first, second):
    """(CRC-32, length) of bytes from those of their first and second part."""
    (crc, n), (other, length) = first, second
    moved = crc ^ 0xFFFFFFFF  # but for the bits that zlib flips before and after, CRC-32 is linear
    for start in range(0, length, len(_ZEROS)):
        moved = zlib.crc32(_ZEROS[: length - start], moved)
    return moved ^ 0xFFFFFFFF ^ other, n + length


_ZEROS = memoryview(bytes(2**20))
