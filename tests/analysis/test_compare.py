"""Run folders side by side. The runs here are written by hand: analysis reads folders and nothing else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from wcjax import Arctan, models
from wcjax.analysis import compare, plots, runs
from wcjax.config import default_config
from wcjax.run_folder.checkpoints import save_tree

SUMMARY = {
    "best_val_accuracy": 0.9722,
    "test_accuracy": 0.9611,
    "best_epoch": 5,
    "epochs": 10,
    "train_seconds": 4.6,
    "images_per_second": 2827.3,
    "device": "cpu",
    "jax_version": "0.10.2",
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "wc"
    folder.mkdir()
    reparam = {"name": "arctan", "a": 0.6, "b": 1.0, "alpha": 2.0, "learn": "fine"}
    (folder / "config.json").write_text(json.dumps({"model": "resnet8", "reparam": reparam}))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    model = models.create("resnet8", 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    save_tree(folder / "folded", jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes))
    return folder


def test_the_table_has_a_row_for_each_run_with_its_numbers(run):
    rows = compare.table([run, run]).splitlines()
    assert len(rows) == 4
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells == [
        str(run),
        "resnet8",
        "arctan(a=0.6, b=1, learned fine)",
        "97.22%",
        "96.11%",
        "5 of 10",
        "5 s",
        "2,827",
    ]


def test_runs_on_different_data_are_in_different_tables(tmp_path, write_run):
    for name, images, dataset in (("a", 99, "digits"), ("b", 98, "digits"), ("c", 99, "digits"), ("d", 99, "cifar10")):
        write_run(tmp_path / name, "wc", 0, 0.9, train_images=images, dataset=dataset)
    paragraphs = compare.table([tmp_path / name for name in "abcd"]).split("\n\n")
    assert paragraphs[::2] == ["digits, train.images 99:", "digits, train.images 98:", "cifar10, train.images 99:"]
    rows = [[row.split(" | ")[0] for row in table.splitlines()[2:]] for table in paragraphs[1::2]]
    assert rows == [[f"| {tmp_path / name}" for name in names] for names in ("ac", "b", "d")]


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


def test_the_command_prints_the_table_and_plots_the_first_layer(run, tmp_path, capsys):
    png = tmp_path / "plots" / "first.png"
    assert compare.main([str(run), "--png", str(png)]) == 0
    assert compare.table([run]) in capsys.readouterr().out
    pixels = image.imread(png)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.05  # something is drawn


def test_a_folder_without_a_finished_run_is_an_error_that_names_it(tmp_path, capsys):
    assert compare.main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no config.json: give the folder of a run" in capsys.readouterr().err


def test_a_folder_with_a_formulas_sign_in_its_name_is_plotted_under_that_name(run, tmp_path):
    odd = run.rename(tmp_path / "$_$")
    assert compare.main([str(odd), "--png", str(tmp_path / "first.png")]) == 0


def test_the_picture_of_psi_is_drawn(tmp_path):
    pixels = image.imread(plots.plot_psi(tmp_path / "psi.png", Arctan(0.5, 1.0)))[..., :3]
    assert pixels.std() > 0.05


@pytest.mark.parametrize(
    "png, message",
    [
        ("", "error: --png is empty: give a path.\n"),
        ("folder", "error: --png {} is a folder; the picture is a PNG: give a FILE.png.\n"),
        ("folder.png", "error: --png {} is a folder; the picture is a PNG: give a FILE.png.\n"),
        ("weights.jpg", "error: --png {} is a file with the ending '.jpg'; the picture is a PNG: give a FILE.png.\n"),
        ("weights", "error: --png {} is a file with the ending ''; the picture is a PNG: give a FILE.png.\n"),
    ],
)
def test_a_picture_that_is_no_png_is_refused_before_any_work(run, tmp_path, capsys, png, message):
    for name in ("folder", "folder.png"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert compare.main([str(run), "--png", str(tmp_path / png) if png else ""]) == 2
    assert capsys.readouterr() == ("", message.format(tmp_path / png))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("parent", ["/dev/full", "/dev/null"])
def test_a_picture_that_cannot_be_written_is_named(run, tmp_path, capsys, parent):
    (tmp_path / "first.png").symlink_to(f"{parent}" if parent == "/dev/full" else f"{parent}/below.png")
    assert compare.main([str(run), "--png", str(tmp_path / "first.png")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {tmp_path / 'first.png'} cannot be written (") and errors.count("\n") == 1


def test_an_ending_in_capitals_and_a_tilde_are_fine(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compare.main([str(run), "--png", "~/plots/FIRST.PNG"]) == 0
    assert image.imread(tmp_path / "plots" / "FIRST.PNG", format="png").std() > 0.05


@pytest.mark.parametrize("given, message", [("", "RUN is empty"), ("gs://bucket/run", "gs:// is not a local path")])
def test_a_run_that_is_no_local_folder_is_named(capsys, given, message):
    assert compare.main([given]) == 2
    assert message in capsys.readouterr().err
