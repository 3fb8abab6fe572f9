"""Image files in folders: which files a data set has, in which order, and the class of each."""

import dataclasses
import os
import stat
from pathlib import Path

import numpy as np

from wcjax.data.encoded import Encoded
from wcjax.errors import InputError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
MAX_BYTES = 2**28  # of an image file; the largest that wcjax.data.decode takes has as many as BMP
TINY_IMAGENET = "tiny-imagenet-200"


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """The image files of a split, as a `wcjax.data.encoded.Source`.

    Attributes:
      root: the folder that names are relative to.
      names: (n,) bytes. An array, because a list of the 1.3 million names of ImageNet takes four times the memory.
      labels: int32 (n,), 0..num_classes-1.
    """

    root: str
    names: np.ndarray
    labels: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def __getitem__(self, index: int) -> Encoded:
        path = self.path(index)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:  # a pipe would never end
                raise InputError(f"{path}: not a file of at most {MAX_BYTES:,} bytes. Restore it, or remove it.")
            with open(path, "rb") as file:
                return Encoded(path, file.read(), int(self.labels[index]))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}). Restore the file, or start anew.") from error


def class_per_folder(root):
    """Returns (train, val, num_classes) of `root/train/<class>/<image>` and `root/val/<class>/<image>`.

    Classes are numbered in the sorted order of their folders' names, images follow in the sorted order of theirs.
    Files without one of EXTENSIONS are passed over.

    Raises:
      InputError: a folder is missing or holds no image, or train and val have different classes.
    """
    root = Path(root)
    classes = {split: _folders(root / split) for split in ("train", "val")}
    if not classes["train"]:
        raise InputError(f"{root / 'train'} holds no folders; one for each class is needed, with its images.")
    if classes["train"] != classes["val"]:
        differing = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise InputError(
            f"{root}: train has {len(classes['train'])} class folders and val {len(classes['val'])}; they must be the "
            f"same, but {', '.join(differing[:5])}{' and others' if len(differing) > 5 else ''} "
            f"{'is' if len(differing) == 1 else 'are'} in one only. Sort the images of val into the folders of train."
        )
    train, val = (
        _files(root, [(f"{split}/{name}", label) for label, name in enumerate(classes[split])])
        for split in ("train", "val")
    )
    return train, val, len(classes["train"])


def tiny_imagenet(root):
    """Returns (train, val, num_classes) of TinyImageNet as it is distributed; val is the official validation split.

    root: `tiny-imagenet-200`, or the folder it lies in. It holds `wnids.txt`, whose line k (from 0) is class k,
    `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt` (file, wnid and box on each line).

    Raises:
      InputError: one of these is missing, empty, or names a class or a file that does not exist.
    """
    root = Path(root)
    root = root / TINY_IMAGENET if (root / TINY_IMAGENET).is_dir() else root
    classes = {wnid: label for label, wnid in enumerate(_lines(root / "wnids.txt"))}
    if outside := [wnid for wnid in classes if not wnid.isalnum()]:
        raise InputError(f"{root / 'wnids.txt'}: {outside[0]!r} is no class like n01443537. Unpack the archive again.")
    train = _files(root, [(f"train/{wnid}/images", label) for wnid, label in classes.items()])

    annotations = root / "val" / "val_annotations.txt"
    present = {entry.name for entry in _scan(root / "val" / "images")}
    names, labels = [], []
    for number, line in enumerate(_lines(annotations), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in classes or name not in present:
            wrong = f"class {wnid!r}, which wnids.txt lacks" if wnid not in classes else f"{name}, which is not there"
            raise InputError(f"{annotations}, line {number}: names {wrong}. Unpack the archive again.")
        names.append(f"val/images/{name}")
        labels.append(classes[wnid])
    return train, _split(root, names, labels), len(classes)


def _files(root, folders):
    """Files of [(folder relative to root, label)]."""
    names, labels = [], []
    for folder, label in folders:
        found = sorted(entry.name for entry in _scan(root / folder) if entry.name.lower().endswith(EXTENSIONS))
        if not found:
            raise InputError(f"{root / folder} holds no images; allowed are {', '.join(EXTENSIONS)}. Restore them.")
        names += [f"{folder}/{name}" for name in found]
        labels += [label] * len(found)
    return _split(root, names, labels)


def _split(root, names, labels):
    return Files(str(root), np.array([os.fsencode(name) for name in names]), np.array(labels, np.int32))


def _folders(directory):
    return sorted(entry.name for entry in _scan(directory) if entry.is_dir() and not entry.name.startswith("."))


def _scan(directory):
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{directory}: no such folder can be read ({error.strerror}). Is data_dir right?") from error


def _lines(path):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no such text can be read ({error}). Is data_dir right?") from error
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty. Unpack the archive again.")
    return lines
