"""The folded network of a run, its accuracy and its loss, against NumPy; folded weights that are not the run's."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training import runs
from wcjax import data, training
from wcjax.data.streaming import decode
from wcjax.errors import InputError
from wcjax.run_folder import read
from wcjax.run_folder.checkpoints import load_tree, save_tree
from wcjax.training import evaluate


def by_hand(run, images, labels, mean, std):
    """Loss and accuracy of the folded network of a run."""
    model, variables = training.load_folded(run)
    pixels = jnp.asarray((images / 255 - mean) / std, jnp.float32)
    logits = np.float64(jax.jit(lambda pixels: model.apply(variables, pixels, train=False))(pixels))
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return {"accuracy": np.mean(logits.argmax(1) == labels), "loss": losses.mean()}


def assert_equal(numbers, expected):
    assert numbers["accuracy"] == expected["accuracy"]
    np.testing.assert_allclose(numbers["loss"], expected["loss"], rtol=1e-4, atol=1e-6)


def test_the_summary_has_the_numbers_of_the_folded_network(tiny_run):
    run, summary = tiny_run
    dataset = data.load("digits", val_fraction=0.5)
    assert len(dataset.test.labels) == 360  # which batches of 64 do not divide
    expected = by_hand(run, *dataset.test, dataset.mean, dataset.std)
    assert_equal({"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}, expected)


def test_images_are_normalized_with_the_statistics_of_the_run(cifar_run, tmp_path):
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    run = shutil.copytree(cifar_run[0], tmp_path / "run")
    (run / "data.json").write_text(json.dumps(read(run, "data.json") | statistics))
    test = data.load("cifar10", cifar_run[0].parent / "set").test
    expected = by_hand(run, *test, *map(np.array, statistics.values()))
    assert_equal(training.evaluate_folded(run)["test"], expected)
    assert abs(read(run, "summary.json")["test_loss"] - expected["loss"]) > 1e-3


def test_every_streamed_image_counts_once(streamed_run):
    run, config = streamed_run
    dataset = data.load("imagenet", config["data_dir"])
    assert dataset.val.num_images == 15  # of which the second batch of 8 has 7
    images = np.stack([decode.eval_image(*dataset.val[i][:2], 16) for i in range(15)])
    labels = np.array([dataset.val[i].label for i in range(15)])
    results = training.evaluate_folded(run)
    assert_equal(results["val"], by_hand(run, images, labels, dataset.mean, dataset.std))
    assert results["test"] == results["val"]  # the official split is both


def test_evaluation_finds_the_numbers_of_the_summary(tiny_run, capsys):
    run, summary = tiny_run
    results = training.evaluate_folded(run)
    assert results["test"] == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}
    assert results["val"]["accuracy"] == summary["best_val_accuracy"]
    assert evaluate.main([str(run)]) == 0
    rows = [f"| {split} | {x['accuracy']:.2%} | {x['loss']:.4f} |" for split, x in results.items()]
    assert capsys.readouterr().out.splitlines() == ["| split | accuracy | loss |", "| --- | --- | --- |", *rows]


def test_a_folder_without_a_finished_run_is_named(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} ") and "config.json" in line
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="folded does not exist: the run has not ended yet"):
        training.load_folded(tmp_path)


def change(*keys, to=None):
    """Replaces a leaf of the weights, or removes it."""

    def act(params):
        *outer, last = keys
        for key in outer:
            params = params[key]
        if to is None:
            del params[last]
        else:
            params[last] = to

    return act


NAN = np.where(np.eye(8, 10), np.nan, np.float32(1)).astype(np.float32)
CHANGES = {
    "missing": (change("stem", "kernel"), "1 missing: params/stem/kernel."),
    "unexpected": (change("head", "extra", to=np.ones(2)), "1 unexpected: params/head/extra."),
    "other shape": (
        change("stem", "kernel", to=np.ones((5, 3, 1, 8), np.float32)),
        "params/stem/kernel is float32(5, 3, 1, 8), expected float32(3, 3, 1, 8).",
    ),
    "other dtype": (
        change("head", "bias", to=np.ones(10, np.int32)),
        "params/head/bias is int32(10,), expected float32(10,).",
    ),
    "nan": (change("head", "kernel", to=NAN), "1 with nan or inf: params/head/kernel."),
    "no bias": (change("head", "bias"), "params/head/bias has the shape ()"),
    "bias of two axes": (change("head", "bias", to=np.ones((2, 2))), "params/head/bias has the shape (2, 2)"),
    "too many classes": (change("head", "bias", to=np.ones(100_001)), "params/head/bias has the shape (100001,)"),
}


@pytest.mark.parametrize("act, message", CHANGES.values(), ids=CHANGES)
def test_folded_weights_of_another_network_are_named(tiny_run, tmp_path, monkeypatch, act, message):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    variables = jax.tree.map(np.array, load_tree(run / "folded"))
    act(variables["params"])
    save_tree(run / "folded", variables)
    if "nan" not in message:  # shapes are checked before any weight is read
        monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *_: pytest.fail("it read the weights"))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        training.load_folded(run)
    assert str(run / "folded") in str(error.value)


def test_damaged_files_of_folded_weights_are_named(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    for path in runs.files(run / "folded"):
        path.write_bytes(b"{")
    with pytest.raises(InputError, match="run/folded cannot be read: "):
        training.load_folded(run)
