"""The interface of streamed splits: encoded images, which are read one by one when they are needed."""

import dataclasses
from typing import NamedTuple, Protocol


class Encoded(NamedTuple):
    """An image as it is stored.

    Attributes:
      name: the file or record, for errors.
      content: the bytes of a JPEG, PNG or other image file.
      label: class, 0..num_classes-1.
    """

    name: str
    content: bytes
    label: int


class Source(Protocol):
    """A split of a streamed data set. It is sent to worker processes, so its pickle is small."""

    num_images: int

    def __len__(self) -> int:
        """num_images, for Grain."""

    def __getitem__(self, index: int) -> Encoded:
        """Reads one image. Raises InputError, which names the image, if it cannot be read."""

    def fingerprint(self) -> dict:
        """{'images': number, 'labels': checksum, 'content': checksum}, computed without decoding an image."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """num_images evenly spaced images of a source. The result has no fingerprint, so it serves for reading only."""

    source: Source
    num_images: int

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Encoded:
        return self.source[index * len(self.source) // self.num_images]
