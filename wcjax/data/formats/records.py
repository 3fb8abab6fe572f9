"""imagenet2012 as prepared by tensorflow_datasets in array_record. Images stay encoded until they are needed."""

import bisect
import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np

from wcjax.data.dataset import checksum
from wcjax.data.formats import tfds
from wcjax.data.streaming.source import Encoded
from wcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Records:
    """A split of a prepared directory `<data_dir>/<name>/<version>`, as a `wcjax.data.streaming.source.Source`.

    A pickle has the two fields alone, so that each process opens the files itself. One thread at a time may read.
    """

    directory: str
    split: str

    @functools.cached_property
    def _source(self):
        with tfds.open_builder(Path(self.directory)) as builder:
            source = tfds.encoded_records(builder, self.split)
            source[0]  # so that a damaged directory is reported at once
            return source

    @functools.cached_property
    def _ends(self):
        """For each file, the index after its last record."""
        with tfds.open_builder(Path(self.directory)) as builder:
            return list(itertools.accumulate(builder.info.splits[self.split].shard_lengths))

    @functools.cached_property
    def _max_open(self):
        return tfds.increase_open_file_limit(Path(self.directory))

    @functools.cached_property
    def _open(self):
        """The numbers of the open files."""
        return set()

    def _record(self, index):
        number = bisect.bisect_right(self._ends, index)
        if number not in self._open and len(self._open) >= self._max_open:
            self._source.data_source.__exit__(None, None, None)  # closes all files; reading opens them again
            self._open.clear()
        self._open.add(number)
        return self._source[index]

    @property
    def num_images(self) -> int:
        return len(self._source)

    @functools.cached_property
    def num_classes(self) -> int:
        with tfds.open_builder(Path(self.directory)) as builder:
            return builder.info.features["label"].num_classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Encoded:
        try:
            record = self._record(index)
        except InputError:
            raise
        except Exception as error:  # array_record raises many types, see wcjax.data.formats.tfds
            raise tfds.damage_error(Path(self.directory), error) from error
        name, label = record["file_name"], int(record["label"])
        name = name.decode(errors="backslashreplace") if isinstance(name, bytes) else name
        name = f"{self.directory}, {self.split}, {name}"
        if not 0 <= label < self.num_classes:
            raise InputError(f"{name}: class {label}; allowed are 0..{self.num_classes - 1}.")
        return Encoded(name, record["image"], label)

    def fingerprint(self) -> dict:
        """Covers the names and sizes of the files, and the labels of 64 records."""
        files = sorted(Path(self.directory).glob(f"*-{self.split}.array_record*"))
        sample = np.linspace(0, self.num_images - 1, min(64, self.num_images), dtype=int)
        labels = np.array([self[i].label for i in sample], "<i4")
        content = "".join(f"{file.name}\0{file.stat().st_size}\n" for file in files)
        return {"images": self.num_images, "labels": checksum(labels), "content": checksum(content.encode())}

    def __getstate__(self):
        return {"directory": self.directory, "split": self.split}
