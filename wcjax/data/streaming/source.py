"""What streamed data sets consist of: images that are still encoded, read one by one when they are needed."""

from typing import NamedTuple, Protocol


class Encoded(NamedTuple):
    """One image as it is stored.

    Attributes:
      name: the file or record, for errors.
      content: the bytes of a JPEG, PNG or other image file.
      label: class, 0..num_classes-1.
    """

    name: str
    content: bytes
    label: int


class Source(Protocol):
    """A split of a streamed data set. It is sent to worker processes, so it pickles small."""

    num_images: int

    def __len__(self) -> int:
        """num_images, for Grain."""

    def __getitem__(self, index: int) -> Encoded:
        """Reads one image. Raises InputError, with its name, where it cannot be read."""

    def fingerprint(self) -> dict:
        """{'images': their number, 'labels': a checksum, 'content': a checksum}, for which few bytes are read."""
