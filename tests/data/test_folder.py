"""Which files a data set has, in which order, and the class of each."""

import logging
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
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


def test_every_image_of_a_class_folder_is_read_with_its_class_in_sorted_order(root):
    (root / "train" / "n00000001" / ".DS_Store").write_text("not an image")
    dataset = data.load("imagenet", root)
    expected = sorted((root / "train").rglob("*.JPEG"))
    assert names(dataset.train) == [str(path.relative_to(root)) for path in expected]
    assert [dataset.train[i].content for i in range(len(expected))] == [path.read_bytes() for path in expected]
    assert [dataset.train[i].label for i in range(len(expected))] == [int(path.parts[-2][1:]) for path in expected]
    assert (dataset.train.num_images, dataset.val.num_images, dataset.num_classes) == (42, 15, 3)
    assert dataset.streamed
    assert dataset.test is dataset.val, "the official validation split is what the paper reports"


def test_what_systems_and_programs_leave_is_skipped_and_counted_in_one_line(root, caplog):
    expected = names(data.load("imagenet", root).train)
    for stray in ("train/._n0", "train/lost+found", "train/__MACOSX", "train/.ipynb_checkpoints", "val/@eaDir"):
        (root / stray).mkdir()
        (root / stray / "train_0.JPEG").write_text("not an image")
    for stray in ("train/n00000000/._train_0.JPEG", "train/n00000001/.DS_Store", "val/n00000002/Thumbs.db"):
        (root / stray).write_text("not an image")
    (root / "train" / "n00000000" / ".ipynb_checkpoints").mkdir()
    with caplog.at_level("INFO"):
        dataset = data.load("imagenet", root)
    assert names(dataset.train) == expected and dataset.num_classes == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(re.escape(f"{root}: skipping 9 files that systems and programs leave, for example "), line)


def test_images_that_are_not_read_are_counted_before_any_work(root, caplog):
    (root / "train" / "n00000001" / "more" / "still").mkdir(parents=True)
    for path in ("more/1.JPEG", "more/still/2.jpg", "more/notes.txt", "1.gif", "2.GIF", "no_extension"):
        (root / "train" / "n00000001" / path).write_text("")
    (root / "val" / "lost.png").write_text("")
    assert data.load("imagenet", root).train.num_images == 42
    folder = "train/n00000001"
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"{root}: skipping 1 file outside the class folders, for example val/lost.png.",
        f"{root}: skipping 1 file with the extension (none), for example {folder}/no_extension.",
        f"{root}: skipping 2 files in subfolders of a class, for example {folder}/more/1.JPEG.",
        f"{root}: skipping 2 files with the extension .gif, for example {folder}/1.gif.",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_fingerprint_of_files_changes_with_their_names_sizes_and_classes(root):
    whole = data.load("imagenet", root).fingerprint()
    assert data.load("imagenet", root).fingerprint() == whole
    assert (whole["classes"], whole["train"]["images"], whole["test"]["images"]) == (3, 42, 15)
    image, other = (root / "train" / "n00000001" / f"train_{i}.JPEG" for i in (1, 13))
    with image.open("ab") as file:
        file.write(b"x")
    grown = data.load("imagenet", root).fingerprint()
    assert grown["train"]["content"] != whole["train"]["content"] and grown["test"] == whole["test"]
    other.rename(root / "train" / "n00000002" / "train_14.JPEG")
    moved = data.load("imagenet", root).fingerprint()
    assert moved["train"]["labels"] != whole["train"]["labels"]
    image.unlink()
    assert data.load("imagenet", root).fingerprint()["train"]["images"] == 41


def test_a_link_to_nothing_is_named_before_any_work(root):
    link = root / "train" / "n00000001" / "link.JPEG"
    link.symlink_to("nowhere")
    with pytest.raises(InputError, match=re.escape(f"{link}: cannot be read (No such file or directory).")):
        data.load("imagenet", root).fingerprint()


def test_a_source_is_sent_to_workers_as_names_alone(root):
    source = data.load("imagenet", root).train
    content = pickle.dumps(source)
    assert len(content) < 42 * 40 + 2000
    assert pickle.loads(content)[5] == source[5]


def tiny_imagenet(root, wnids=("n07", "n03")):
    """The layout of TinyImageNet with two classes, whose order is not the sorted one."""
    pixels = pictures.encode(np.zeros((4, 4, 3), np.uint8))
    root = root / "tiny-imagenet-200"
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(3):
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(pixels)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "images").mkdir(parents=True)
    for i in range(4):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(pixels)
    lines = [f"val_{i}.JPEG\t{wnids[i // 3]}\t0\t0\t62\t62\n" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("inside", [True, False])
def test_tiny_imagenet_numbers_its_classes_by_the_lines_of_wnids(tmp_path, inside):
    root = tiny_imagenet(tmp_path)
    dataset = data.load("tiny_imagenet", root if inside else tmp_path)
    assert [Path(name).name for name in names(dataset.train)] == [
        *("n07_0.JPEG", "n07_1.JPEG", "n07_2.JPEG", "n03_0.JPEG", "n03_1.JPEG", "n03_2.JPEG")
    ]
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.val.labels, [0, 0, 0, 1])
    assert [Path(name).name for name in names(dataset.val)] == [f"val_{i}.JPEG" for i in range(4)]
    assert dataset.num_classes == 2


