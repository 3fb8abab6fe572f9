"""Paths that a command line names: what cannot be used is said before any work, and everything else works by value."""

import pathlib
import re
import shutil

import numpy as np
import pytest

from tests.training import runs
from tests.training.conftest import compilation_cache, tiny_network, tiny_run  # noqa: F401
from wcjax import training
from wcjax.errors import InputError
from wcjax.files import local_path, run_path
from wcjax.run_folder.checkpoints import load_tree, save_tree


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "a]", "*", "what?", "back\\slash", "[a]/run"])
def test_a_path_that_loses_checkpoints_is_refused_before_any_work(tmp_path, monkeypatch, name):
    odd = " ".join(x for x in "[]*?\\" if x in name)
    message = re.escape(f"workdir {tmp_path / name}: the path of a checkpoint cannot contain {odd}. Give another path.")
    with pytest.raises(InputError, match=message):
        training.train({}, tmp_path / name)
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(f"{odd}. Give another path.")):
        run_path("run", "workdir")
    assert not list((tmp_path / name).iterdir())


@pytest.mark.parametrize(
    "name", ["a{b,c}", "%25", "%", "#", "$HOME", "~", " ", "ü", "a&b;c=0.1,d", "'", '"', ":", "\n"]
)
def test_checkpoints_come_back_from_a_folder_of_any_other_name(tmp_path, name):
    path = run_path(tmp_path / name, "workdir")
    tree = {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    save_tree(path / "folded", tree)
    runs.assert_same_bits(load_tree(path / "folded"), tree)


@pytest.mark.parametrize("name", ["r[1]", "r*", "r?"])
def test_a_finished_run_may_be_moved_to_a_folder_of_any_name(tiny_run, tmp_path, name):  # noqa: F811
    run = shutil.copytree(tiny_run[0], tmp_path / name)
    runs.assert_same_bits(training.load_folded(run)[1], training.load_folded(tiny_run[0])[1])


def test_but_a_backslash_is_named(tiny_run, tmp_path):  # noqa: F811
    run = shutil.copytree(tiny_run[0], tmp_path / "r\\")
    with pytest.raises(InputError, match="cannot be read: TensorStore takes no path with a backslash. Rename the"):
        training.load_folded(run)


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "hdfs://host:9000/x", "file:///tmp/x"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_an_address_is_refused_and_makes_no_folder_of_that_name(tmp_path, monkeypatch, address, kind):
    monkeypatch.chdir(tmp_path)
    scheme = address.partition(":")[0]
    with pytest.raises(InputError, match=f"^workdir {scheme}:.*: {scheme}:// is not a local path, .* Mount the bucket"):
        training.train({}, kind(address))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_an_error_and_not_this_folder(empty):
    with pytest.raises(InputError, match="workdir is empty: give a path."):
        training.train({}, empty)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_path("~/runs/x", "workdir") == tmp_path / "runs" / "x"
    assert local_path(pathlib.Path("~"), "RUN") == tmp_path
    with pytest.raises(InputError, match="^--out ~nobody_is_called_so/x: .* Give the whole path"):
        run_path("~nobody_is_called_so/x", "--out")


def test_a_run_at_a_tilde_is_kept_in_the_home_directory(tiny_run, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(tiny_run[0], tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert training.train(runs.tiny(), "~/run") == tiny_run[1]


@pytest.mark.parametrize("below", ["", "run"])
def test_a_dangling_link_is_named_with_where_it_leads(tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    path = tmp_path / "link" / below
    message = f"workdir {path}: {tmp_path / 'link'} is a link to {tmp_path / 'gone'}, which does not exist. Make"
    with pytest.raises(InputError, match=re.escape(message)):
        training.train({}, path)
    (tmp_path / "gone").mkdir()
    assert run_path(path, "workdir") == path


def test_links_that_lead_to_each_other_are_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match=r"a cannot be read \(Too many levels of symbolic links\)"):
        training.train({}, tmp_path / "a")


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 200] * 25)])
def test_a_name_that_is_too_long_is_named(tmp_path, name):
    with pytest.raises(InputError, match=r"^workdir .* cannot be read \(File name too long\)\. Check its path"):
        training.train({}, tmp_path / name)
