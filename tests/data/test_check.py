"""The command that finds every image in a folder that a run cannot use."""

import os

import numpy as np
import pytest

from tests.data import pictures
from tests.permissions import denied
from wcjax.data import check
from wcjax.data.streaming import decode
from wcjax.errors import InputError


@pytest.fixture
def root(tmp_path):
    return pictures.class_folders(tmp_path / "set", num_train=3, num_val=2)


def test_a_good_folder_is_good(root, capsys):
    (root / "train" / "n00000001" / ".DS_Store").write_text("")
    (root / "words.txt").write_text("")
    (root / "train" / "n00000001" / "again").symlink_to(root)  # following it would never end
    assert check.main([str(root)]) == 0
    assert capsys.readouterr().out == "good: 15, bad: 0, stray: 1, other: 1\n"


def test_every_bad_image_is_named_with_its_reason(root, capsys):
    folder = root / "train" / "n00000001"
    whole = (folder / "train_0.JPEG").read_bytes()
    pixels = np.zeros((8, 8, 3), np.uint8)
    damaged, unread = "not an image that can be decoded", "not read, because it is not one of .jpeg"
    bad = {
        "empty.JPEG": (b"", f"{damaged} (it is empty)"),
        os.fsdecode(b"caf\xe9.JPEG"): (b"", damaged),
        "cut.JPEG": (whole[: len(whole) * 2 // 3], damaged),
        "gif.JPEG": (pictures.encode(pixels, "GIF"), damaged),
        "deep.png": (pictures.encode(pictures.Image.new("I;16", (4, 4)), "PNG"), "pixels of mode I;16"),
        "gif.gif": (pictures.encode(pixels, "GIF"), unread),
        "tiff.tif": (pictures.encode(pixels, "TIFF"), unread),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    (folder / "link.JPEG").symlink_to("nowhere")
    (folder / "null.JPEG").symlink_to("/dev/null")
    bad |= {"link.JPEG": (None, "cannot be read (No such file"), "null.JPEG": (None, "not a file of at most")}
    (root / "val" / "n00000002").chmod(0)
    assert denied(lambda: check.main([str(root)])) == 1
    (root / "val" / "n00000002").chmod(0o755)
    *lines, summary = capsys.readouterr().out.splitlines()
    reasons = dict(line.split(": ", 1) for line in lines)
    assert reasons.pop(str(root / "val" / "n00000002")) == "cannot be read (Permission denied)."
    assert reasons.keys() == {f"{folder}/{name}".replace("\udce9", "\\udce9") for name in bad}
    for name, (_, reason) in bad.items():
        assert reasons[f"{folder}/{name}".replace("\udce9", "\\udce9")].startswith(reason)
    assert summary == "good: 13, bad: 10, stray: 0, other: 0"


def test_without_images_there_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    for path, message in (
        (tmp_path, "contains no images; allowed are .jpeg"),
        (tmp_path / "no", "is not a folder; give"),
    ):
        assert check.main([str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path} {message}")


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
