"""The command that finds every image in a folder that a run cannot use."""

import os

import numpy as np
import pytest

from tests.data import pictures
from tests.permissions import denied, mode
from wcjax.data import check
from wcjax.data.streaming import decode
from wcjax.errors import InputError


@pytest.fixture
def root(tmp_path):
    return pictures.class_folders(tmp_path / "set", num_train=3, num_val=2)


def test_a_good_folder_passes(root, capsys):
    (root / "train" / "n00000001" / ".DS_Store").write_text("")
    (root / "words.txt").write_text("")
    (root / "train" / "n00000001" / "again").symlink_to(root)  # following it would never end
    assert check.main([str(root)]) == 0
    assert capsys.readouterr().out == "good: 15, bad: 0, stray: 1, other: 1\n"


def test_every_bad_image_is_named_with_its_reason(root, capsys):
    folder, closed = root / "train" / "n00000001", root / "val" / "n00000002"
    (folder / "empty.JPEG").write_bytes(b"")
    (folder / os.fsdecode(b"caf\xe9.JPEG")).write_bytes(b"")
    (folder / "deep.png").write_bytes(pictures.deep_png())
    (folder / "moving.gif").write_bytes(pictures.encode(np.zeros((4, 4, 3), np.uint8), "GIF"))
    (folder / "link.JPEG").symlink_to("nowhere")
    (folder / "null.JPEG").symlink_to("/dev/null")
    with mode(closed, 0):
        assert denied(lambda: check.main([str(root)])) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    expected = {
        f"{folder}/empty.JPEG": "not an image that can be decoded (it is empty)",
        f"{folder}/caf\\udce9.JPEG": "not an image that can be decoded",
        f"{folder}/deep.png": "16 bits a channel",
        f"{folder}/moving.gif": "not read, because it is not one of .jpeg",
        f"{folder}/link.JPEG": "cannot be read (No such file",
        f"{folder}/null.JPEG": "not a file of at most",
        f"{closed}": "cannot be read (Permission denied).",
    }
    reasons = dict(line.split(": ", 1) for line in lines)
    assert {path: reason[: len(expected[path])] for path, reason in reasons.items()} == expected
    assert summary == "good: 13, bad: 7, stray: 0, other: 0"


def refuses(function, *args):
    try:
        function(*args)
    except InputError:
        return True
    return False


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_check_refuses_what_training_refuses(kind, options):
    content = pictures.encode(pictures.smooth(np.random.default_rng(0), 70, 60), kind, **options)
    for length in range(0, len(content) + 1, 20):
        cut = content[:length]
        by_training = refuses(decode.train_image, "x", cut, np.random.default_rng(0), 16)
        assert refuses(decode.check_image, "x", cut) == by_training, length
