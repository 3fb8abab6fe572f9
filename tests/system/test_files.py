"""Unusable paths are refused before any work, and a file is replaced in one step."""

import os
import pathlib
import re
import stat

import numpy as np
import pytest

from tests.permissions import denied
from wcjax import training
from wcjax.errors import InputError, SaveError
from wcjax.run_folder.checkpoints import load_tree, save_tree
from wcjax.system.files import atomic_write, saving, write_json
from wcjax.system.paths import local_path, run_path

CONFIG = {"dataset": "cifar10"}  # it lacks data_dir, so that a path that is not refused leads to another error
TREE = {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}


def test_a_path_that_loses_checkpoints_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "what?*" / "back\\slash" / "exp[lr=0.1]"
    message = "the path of a checkpoint cannot contain [ ] * ? \\. Give another path."
    with pytest.raises(InputError, match="^" + re.escape(f"workdir {folder}: {message}")):
        training.train(CONFIG, folder)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=re.escape(message)):
        run_path("run", "workdir")
    assert not list(folder.iterdir())


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match="^workdir .*: the path of a checkpoint must be UTF-8. Give another path.$"):
        training.train(CONFIG, folder)
    assert not folder.exists()
    save_tree(tmp_path / "run", TREE)
    with pytest.raises(InputError, match="cannot be read: TensorStore takes only paths in UTF-8. Rename the folder.$"):
        load_tree((tmp_path / "run").rename(folder))


def test_checkpoints_work_in_a_folder_of_any_other_name(tmp_path):
    for name in ("a{b,c}", "%25", "#", "$HOME", "~", " ", "ü", "a&b;c=0.1,d", "'\"", ":", "\n"):
        path = run_path(tmp_path / name, "workdir") / "folded"
        save_tree(path, TREE)
        np.testing.assert_array_equal(load_tree(path)["w"], TREE["w"])
    for name in ("r[1]", "r*", "r?"):  # to which a user may move a run
        np.testing.assert_array_equal(load_tree(path.rename(tmp_path / name))["w"], TREE["w"])
        path = tmp_path / name
    with pytest.raises(InputError, match="cannot be read: TensorStore .* backslash"):
        load_tree(path.rename(tmp_path / "r\\"))


@pytest.mark.parametrize(
    "path, message",
    [
        ("", "workdir is empty: give a path."),
        ("gs://bucket/run", "workdir gs://bucket/run: gs:// is not a local path, .* Mount the bucket"),
        (pathlib.Path("gs://bucket/run"), "workdir gs:/bucket/run: gs:/+ is not a local path, .* Mount the bucket"),
        ("~nobody_has_this_name/x", "workdir ~nobody_has_this_name/x: .* Give the whole path"),
        ("x" * 256, r"workdir x+: cannot be read \(File name too long\)\. Check the path, or give another one\."),
        (
            "link",
            "workdir link: {}/link is a link to gone, which does not exist. Make that folder, or remove the link.",
        ),
        ("loop", r"workdir loop: cannot be read \(Too many levels of symbolic links\)\. Check the path"),
        ("file/run", "workdir file/run: {}/file is a file; give a folder."),
        ("closed/run", r"workdir closed/run: cannot be read \(Permission denied\)\. Change its permissions \(chmod"),
    ],
)
def test_an_unusable_path_is_named_and_nothing_is_made(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0)
    for link, target in (("link", "gone"), ("loop", "pool"), ("pool", "loop")):
        (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match="^" + message.format(tmp_path)):
        denied(lambda: training.train(CONFIG, path))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["closed", "file", "link", "loop", "pool"]
    (tmp_path / "gone").mkdir()
    assert run_path("link/run", "workdir") == pathlib.Path("link/run")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_path("~/runs/x", "workdir") == tmp_path / "runs" / "x"
    assert local_path(pathlib.Path("~"), "RUN") == tmp_path


def replace(path, content=b"new", before_end=lambda: None):
    with atomic_write(path) as file:
        file.write(content)
        file.flush()
        before_end()


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a[1]*"  # letters of glob
    path.write_text("old")

    def fail():
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(path, before_end=fail)
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == {path.name: "old"}
    replace(path)
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == {path.name: "new"}


def test_a_writer_removes_only_leftovers_of_killed_writers(tmp_path):
    for name in ("a[1]", "other"):
        (tmp_path / f".{name}.01234567.partial").write_text("killed")
    replace(tmp_path / "a[1]", b"first", before_end=lambda: replace(tmp_path / "a[1]", b"second"))
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == {".other.01234567.partial": "killed", "a[1]": "first"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_permissions_of_a_new_file_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        replace(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_only_errors_of_the_disk_become_one_line(tmp_path):
    message = r"{0} cannot be written \(.*No such file .*'{0}'\)\. Earlier files are intact\. Fix the cause and"
    with pytest.raises(SaveError, match="^" + message.format(tmp_path / "no" / "a.json")) as error:
        write_json(tmp_path / "no" / "a.json", {})
    assert "\n" not in str(error.value)
    for bug in (ValueError, RuntimeError):
        with pytest.raises(bug, match="^of the code$"), saving(tmp_path):
            raise bug("of the code")
