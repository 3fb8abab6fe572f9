"""TinyImageNet from its unpacked folder; it is streamed, and evaluated on its official validation split."""

import collections

from wcjax.data import imagenet
from wcjax.data.formats import folder
from wcjax.errors import InputError
from wcjax.files import permitted

FOLDER = "tiny-imagenet-200"


def read(name, data_dir):
    """Returns (train, val, num_classes) of TinyImageNet; the images of val are in the order of their names.

    data_dir: `tiny-imagenet-200`, or the folder that contains it. It holds `wnids.txt`, whose line k (from 0) is class
    k, `train/<wnid>/images/*.JPEG`, and the images of val in one of two layouts: as distributed, `val/images/*.JPEG`
    with `val/val_annotations.txt` (file, wnid and box on each line), or sorted into classes, `val/<wnid>/*.JPEG` or
    `val/<wnid>/images/*.JPEG`.

    Raises:
      InputError: one of these is missing or empty, a class is listed twice or not at all, or an image of val is not
        annotated exactly once, with one of the classes.
    """
    path = imagenet.check_directory(name, data_dir, _how_to_get)
    roots = [root for root in (path / FOLDER, path) if (root / "wnids.txt").is_file()]
    if not roots:
        raise InputError(f"{name}: {path} does not hold wnids.txt. {_how_to_get(path)}")
    root, skipped = roots[0], collections.defaultdict(list)
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
    if invalid := [wnid for wnid in wnids if not wnid.isalnum()]:
        raise InputError(f"{path}: {invalid[0]!r} is no class like n01443537. Unpack the archive again.")
    classes = {wnid: label for label, wnid in enumerate(wnids)}
    if repeated := [wnid for line, wnid in enumerate(wnids) if classes[wnid] != line]:
        raise InputError(f"{path}: {repeated[0]} is there more than once. Unpack the archive again.")
    return classes


def _sorted_val(root, classes, skipped):
    """Files of val/<wnid>/*.JPEG or val/<wnid>/images/*.JPEG, in the order of their names."""
    if (root / "val" / "images").is_dir() and (unsorted := folder.list_images(root, "val/images", skipped)):
        raise InputError(
            f"{root / 'val'}: some images are in folders of their classes, and {len(unsorted)}, the first "
            f"{unsorted[0]}, are not. Sort these too, or unpack the archive again."
        )
    folders = [(f"val/{wnid}", label) for wnid, label in classes.items()]
    folders = [(f"{at}/images" if (root / at / "images").is_dir() else at, label) for at, label in folders]
    val = folder.read_split(root, folders, skipped)
    order = sorted(range(val.num_images), key=lambda i: folder.file_name(val.names[i]))
    return folder.Files(val.root, val.names[order], val.labels[order])


def _annotated_val(root, classes, skipped):
    """Files of val/images/*.JPEG with the classes of val/val_annotations.txt, in the order of their names."""
    path, labels = root / "val" / "val_annotations.txt", {}
    images = [name.rpartition("/")[2] for name in folder.list_images(root, "val/images", skipped)]
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
    return folder.make_files(root, [f"val/images/{name}" for name in images], [labels[name] for name in images])


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


def _how_to_get(directory):
    return (
        "Unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) and pass as data_dir the "
        f"folder {FOLDER}, or the one that contains it."
    )
