"""Finished runs in one table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from wcjax import models
from wcjax.analysis import compare, runs
from wcjax.config import default_config
from wcjax.run_folder.checkpoints import save_tree


@pytest.fixture
def run(write_run):
    folder = write_run("wc", "learned", 0, 0.9611, val_accuracy=0.9722, reparam={"a": 0.6})
    shapes = jax.eval_shape(models.create("resnet8", 10).init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    save_tree(folder / "folded", jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes))
    return folder


def test_the_table_has_a_row_with_the_numbers_of_each_run(run):
    _, _, row, same = compare.table([run, run]).splitlines()
    cells = ["resnet8", "arctan(a=0.6, b=1, learned fine)", "97.22%", "96.11%", "2 of 2", "5 s", "2,827"]
    assert row == same == f"| {run} | {' | '.join(cells)} |"


def test_runs_on_different_data_are_in_different_tables(write_run):
    sets = {"a": (99, "digits"), "b": (98, "digits"), "c": (99, "digits"), "d": (99, "cifar10")}
    folders = {
        name: write_run(name, "wc", 0, 0.9, train_images=images, dataset=dataset)
        for name, (images, dataset) in sets.items()
    }
    paragraphs = compare.table(folders.values()).split("\n\n")
    assert paragraphs[::2] == ["digits, train.images 99:", "digits, train.images 98:", "cifar10, train.images 99:"]
    rows = [[row.split(" | ")[0] for row in table.splitlines()[2:]] for table in paragraphs[1::2]]
    assert rows == [[f"| {folders[name]}" for name in names] for names in ("ac", "b", "d")]


@pytest.mark.parametrize(
    "reparam, text",
    [
        ({"name": "erf", "b": 0.5}, "erf(a=1, b=0.5)"),
        ({"name": "arctan", "a": 0.5, "learn": "channel"}, "arctan(a=0.5, b=1, learned channel)"),
        ({"name": "powerprop", "alpha": 1.5}, "powerprop(α=1.5)"),
        ({"name": "weightnorm"}, "weightnorm"),
        ({"name": "none"}, "none"),
    ],
)
def test_a_reparam_is_named_with_the_numbers_that_matter(reparam, text):
    assert runs.describe_reparam(default_config().reparam.to_dict() | reparam) == text


def test_the_command_prints_the_table_and_plots_the_weights(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = run.rename(run.parent / "$_$")  # which matplotlib would take for mathematics
    assert compare.main([str(run), "--png", "~/plots/FIRST.PNG"]) == 0
    assert compare.table([run]) in capsys.readouterr().out
    (path,) = (tmp_path / "plots").iterdir()
    pixels = image.imread(path, format="png")[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.05  # something is drawn
    kernels = 9 * (16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64 + 64 * 10
    assert compare.all_weights(run).shape == (kernels,)  # of all layers, and no bias


@pytest.mark.parametrize(
    "png, message",
    [
        ("", "--png is empty: give a path."),
        ("{}/folder", "--png {}/folder is a folder; the picture is a PNG: give a FILE.png."),
        ("{}/w.jpg", "--png {}/w.jpg is a file with the ending '.jpg'; the picture is a PNG: give a FILE.png."),
        ("{}/below.png", "{}/below.png cannot be written (["),
    ],
)
def test_a_picture_that_cannot_be_made_is_named(run, tmp_path, capsys, png, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "below.png").symlink_to("/dev/null/below.png")
    before = sorted(tmp_path.rglob("*"))
    assert compare.main([str(run), "--png", png.format(tmp_path)]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith(f"error: {message.format(tmp_path)}") and errors.count("\n") == 1
    assert (output == "") == ("--png" in message), "a wrong argument is reported before any work"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "path, message",
    [
        ("{}", "{} holds no config.json: give the folder of a run."),
        ("{}/runs/unfinished", "{}/runs/unfinished holds no summary.json: give the folder of a finished run."),
        ("", "RUN is empty: give a path."),
        ("gs://bucket/run", "RUN gs://bucket/run: gs:// is not a local path"),
    ],
)
def test_a_path_without_a_finished_run_is_named(tmp_path, write_run, capsys, path, message):
    write_run("unfinished", "wc")
    assert compare.main([path.format(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.format(tmp_path)}")
