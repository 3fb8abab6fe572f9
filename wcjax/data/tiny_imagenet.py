"""TinyImageNet from its unpacked folder. It is streamed, and evaluated on its official validation split."""

import collections

from wcjax.data.formats import folder
from wcjax.errors import InputError
from wcjax.system.files import reading

FOLDER = "tiny-imagenet-200"


def read(name, data_dir):
    """(train, val, num_classes) of TinyImageNet, with the images of val in the order of their names.

    data_dir: `tiny-imagenet-200`, or the folder that contains it. It has `wnids.txt`, whose line k (from 0) is class
    k, `train/<wnid>/images/*.JPEG`, and the images of val in one of two layouts: as distributed, `val/images/*.JPEG`
    with `val/val_annotations.txt` (file, wnid and box on each line), or sorted into classes, `val/<wnid>/*.JPEG` or
    `val/<wnid>/images/*.JPEG`.

    Raises:
      InputError: one of these is missing or empty, a class is listed twice or not at all, or an image of val is not
        annotated exactly once, with one of the classes.
    """
    path = folder.streamed_directory(name, data_dir, _how_to_get)
    root = next((root for root in (path / FOLDER, path) if (root / "wnids.txt").is_file()), None)
    if root is None:
        raise InputError(f"{name}: {path} does not contain wnids.txt. {_how_to_get(path)}")
    skipped = collections.defaultdict(list)
    classes = _read_classes(root / "wnids.txt")
    if unlisted := sorted(set(folder.list_folders(root / "train", skipped)) - set(classes)):
        raise InputError(f"{root / 'wnids.txt'}: lacks {unlisted[0]}, a folder of train. Unpack the archive again.")
    train = folder.read_split(root, [(f"train/{wnid}/images", label) for wnid, label in classes.items()], skipped)

    is_sorted = set(folder.list_folders(root / "val", skipped)) & set(classes)
    val = (_sorted_val if is_sorted else _annotated_val)(root, classes, skipped)
    folder.report_skipped(root, skipped)
    return train, val, len(classes)


def _read_classes(path):
    """{wnid: label} of wnids.txt."""
    wnids = _lines(path)
    classes = {wnid: label for label, wnid in enumerate(wnids)}
    for line, wnid in enumerate(wnids):
        if not wnid.isalnum():
            raise InputError(f"{path}: {wnid!r} is not a class like n01443537. Unpack the archive again.")
        if classes[wnid] != line:
            raise InputError(f"{path}: {wnid} is there more than once. Unpack the archive again.")
    return classes


def _sorted_val(root, classes, skipped):
    """The Files of val/<wnid>/*.JPEG or val/<wnid>/images/*.JPEG, in the order of their names."""
    if (root / "val" / "images").is_dir() and (unsorted := folder.list_images(root, "val/images", skipped)):
        raise InputError(
            f"{root / 'val'}: some images are in folders of their classes, and {len(unsorted)}, the first "
            f"{unsorted[0]}, are not. Sort these too, or unpack the archive again."
        )
    folders = [(f"val/{wnid}", label) for wnid, label in classes.items()]
    folders = [(f"{name}/images" if (root / name / "images").is_dir() else name, label) for name, label in folders]
    val = folder.read_split(root, folders, skipped)
    order = sorted(range(val.num_images), key=lambda i: folder.file_name(val.names[i]))
    return folder.Files(val.root, val.names[order], val.labels[order])


def _annotated_val(root, classes, skipped):
    """The Files of val/images/*.JPEG with the classes of val/val_annotations.txt, in the order of their names."""
    path, labels = root / "val" / "val_annotations.txt", {}
    names = [name.rpartition("/")[2] for name in folder.list_images(root, "val/images", skipped)]
    existing = set(names)
    for number, line in enumerate(_lines(path), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in classes:
            problem = f"class {wnid!r}, which wnids.txt lacks"
        elif name not in existing:
            problem = f"{name}, which does not exist"
        elif name in labels:
            problem = f"{name} for the second time"
        else:
            labels[name] = classes[wnid]
            continue
        raise InputError(f"{path}, line {number}: names {problem}. Unpack the archive again.")
    if missing := [name for name in names if name not in labels]:
        raise InputError(f"{path}: has no line for {missing[0]}. Unpack the archive again.")
    return folder.make_files(root, [f"val/images/{name}" for name in names], [labels[name] for name in names])


def _lines(path):
    """The lines of a text file that are not blank. Raises InputError if there are none."""
    try:
        with reading(path, folder.DATA_DIR_HINT):
            lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error}). Unpack the archive again.") from error
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty. Unpack the archive again.")
    return lines


def _how_to_get(directory):
    return (
        "Unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) and pass as data_dir the "
        f"folder {FOLDER}, or the folder that contains it."
    )
