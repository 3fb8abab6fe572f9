"""Folders of images: the files of a data set, their order and classes, and one clear line for everything else."""

import logging
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.data import pictures
from wcjax import data
from wcjax.data.formats import folder
from wcjax.errors import InputError


@pytest.fixture
def root(tmp_path):
    return pictures.class_folders(tmp_path / "set")


def names(source):
    return [os.path.relpath(source[i].name, source.root) for i in range(source.num_images)]


def test_class_folders_are_read_in_sorted_order(root):
    dataset = data.load("imagenet", root)
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        paths = sorted((root / split).rglob("*.JPEG"))
        expected = [(str(path), path.read_bytes(), int(path.parts[-2][1:])) for path in paths]
        assert [source[i] for i in range(source.num_images)] == expected
    assert (dataset.train.num_images, dataset.val.num_images, dataset.num_classes) == (42, 15, 3)
    assert dataset.streamed and dataset.test is dataset.val


STRAY = ("train/lost+found/1.JPEG", "train/.ipynb_checkpoints/1.JPEG", "train/n00000000/.ipynb_checkpoints/1.JPEG")
STRAY += ("train/n00000000/._train_0.JPEG", "val/n00000002/Thumbs.db")
UNREAD = ("val/lost.png", *(f"train/n00000001/{name}" for name in ("more/still/2.jpg", "notes.gif", "no_extension")))


def test_other_files_are_skipped_and_counted_by_kind(root, caplog):
    expected = names(data.load("imagenet", root).train)
    for name in STRAY + UNREAD:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("not an image")
    with caplog.at_level("INFO"):
        dataset = data.load("imagenet", root)
    assert names(dataset.train) == expected and dataset.num_classes == 3
    lines = {record.getMessage().partition(", for example ")[0]: record.levelno for record in caplog.records}
    assert lines == {
        f"{root}: skipping 5 files that systems and programs leave": logging.INFO,
        f"{root}: skipping 1 file outside the class folders": logging.WARNING,
        f"{root}: skipping 1 file in subfolders of a class": logging.WARNING,
        f"{root}: skipping 1 file with the extension .gif": logging.WARNING,
        f"{root}: skipping 1 file with the extension (none)": logging.WARNING,
    }


def test_files_that_cannot_be_read_are_named(root):
    source = data.load("imagenet", root).train
    lost, device, large = paths = [Path(source[i].name) for i in range(3)]
    for path in paths:
        path.unlink()
    device.symlink_to("/dev/null")
    with large.open("wb") as file:
        file.truncate(folder.MAX_BYTES + 1)
    missing, refused = "cannot be read (No such file or directory). Restore", "not a file of at most 268,435,456 bytes."
    for i, message in enumerate((missing, refused, refused)):
        with pytest.raises(InputError, match="^" + re.escape(f"{paths[i]}: {message}")):
            source[i]
    with pytest.raises(InputError, match=re.escape(f"{lost}: {missing}")):
        source.fingerprint()


def sort_val(root, inner="", count=4):
    """Moves the first images of val into class folders, as the scripts of many tutorials do."""
    for line in (root / ANNOTATIONS).read_text().splitlines()[:count]:
        name, wnid = line.split("\t")[:2]
        (root / "val" / wnid / inner).mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(root / "val" / wnid / inner / name)


def tidy(root):
    sort_val(root)
    (root / "val" / "images").rmdir()
    (root / ANNOTATIONS).unlink()


LAYOUTS = {"as distributed": lambda root: None, "sorted": tidy, "as in train": lambda root: sort_val(root, "images")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiny_imagenet_is_the_same_set_in_three_layouts(tmp_path, layout):
    root = pictures.tiny_imagenet(tmp_path)
    fingerprint = data.load("tiny_imagenet", tmp_path).fingerprint()
    LAYOUTS[layout](root)
    dataset = data.load("tiny_imagenet", root)
    paths = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in ("n07", "n03") for i in range(3)]
    assert (names(dataset.train), dataset.train.labels.tolist()) == (paths, [0, 0, 0, 1, 1, 1]), "lines of wnids.txt"
    assert [os.path.basename(name) for name in names(dataset.val)] == [f"val_{i}.JPEG" for i in range(4)]
    assert (dataset.val.labels.tolist(), dataset.num_classes) == ([0, 1, 0, 0], 2)
    assert dataset.fingerprint() == fingerprint


ANNOTATIONS, WNIDS = "val/val_annotations.txt", "wnids.txt"
MISSING = r"cannot be read \(No such file or directory\)\. Check data_dir\."


def remove(path):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def write(path, content):
    return lambda root: (root / path).write_bytes(content)


def rename_images(root):
    for path in (root / "train" / "n00000002").iterdir():
        path.rename(path.with_suffix(".txt"))


WRONG = [
    ("imagenet", remove("train"), r"contains neither train/ nor imagenet2012/<version>/dataset_info\.json\. Pass"),
    ("imagenet", remove("val"), rf"/val: {MISSING}"),
    ("imagenet", remove("val/n00000001"), r"train has 3 class folders and val 2; .* n00000001 is only in one\. Sort"),
    ("imagenet", rename_images, r"train/n00000002 contains no images; allowed are \.jpeg"),
    ("tiny_imagenet", remove(WNIDS), r"does not contain wnids\.txt\. Unpack tiny-imagenet-200\.zip"),
    ("tiny_imagenet", write(WNIDS, b"\n"), r"wnids\.txt is empty"),
    ("tiny_imagenet", write(WNIDS, b"n07\n../n03\n"), r"wnids\.txt: '\.\./n03' is not a class like n01443537"),
    ("tiny_imagenet", write(WNIDS, b"n07\nn07\nn03\n"), r"wnids\.txt: n07 is there more than once"),
    ("tiny_imagenet", write(WNIDS, b"n07\n"), r"wnids\.txt: lacks n03, a folder of train\. Unpack"),
    ("tiny_imagenet", write(WNIDS, b"\xff"), r"wnids\.txt: is not UTF-8 text"),
    ("tiny_imagenet", remove(ANNOTATIONS), rf"val_annotations\.txt: {MISSING}"),
    ("tiny_imagenet", remove("val/images/val_2.JPEG"), r", line 3: names val_2\.JPEG, which does not exist"),
    ("tiny_imagenet", write(ANNOTATIONS, b"val_0.JPEG\n"), r", line 1: names class '', which wnids\.txt lacks"),
    ("tiny_imagenet", write(ANNOTATIONS, b"val_0.JPEG\tn07\n"), r"has no line for val_1\.JPEG\."),
    ("tiny_imagenet", write(ANNOTATIONS, b"val_0.JPEG\tn07\n" * 2), r", line 2: names val_0\.JPEG for the second time"),
    ("tiny_imagenet", lambda root: sort_val(root, count=1), r"3, the first val/images/val_1\.JPEG, are not\. Sort"),
]


@pytest.mark.parametrize("name, damage, message", WRONG)
def test_a_missing_or_damaged_part_of_a_folder_is_named(tmp_path, name, damage, message):
    root = (pictures.class_folders if name == "imagenet" else pictures.tiny_imagenet)(tmp_path)
    damage(root)
    with pytest.raises(InputError, match=message):
        data.load(name, root)
