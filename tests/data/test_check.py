"""The command that finds all images of a folder that a run could not use."""

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
    (root / "train" / "n00000001" / "again").symlink_to(root)  # without an end
    assert check.main([str(root)]) == 0
    assert capsys.readouterr().out == "good: 15, bad: 0, stray: 1, other: 1\n"


def test_every_bad_image_is_named_with_its_reason(root, capsys):
    folder = root / "train" / "n00000001"
    whole = (folder / "train_0.JPEG").read_bytes()
    pixels = np.zeros((8, 8, 3), np.uint8)
    bad = {
        "empty.JPEG": (b"", "it is empty"),
        "cut.JPEG": (whole[: len(whole) * 2 // 3], "not an image that can be decoded"),
        "header.JPEG": (whole[:30], "not an image that can be decoded"),
        "page.JPEG": (b"<html>404</html>", "not an image that can be decoded"),
        "gif.JPEG": (pictures.encode(pixels, "GIF"), "not an image that can be decoded"),
        "cut.png": (pictures.encode(pixels, "PNG")[:40], "not an image that can be decoded"),
        "deep.png": (pictures.encode(pictures.Image.new("I;16", (4, 4)), "PNG"), "pixels of mode I;16"),
        "gif.gif": (pictures.encode(pixels, "GIF"), "not read, because it is not one of .jpeg"),
        "tiff.tif": (pictures.encode(pixels, "TIFF"), "not read, because it is not one of .jpeg"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    (folder / "link.JPEG").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.JPEG")
    bad |= {"link.JPEG": (None, "No such file"), "pipe.JPEG": (None, "not a file of at most")}
    assert check.main([str(root)]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    found = dict(line.split(": ", 1) for line in lines)
    assert found.keys() == {str(folder / name) for name in bad}
    for name, (_, reason) in bad.items():
        assert reason in found[str(folder / name)]
    assert summary == "good: 15, bad: 11, stray: 0, other: 0"


def test_a_name_that_is_not_utf8_is_printed(root, capsys):
    (root / "train" / "n00000001" / os.fsdecode(b"caf\xe9.JPEG")).write_bytes(b"")
    assert check.main([str(root)]) == 1
    assert "caf\\udce9.JPEG: not an image that can be decoded (it is empty)" in capsys.readouterr().out


def test_a_folder_that_may_not_be_listed_is_bad(root, capsys):
    (root / "val" / "n00000002").chmod(0)
    assert denied(lambda: check.main([str(root)])) == 1
    (root / "val" / "n00000002").chmod(0o755)
    line, summary = capsys.readouterr().out.splitlines()
    assert line == f"{root / 'val' / 'n00000002'}: cannot be read (Permission denied)."
    assert summary == "good: 13, bad: 1, stray: 0, other: 0"


def test_without_images_there_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    for path, message in ((tmp_path, "holds no images; allowed are .jpeg"), (tmp_path / "no", "is not a folder; give")):
        assert check.main([str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path} {message}")


def test_help_says_what_is_bad_and_what_the_exit_status_means(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        check.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("python -m wcjax.data.check [-h] DIR", "broken, unreadable", "exit status is 0", "tiny-imagenet-200"):
        assert part in text


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_what_it_refuses_is_what_training_refuses(kind, options):
    """An image cut at every 20th byte."""
    content = pictures.encode(pictures.smooth(np.random.default_rng(0), 70, 60), kind, **options)

    def refused(read):
        try:
            read()
        except InputError:
            return True
        return False

    for length in range(0, len(content) + 1, 20):
        cut = content[:length]
        training = refused(lambda cut=cut: decode.train_image("x", cut, np.random.default_rng(0), 16))
        assert refused(lambda cut=cut: decode.check_image("x", cut)) == training, length
