"""Image files in folders: which files a data set has, in which order, and the class of each."""

import collections
import dataclasses
import logging
import os
import stat
from pathlib import Path

import numpy as np

from wcjax.data.encoded import Encoded
from wcjax.data.splits import checksum
from wcjax.errors import InputError, permitted

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
MAX_BYTES = 2**28  # of an image file; the largest that wcjax.data.decode takes has as many as BMP
MAX_SIZES = 2**17  # files of a split whose sizes are compared: all but those of ImageNet's training images
TINY_IMAGENET = "tiny-imagenet-200"
# Left by systems and programs, like every name that begins with a dot.
STRAY = ("Thumbs.db", "desktop.ini", "__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_STRAY = "that systems and programs leave"


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
        return Encoded(path, read(path), int(self.labels[index]))

    def fingerprint(self) -> dict:
        """Over the names of the files, without their folders, the sizes of at most MAX_SIZES, and all labels."""
        content = [_basename(name) for name in self.names]
        for i in range(0, self.num_images, -(-self.num_images // MAX_SIZES)):
            content.append(b"%d" % _status(self.path(i)).st_size)
        labels = checksum(self.labels.astype("<i4"))
        return {"images": self.num_images, "labels": labels, "content": checksum(b"\0".join(content))}


def _basename(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name belongs to no data set: ._1.JPEG, .DS_Store, Thumbs.db and others."""
    return name.startswith(".") or name in STRAY


def read(path) -> bytes:
    """The bytes of an image file. Raises InputError where it cannot be read, or is not a file of MAX_BYTES or fewer."""
    status = _status(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:  # a pipe would never end
        raise InputError(f"{path}: not a file of at most {MAX_BYTES:,} bytes. Restore it, or remove it.")
    try:
        with permitted(path), open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def _status(path):
    try:
        with permitted(path):
            return os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return InputError(f"{path}: cannot be read ({error.strerror}). Restore the file, or start anew.")


def class_per_folder(root):
    """Returns (train, val, num_classes) of `root/train/<class>/<image>` and `root/val/<class>/<image>`.

    Classes are numbered in the sorted order of their folders' names, images follow in the sorted order of theirs.
    Everything else is passed over and reported in the log: stray files (`is_stray`), images in subfolders of a class or
    outside the class folders, and files without one of EXTENSIONS.

    Raises:
      InputError: a folder is missing or holds no image, or train and val have different classes.
    """
    root, others = Path(root), collections.defaultdict(list)
    classes = {split: _folders(root / split, others) for split in ("train", "val")}
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
        _files(root, [(f"{split}/{name}", label) for label, name in enumerate(classes[split])], others)
        for split in ("train", "val")
    )
    _report(root, others)
    return train, val, len(classes["train"])


def tiny_imagenet(root):
    """Returns (train, val, num_classes) of TinyImageNet; val is the official validation split, in order of its names.

    root: `tiny-imagenet-200`, or the folder it lies in. It holds `wnids.txt`, whose line k (from 0) is class k,
    `train/<wnid>/images/*.JPEG`, and the images of val in one of two layouts: as distributed, `val/images/*.JPEG` with
    `val/val_annotations.txt` (file, wnid and box on each line), or sorted into classes, `val/<wnid>/*.JPEG` or
    `val/<wnid>/images/*.JPEG`.

    Raises:
      InputError: one of these is missing or empty, a class is listed twice or not at all, or an image of val is not
        annotated exactly once, with one of the classes.
    """
    root, others = Path(root), collections.defaultdict(list)
    root = root / TINY_IMAGENET if (root / TINY_IMAGENET).is_dir() else root
    wnids = _lines(root / "wnids.txt")
    if outside := [wnid for wnid in wnids if not wnid.isalnum()]:
        raise InputError(f"{root / 'wnids.txt'}: {outside[0]!r} is no class like n01443537. Unpack the archive again.")
    classes = {wnid: label for label, wnid in enumerate(wnids)}
    if twice := [wnid for line, wnid in enumerate(wnids) if classes[wnid] != line]:
        raise InputError(f"{root / 'wnids.txt'}: {twice[0]} is there more than once. Unpack the archive again.")
    if unlisted := sorted(set(_folders(root / "train", others)) - set(classes)):
        raise InputError(f"{root / 'wnids.txt'}: lacks {unlisted[0]}, a folder of train. Unpack the archive again.")
    train = _files(root, [(f"train/{wnid}/images", label) for wnid, label in classes.items()], others)

    has_folders = set(_folders(root / "val", others)) & set(classes)
    val = (_sorted_val if has_folders else _annotated_val)(root, classes, others)
    _report(root, others)
    return train, val, len(classes)


def _sorted_val(root, classes, others):
    """Files of val/<wnid>/*.JPEG or val/<wnid>/images/*.JPEG, in order of their names."""
    if (root / "val" / "images").is_dir() and (left := _images(root, "val/images", others)):
        raise InputError(
            f"{root / 'val'}: some images are in folders of their classes, and {len(left)}, the first {left[0]}, are "
            "not. Sort these too, or unpack the archive again."
        )
    folders = [(f"val/{wnid}", label) for wnid, label in classes.items()]
    folders = [(f"{at}/images" if (root / at / "images").is_dir() else at, label) for at, label in folders]
    val = _files(root, folders, others)
    order = sorted(range(val.num_images), key=lambda i: _basename(val.names[i]))
    return Files(val.root, val.names[order], val.labels[order])


def _annotated_val(root, classes, others):
    """Files of val/images/*.JPEG with the classes of val/val_annotations.txt, in order of their names."""
    path, labels = root / "val" / "val_annotations.txt", {}
    images = [name.rpartition("/")[2] for name in _images(root, "val/images", others)]
    present = set(images)
    for number, line in enumerate(_lines(path), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in classes:
            wrong = f"class {wnid!r}, which wnids.txt lacks"
        elif name not in present:
            wrong = f"{name}, which is not there"
        elif name in labels:
            wrong = f"{name} for the second time"
        else:
            labels[name] = classes[wnid]
            continue
        raise InputError(f"{path}, line {number}: names {wrong}. Unpack the archive again.")
    if missing := [name for name in images if name not in labels]:
        raise InputError(f"{path}: has no line for {missing[0]}. Unpack the archive again.")
    return _split(root, [f"val/images/{name}" for name in images], [labels[name] for name in images])


def _files(root, folders, others):
    """Files of [(folder relative to root, label)]; adds to others, see `_images`."""
    names, labels = [], []
    for folder, label in folders:
        found = _images(root, folder, others)
        if not found:
            _report(root, others)
            raise InputError(f"{root / folder} holds no images; allowed are {', '.join(EXTENSIONS)}. Restore them.")
        names += found
        labels += [label] * len(found)
    return _split(root, names, labels)


def _images(root, folder, others):
    """The images of a folder, as sorted names relative to root; adds all else to others, {what it is: names}."""
    images = []
    for entry in _scan(root / folder):
        name = f"{folder}/{entry.name}"
        if is_stray(entry.name):
            others[_STRAY].append(name)
        elif entry.is_dir():
            others["in subfolders of a class"] += _below(root, name)
        elif not entry.name.lower().endswith(EXTENSIONS):
            others[f"with the extension {os.path.splitext(name)[1].lower() or '(none)'}"].append(name)
        else:
            images.append(name)
    return images


def _below(root, folder):
    """All images below a folder, as names relative to root."""
    found = [os.path.join(at, name) for at, _, names in os.walk(root / folder) for name in names if not is_stray(name)]
    return [os.path.relpath(path, root) for path in found if path.lower().endswith(EXTENSIONS)]


def _report(root, others):
    for what, names in others.items():
        if names:
            level = logging.INFO if what == _STRAY else logging.WARNING
            count = "1 file" if len(names) == 1 else f"{len(names):,} files"
            logger.log(level, "%s: skipping %s %s, for example %s.", root, count, what, names[0])


def _split(root, names, labels):
    return Files(str(root), np.array([os.fsencode(name) for name in names]), np.array(labels, np.int32))


def _folders(directory, others):
    """The names of the class folders in a directory, sorted; adds files to others as `_images` does."""
    folders = []
    for entry in _scan(directory):
        if is_stray(entry.name):
            others[_STRAY].append(f"{directory.name}/{entry.name}")
        elif entry.is_dir():
            folders.append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
            others["outside the class folders"].append(f"{directory.name}/{entry.name}")
    return folders


def _scan(directory):
    try:
        with permitted(directory), os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{directory}: no such folder can be read ({error.strerror}). Is data_dir right?") from error


def _lines(path):
    try:
        with permitted(path):
            lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no such text can be read ({error}). Is data_dir right?") from error
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty. Unpack the archive again.")
    return lines
