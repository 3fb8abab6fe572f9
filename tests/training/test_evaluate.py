"""The folded network of a run, its accuracy and its loss, against NumPy; folded weights that are not the run's."""

import json
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.run_folder.examples import DATA
from tests.training import runs
from wcjax import run_folder, training
from wcjax.analysis import robustness
from wcjax.config.build import load_dataset
from wcjax.data.streaming import decode
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import load_tree, save_tree
from wcjax.system.files import write_json
from wcjax.training import evaluate

STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def decoded(source, config):
    """(images, labels) of a streamed split."""
    encoded = [source[i] for i in range(source.num_images)]
    return np.stack([decode.eval_image(*x[:2], config.image_size) for x in encoded]), [x.label for x in encoded]


@pytest.mark.parametrize("kind", ["tiny", "cifar", "streamed"])
def test_numbers_are_those_of_the_folded_network(request, tmp_path, capsys, kind):
    run = shutil.copytree(request.getfixturevalue(f"{kind}_run")[0], tmp_path / "run")
    config, summary = run_folder.read_config(run), runs.summary(run)
    dataset = load_dataset(config)
    mean, std = dataset.mean, dataset.std
    if kind == "cifar":  # images are normalized with the statistics of the run, not with those of the data
        write_json(run / "data.json", run_folder.read(run, "data.json") | STATISTICS)
        mean, std = map(np.array, STATISTICS.values())
    model, variables = training.load_folded(run)
    apply = jax.jit(lambda pixels: model.apply(variables, pixels, train=False))

    results = training.evaluate_folded(run)
    for name, numbers in results.items():
        images, labels = getattr(dataset, name) if kind != "streamed" else decoded(dataset.test, config)
        assert len(labels) % config.batch_size != 0, "the last batch is not full"
        logits = np.float64(apply(jnp.asarray((images / 255 - mean) / std, jnp.float32)))
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        assert numbers["accuracy"] == np.mean(logits.argmax(1) == labels)
        np.testing.assert_allclose(numbers["loss"], losses.mean(), rtol=1e-4, atol=1e-6)
    if kind == "cifar":
        assert len(dataset.val.labels) < config.batch_size
        assert abs(summary["test_loss"] - results["test"]["loss"]) > 1e-3
    else:
        assert results["test"] == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}
        assert results["val"]["accuracy"] == summary["best_val_accuracy"]
    if kind == "streamed":
        assert results["test"]["accuracy"] > 0.5, "it has learned three classes"

    assert evaluate.main([str(run)]) == 0
    rows = [f"| {name} | {x['accuracy']:.2%} | {x['loss']:.4f} |" for name, x in results.items()]
    assert capsys.readouterr().out.splitlines() == ["| split | accuracy | loss |", "| --- | --- | --- |", *rows]


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"^{tmp_path} has no data.json, .* number of classes.*load_folded"):
        training.load_folded(tmp_path)
    write_json(tmp_path / "data.json", DATA)
    with pytest.raises(InputError, match="folded does not exist: the run has not ended yet"):
        training.load_folded(tmp_path)


@pytest.mark.parametrize("main", [evaluate.main, robustness.main])
def test_a_stored_data_dir_that_does_not_exist_is_named(tiny_run, tmp_path, monkeypatch, capsys, main):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"dataset": "cifar10", "data_dir": "data"})
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 2
    message = f"run/config.json: data_dir is data, which does not exist (the current folder is {tmp_path}). Give the "
    assert message + "path of the data set by --data_dir." in capsys.readouterr().err
    assert main(["run", "--data_dir", "elsewhere"]) == 2
    assert "there is no directory elsewhere. Prepare it once" in capsys.readouterr().err


def test_lost_weights_are_rewritten_from_a_checkpoint(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    before = load_tree(run / "folded")
    shutil.rmtree(run / "folded")
    (run / "folded").mkdir()
    with pytest.raises(InputError, match="folded holds no weights. To write it again .* remove summary.json"):
        training.load_folded(run)
    (run / "summary.json").unlink()
    training.train(json.loads((run / "config.json").read_text()), run)
    chex.assert_trees_all_equal(load_tree(run / "folded"), before)


@pytest.mark.parametrize(
    "bias, message",
    [
        (np.ones(9, np.int32), "params/head/bias is int32(9,), expected float32(10,)."),
        (np.full(10, np.nan, np.float32), "1 with nan or inf: params/head/bias."),
    ],
)
def test_folded_weights_of_another_network_are_named(tiny_run, tmp_path, monkeypatch, bias, message):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    variables = jax.tree.map(np.array, load_tree(run / "folded"))
    variables["params"]["head"]["bias"] = bias
    save_tree(run / "folded", variables)
    if "nan" not in message:  # shapes are checked before any weight is read
        monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *_: pytest.fail("it read the weights"))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        training.load_folded(run)
    assert str(run / "folded") in str(error.value)