def lose(path):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def write(path, text):
    return lambda root: (root / path).write_text(text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lose("wnids.txt"), r"does not hold wnids\.txt\. Unpack tiny-imagenet-200\.zip"),
        (write("wnids.txt", "\n"), r"wnids\.txt is empty"),
        (write("wnids.txt", "n07\n../../n03\n"), r"wnids\.txt: '\.\./\.\./n03' is no class like n01443537"),
        (lose("train/n03"), r"train/n03/images: no such folder can be read"),
        (lose("val/val_annotations.txt"), r"val_annotations\.txt: no such text can be read"),
        (lose("val/images/val_2.JPEG"), r"val_annotations\.txt, line 3: names val_2\.JPEG, which is not there"),
        (write("val/val_annotations.txt", "val_0.JPEG\tn99\n"), r"line 1: names class 'n99', which wnids\.txt lacks"),
        (write("val/val_annotations.txt", "val_0.JPEG\n"), r"line 1: names class '', which wnids\.txt lacks"),
        (write("val/val_annotations.txt", "val_0.JPEG\tn07\n"), r"val_annotations\.txt: has no line for val_1\.JPEG\."),
        (
            write("val/val_annotations.txt", "".join(f"val_{i}.JPEG\tn07\n" for i in (0, 1, 2, 1, 3))),
            r"line 4: names val_1\.JPEG for the second time\.",
        ),
        (write("wnids.txt", "n07\nn07\nn03\n"), r"wnids\.txt: n07 is there more than once"),
        (write("wnids.txt", "n07\n"), r"wnids\.txt: lacks n03, a folder of train\. Unpack"),
        (write("val/images/val_4.JPEG", ""), r"val_annotations\.txt: has no line for val_4\.JPEG"),
    ],
)
def test_a_part_of_tiny_imagenet_that_is_missing_is_named(tmp_path, damage, message):
    damage(tiny_imagenet(tmp_path))
    with pytest.raises(InputError, match=message):
        data.load("tiny_imagenet", tmp_path)


def sort_val(root, inner, keep):
    """Moves the images of val into class folders, as the scripts of many tutorials do; the first `keep` stay."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines()[keep:]:
        name, wnid = line.split("\t")[:2]
        folder = root / "val" / wnid / inner
        folder.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(folder / name)


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("leave", [True, False])
def test_tiny_imagenet_with_val_sorted_into_classes_is_the_same_set(tmp_path, inner, leave):
    root = tiny_imagenet(tmp_path)
    for i in range(4):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(bytes(i))
    expected = data.load("tiny_imagenet", tmp_path)
    expected = expected.fingerprint(), [(expected.val[i].content, expected.val[i].label) for i in range(4)]
    sort_val(root, inner, keep=0)
    if not leave:
        (root / "val" / "images").rmdir()
        (root / "val" / "val_annotations.txt").unlink()
    found = data.load("tiny_imagenet", tmp_path)
    assert (found.fingerprint(), [(found.val[i].content, found.val[i].label) for i in range(4)]) == expected


def test_tiny_imagenet_with_val_half_sorted_is_refused(tmp_path):
    sort_val(tiny_imagenet(tmp_path), "", keep=3)
    message = r"val: some images are in folders of their classes, and 3, the first val/images/val_0\.JPEG, are not\. "
    with pytest.raises(InputError, match=message):
        data.load("tiny_imagenet", tmp_path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lose("train"), r"holds neither train/ nor imagenet2012/<version>/dataset_info\.json\. Pass as data_dir"),
        (lose("val"), r"set/val: no such folder can be read \(No such file or directory\)"),
        (lose("val/n00000001"), r"train has 3 class folders and val 2; .* n00000001 is in one only\. Sort the images"),
    ],
)
def test_a_part_of_the_class_folders_that_is_missing_is_named(root, damage, message):
    damage(root)
    with pytest.raises(InputError, match=message):
        data.load("imagenet", root)


def test_a_class_without_images_is_named_with_what_it_holds(root, caplog):
    for path in (root / "train" / "n00000002").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(InputError, match=r"train/n00000002 holds no images; allowed are \.jpeg"):
        data.load("imagenet", root)
    assert "skipping 14 files with the extension .txt" in caplog.text


def test_a_file_that_vanished_since_is_named(root):
    source = data.load("imagenet", root).train
    path = source.path(3)
    os.unlink(path)
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read (No such file or directory).")):
        source[3]


def test_a_pipe_and_a_huge_file_are_named_and_not_read(root):
    source = data.load("imagenet", root).train
    for index in (3, 4):
        os.unlink(source.path(index))
    os.mkfifo(source.path(3))
    with open(source.path(4), "wb") as file:
        file.truncate(folder.MAX_BYTES + 1)
    for index in (3, 4):
        with pytest.raises(
            InputError, match=re.escape(f"{source.path(index)}: not a file of at most 268,435,456 byte")
        ):
            source[index]


@pytest.mark.parametrize("name", ["imagenet", "tiny_imagenet"])
def test_without_data_the_error_says_how_to_get_it(name, tmp_path):
    with pytest.raises(InputError, match=f"^{name} needs data_dir. "):
        data.load(name)
    with pytest.raises(InputError, match=f"^{name}: there is no directory .*nowhere. "):
        data.load(name, tmp_path / "nowhere")


@pictures.needs_sample
def test_the_sample_of_tiny_imagenet_has_its_classes_and_images():
    train, val, num_classes = folder.tiny_imagenet(pictures.SAMPLE)
    counts = np.bincount(train.labels, minlength=num_classes)
    assert num_classes > 1
    assert (counts == counts[0]).all()
    assert np.bincount(val.labels).shape == (num_classes,)
    lines = (Path(train.root) / "wnids.txt").read_text().split()
    for i in (0, train.num_images // 2, train.num_images - 1):
        assert Path(train[i].name).name.startswith(lines[train[i].label])
