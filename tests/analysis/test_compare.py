"""Finished runs in one table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from wcjax import models
from wcjax.analysis import compare
from wcjax.run_folder.checkpoints import save_tree


@pytest.fixture
def run(write_run):
    return write_run("$_$", "learned", 0, 0.9611, val_accuracy=0.9722, reparam={"a": 0.6})


def test_the_table_has_a_row_with_the_numbers_of_each_run(run, write_run):
    folders = [run, run, write_run("pp", "pp", 0, 0.5), write_run("wn", "wn", 0, 0.5), write_run("erf", "erf", 0, 0.5)]
    _, _, row, same, *others = compare.comparison_markdown(folders).splitlines()
    cells = ["resnet8", "arctan(a=0.6, b=1, learned fine)", "97.22%", "96.11%", "2 of 2", "4 s", "100"]
    assert row == same == f"| {run} | {' | '.join(cells)} |"
    assert [line.split(" | ")[2] for line in others] == ["powerprop(α=2)", "weightnorm", "erf(a=1, b=1)"]


def test_runs_on_different_data_are_in_different_tables(write_run):
    sets = {"a": (99, "digits"), "b": (98, "digits"), "c": (99, "digits"), "d": (99, "cifar10")}
    folders = {
        name: write_run(name, "wc", 0, 0.9, train_images=images, dataset=dataset)
        for name, (images, dataset) in sets.items()
    }
    paragraphs = compare.comparison_markdown(folders.values()).split("\n\n")
    assert paragraphs[::2] == ["digits, train.images 99:", "digits, train.images 98:", "cifar10, train.images 99:"]
    rows = [[row.split(" | ")[0] for row in table.splitlines()[2:]] for table in paragraphs[1::2]]
    assert rows == [[f"| {folders[name]}" for name in names] for names in ("ac", "b", "d")]


def test_the_command_prints_the_table_and_plots_the_weights(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shapes = jax.eval_shape(models.create("resnet8", 10).init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    save_tree(run / "folded", jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes))
    assert compare.main([str(run), "--png", "~/plots/FIRST.PNG"]) == 0
    assert compare.comparison_markdown([run]) in capsys.readouterr().out
    (path,) = (tmp_path / "plots").iterdir()
    pixels = image.imread(path, format="png")[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.05  # something is drawn
    kernels = 9 * (16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64 + 64 * 10
    assert compare.all_weights(run).shape == (kernels,)  # of all layers, and no bias
