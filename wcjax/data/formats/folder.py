"""Image files in folders: the files of a data set, their order, and the class of each."""

import collections
import dataclasses
import logging
import os
import stat
from pathlib import Path

import numpy as np

from wcjax.data.dataset import checksum
from wcjax.data.streaming.source import Encoded
from wcjax.errors import InputError
from wcjax.extras import needs
from wcjax.system.files import reading
from wcjax.system.paths import local_path

log = logging.getLogger(__name__)

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
MAX_BYTES = 2**28  # in an image file: as many as the largest BMP that `wcjax.data.streaming.decode` accepts
MAX_SIZES = 2**17  # files of a split whose sizes are compared; only ImageNet's training split has more files
# Files and folders that systems and programs leave, like every name that begins with a dot.
STRAY = ("Thumbs.db", "desktop.ini", "__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_STRAY_REASON = "that systems and programs leave"  # the keys of `skipped` complete 'skipping n files ...'
DATA_DIR_HINT, RESTORE_HINT = "Check data_dir.", "Restore the file, or start a new run."


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """The image files of a split, as a `wcjax.data.streaming.source.Source`.

    Attributes:
      root: the folder that names are relative to.
      names: (n,) bytes. A list of the 1.3 million names of ImageNet would take four times the memory of an array.
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
        """Covers the names of all files without their folders, the sizes of at most MAX_SIZES, and all labels."""
        content = [file_name(name) for name in self.names]
        for i in range(0, self.num_images, -(-self.num_images // MAX_SIZES)):
            with reading(self.path(i), RESTORE_HINT):
                content.append(b"%d" % os.stat(self.path(i)).st_size)
        labels = checksum(self.labels.astype("<i4"))
        return {"images": self.num_images, "labels": labels, "content": checksum(b"\0".join(content))}


def file_name(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name belongs to no data set, for example ._1.JPEG, .DS_Store and Thumbs.db."""
    return name.startswith(".") or name in STRAY


def read(path) -> bytes:
    """The bytes of an image file. Raises InputError if it cannot be read, is not regular, or exceeds MAX_BYTES."""
    with reading(path, RESTORE_HINT):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:  # reading a pipe would never end
            raise InputError(f"{path}: not a file of at most {MAX_BYTES:,} bytes. Restore it, or remove it.")
        with open(path, "rb") as file:
            return file.read()


def streamed_directory(name, data_dir, how_to_get) -> Path:
    """The directory of a streamed data set.

    how_to_get: directory -> the sentences that say how to get the data set.

    Raises:
      InputError: the directory does not exist or is a file, or a package that streaming needs is not installed.
    """
    needs(name, "stream")
    if not data_dir:
        raise InputError(f"{name} needs data_dir. {how_to_get('DIR')}")
    path = local_path(data_dir, "data_dir")
    if path.is_file():
        raise InputError(f"{name}: {path} is a file; data_dir must be a directory. {how_to_get('DIR')}")
    if not path.is_dir():
        raise InputError(f"{name}: there is no directory {path}. {how_to_get(path)}")
    return path


def read_class_folders(root):
    """(train, val, num_classes) of `root/train/<class>/<image>` and `root/val/<class>/<image>`.

    Classes are numbered in the sorted order of the names of their folders. The images of a class are sorted by name.
    All other files are skipped and reported in the log: stray files (`is_stray`), images in a subfolder of a class or
    outside the class folders, and files without one of EXTENSIONS.

    Raises:
      InputError: a folder is missing or contains no image, or train and val have different classes.
    """
    root, skipped = Path(root), collections.defaultdict(list)
    classes = {split: list_folders(root / split, skipped) for split in ("train", "val")}
    if not classes["train"]:
        raise InputError(f"{root / 'train'} contains no folders; one for each class is needed, with its images.")
    if classes["train"] != classes["val"]:
        difference = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise InputError(
            f"{root}: train has {len(classes['train'])} class folders and val {len(classes['val'])}; they must be the "
            f"same, but {', '.join(difference[:5])}{' and others' if len(difference) > 5 else ''} "
            f"{'is' if len(difference) == 1 else 'are'} only in one. Sort the images of val into the folders of train."
        )
    train, val = (
        read_split(root, [(f"{split}/{name}", label) for label, name in enumerate(classes[split])], skipped)
        for split in ("train", "val")
    )
    report_skipped(root, skipped)
    return train, val, len(classes["train"])


def list_folders(directory, skipped):
    """The sorted names of the class folders in a directory. Adds stray files and images to skipped, {reason: names}."""
    folders = []
    for entry in _scan(directory):
        if is_stray(entry.name):
            skipped[_STRAY_REASON].append(f"{directory.name}/{entry.name}")
        elif entry.is_dir():
            folders.append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
            skipped["outside the class folders"].append(f"{directory.name}/{entry.name}")
    return folders


def read_split(root, folders, skipped):
    """The Files in [(folder relative to root, label)]. Adds the other files to skipped."""
    names, labels = [], []
    for folder, label in folders:
        images = list_images(root, folder, skipped)
        if not images:
            report_skipped(root, skipped)
            raise InputError(f"{root / folder} contains no images; allowed are {', '.join(EXTENSIONS)}. Restore them.")
        names += images
        labels += [label] * len(images)
    return make_files(root, names, labels)


def list_images(root, folder, skipped):
    """The images in a folder, as sorted names relative to root. Adds the other files to skipped."""
    images = []
    for entry in _scan(root / folder):
        name = f"{folder}/{entry.name}"
        if is_stray(entry.name):
            skipped[_STRAY_REASON].append(name)
        elif entry.is_dir():
            skipped["in subfolders of a class"] += _images_below(root, name)
        elif not entry.name.lower().endswith(EXTENSIONS):
            skipped[f"with the extension {os.path.splitext(name)[1].lower() or '(none)'}"].append(name)
        else:
            images.append(name)
    return images


def _images_below(root, folder):
    """All images below a folder, as names relative to root."""
    return [
        os.path.relpath(os.path.join(directory, name), root)
        for directory, _, names in os.walk(root / folder)
        for name in names
        if not is_stray(name) and name.lower().endswith(EXTENSIONS)
    ]


def report_skipped(root, skipped):
    """Logs one line for each entry of skipped, {reason: names}."""
    for reason, names in skipped.items():
        if names:
            level = logging.INFO if reason == _STRAY_REASON else logging.WARNING
            count = "1 file" if len(names) == 1 else f"{len(names):,} files"
            log.log(level, "%s: skipping %s %s, for example %s.", root, count, reason, names[0])


def make_files(root, names, labels):
    return Files(str(root), np.array([os.fsencode(name) for name in names]), np.array(labels, np.int32))


def _scan(directory):
    with reading(directory, DATA_DIR_HINT), os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)
