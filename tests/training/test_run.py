"""What a run leaves behind: its folder, its numbers, and a folded network that is the trained one."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.training import runs
from wcjax import data, training
from wcjax.config.keys import VARIANTS
from wcjax.data import augment
from wcjax.errors import InputError
from wcjax.run_folder import read_lines
from wcjax.run_folder.checkpoints import load_tree, save_tree
from wcjax.training import evaluate, loop
from wcjax.training import step as steps

METRICS = {
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "images_per_second",
    "seconds",
}
SUMMARY = {
    "best_epoch",
    "best_val_accuracy",
    "test_accuracy",
    "test_loss",
    "epochs",
    "images_per_second",
    "train_seconds",
    "compile_seconds",
    "num_parameters",
    "device",
    "num_devices",
    "jax_version",
}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


def test_the_run_folder_holds_what_the_docs_list_and_nothing_else(finished):
    run, _ = finished
    documented = {"config.json", "metrics.jsonl", "weights.jsonl", "tensorboard", "checkpoints", "folded"}
    documented |= {"data.json", "summary.json", ".lock"}
    assert {path.name for path in run.iterdir()} == documented


def test_metrics_has_one_line_for_each_epoch_with_the_documented_keys(finished):
    run, _ = finished
    found = lines(run)
    steps_per_epoch = 1293 // 64
    assert [line["epoch"] for line in found] == list(range(1, runs.EPOCHS + 1))
    assert [line["step"] for line in found] == [epoch * steps_per_epoch for epoch in range(1, runs.EPOCHS + 1)]
    for line in found:
        assert line.keys() == METRICS
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_per_second"] > 0 < line["seconds"]


def test_training_learns_the_digits(finished):
    run, summary = finished
    losses = [line["train_loss"] for line in lines(run)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 4
    assert summary["test_accuracy"] > 0.9


def test_the_summary_names_the_first_of_the_best_epochs(finished):
    run, summary = finished
    accuracies = [line["val_accuracy"] for line in lines(run)]
    assert summary.keys() == SUMMARY
    assert summary["best_val_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert summary["epochs"] == runs.EPOCHS
    assert summary["num_parameters"] == 78_042 - 2 * 9 * 16  # the stem sees one channel, not three
    assert json.loads((run / "summary.json").read_text()) == summary


def test_config_json_is_the_whole_config_of_the_run(finished):
    run, _ = finished
    stored = json.loads((run / "config.json").read_text())
    assert training.check_config(stored) == training.check_config(runs.digits())
    assert stored.keys() == training.default_config().to_dict().keys()


def test_the_learning_rate_in_the_metrics_changes_after_each_milestone(tiny_run):
    run, _ = tiny_run
    np.testing.assert_allclose([line["learning_rate"] for line in lines(run)], [0.1, 0.1, 0.05, 0.025], rtol=1e-6)


def test_tensorboard_shows_every_number_of_the_metrics_and_of_the_weights(tiny_run):
    run, _ = tiny_run
    (path,) = (run / "tensorboard").iterdir()
    raw, found = path.read_bytes(), {}
    while raw:  # a record: length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(raw[:8], "little")
        event, raw = Event.FromString(raw[12 : 12 + length]), raw[16 + length :]
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
    expected = {(line["epoch"], name): np.float32(value) for line in lines(run) for name, value in line.items()}
    for line in read_lines(run, "weights.jsonl"):
        for layer, numbers in line["layers"].items():
            del numbers["histogram"]
            expected |= {(line["epoch"], f"weights/{name}/{layer}"): np.float32(x) for name, x in numbers.items()}
    assert found == expected


def test_the_folded_network_is_the_companded_one_with_w_in_place_of_v(finished, dataset):
    run, summary = finished
    config = training.check_config(runs.digits())
    trained = runs.checkpoint(run, summary["best_epoch"])
    plain, variables = training.load_folded(run)

    def folded(v):
        return config.reparam.a * np.arctan(np.float64(v) / config.reparam.b)

    def compare(path, leaf):
        owner = trained["params"]
        for key in path[:-1]:
            owner = owner[key.key]
        name = path[-1].key
        expected = folded(owner["kernel"]["v"]) if name == "kernel" else owner[name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, variables["params"])
    runs.assert_same_bits(variables["batch_stats"], trained["batch_stats"])

    images = augment.normalize(dataset.test.images, dataset.mean, dataset.std)
    companded = loop.make_model(config, dataset.num_classes)
    like = jax.eval_shape(companded.init, jax.random.key(0), images[:1])["params"]
    params = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(trained["params"]))
    expected = companded.apply({"params": params, "batch_stats": trained["batch_stats"]}, images)
    np.testing.assert_allclose(plain.apply(variables, images), expected, atol=1e-4)


def test_accuracy_and_loss_of_the_summary_are_those_of_the_folded_network(finished, dataset):
    run, summary = finished
    model, variables = training.load_folded(run)
    pixels = (dataset.test.images / 255 - dataset.mean) / dataset.std
    logits = np.float64(model.apply(variables, jnp.asarray(pixels, jnp.float32)))
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    n = len(dataset.test.labels)
    assert n == 360
    assert summary["test_accuracy"] == np.mean(logits.argmax(1) == dataset.test.labels)
    np.testing.assert_allclose(summary["test_loss"], -np.mean(log_p[np.arange(n), dataset.test.labels]), rtol=1e-4)


def test_evaluate_finds_the_numbers_of_the_summary_again(finished, capsys):
    run, summary = finished
    found = training.evaluate_folded(run)
    assert found["test"] == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}
    assert found["val"]["accuracy"] == summary["best_val_accuracy"]

    assert evaluate.main([str(run)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| split | accuracy | loss |"
    assert table[2] == f"| val | {summary['best_val_accuracy']:.2%} | {found['val']['loss']:.4f} |"
    assert table[3] == f"| test | {summary['test_accuracy']:.2%} | {summary['test_loss']:.4f} |"


def test_evaluate_on_a_folder_without_a_run_is_an_error_of_one_line(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is no run folder: it has no config.json.\n"


def test_evaluate_before_the_run_has_ended_says_so(tmp_path):
    config = training.check_config(runs.tiny()).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="folded does not exist: the run has not ended yet"):
        training.load_folded(tmp_path)


def change_folded(change, run, tmp_path):
    """A copy of a run whose folded weights were changed."""
    copy = shutil.copytree(run, tmp_path / "copy")
    variables = jax.tree.map(np.array, load_tree(copy / "folded"))
    change(variables["params"])
    save_tree(copy / "folded", variables)
    return copy


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p["stem"].pop("kernel"), "1 missing: params/stem/kernel."),
        (lambda p: p["head"].update(extra=np.ones(2)), "1 unexpected: params/head/extra."),
        (
            lambda p: p["stem"].update(kernel=np.ones((5, 3, 1, 8), np.float32)),
            "1 different: params/stem/kernel is float32(5, 3, 1, 8), expected float32(3, 3, 1, 8).",
        ),
        (
            lambda p: p["head"].update(bias=np.ones(10, np.int32)),
            "params/head/bias is int32(10,), expected float32(10,).",
        ),
        (lambda p: p["head"]["kernel"].__setitem__((1, 2), np.nan), "1 with nan or inf: params/head/kernel."),
        (lambda p: p["stem_norm"]["scale"].__setitem__(3, -np.inf), "1 with nan or inf: params/stem_norm/scale."),
    ],
)
def test_folded_weights_that_do_not_fit_the_config_are_named(tiny_run, tmp_path, change, message):
    run = change_folded(change, tiny_run[0], tmp_path)
    with pytest.raises(
        InputError, match=re.escape(f"the weights in {run / 'folded'} do not fit the network. ")
    ) as error:
        training.load_folded(run)
    assert message in str(error.value)


@pytest.mark.parametrize("bias", [np.ones((2, 2)), np.ones(()), np.ones(100_001), None], ids=str)
def test_a_head_without_a_number_for_each_class_is_named(tiny_run, tmp_path, bias):
    change = lambda p: p["head"].pop("bias") if bias is None else p["head"].update(bias=bias)
    with pytest.raises(InputError, match=r"folded: params/head/bias has the shape .*; allowed is one number for each"):
        training.load_folded(change_folded(change, tiny_run[0], tmp_path))


def test_shapes_are_checked_before_any_weight_is_read(tiny_run, tmp_path, monkeypatch):
    run = change_folded(lambda p: p["stem"].update(kernel=np.ones((3, 3, 1, 9), np.float32)), tiny_run[0], tmp_path)
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *_: pytest.fail("it read the weights"))
    with pytest.raises(InputError, match="params/stem/kernel is float32"):
        training.load_folded(run)


def test_folded_weights_whose_files_are_damaged_are_named(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "copy")
    for path in [path for path in (run / "folded").rglob("*") if path.is_file()]:
        path.write_bytes(b"{")
    with pytest.raises(InputError, match="copy/folded cannot be read: "):
        training.load_folded(run)


def test_a_finished_run_called_again_returns_its_summary_and_does_nothing(finished, monkeypatch):
    run, summary = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(loop, "load_dataset", lambda config: pytest.fail("it looked at the data"))
    monkeypatch.setattr(steps, "init_state", lambda *args: pytest.fail("it made a network"))
    assert training.train(runs.digits(), run) == summary
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def quantiles(x):
    """A number, or the least, the quartiles and the largest of the numbers of channels."""
    x = np.sort(np.float64(x).ravel())
    at = np.array([0, 1, 2, 3, 4]) / 4 * (x.size - 1)  # between two numbers by their distance, as NumPy does
    low = np.floor(at).astype(int)
    found = x[low] + (at - low) * (x[np.minimum(low + 1, x.size - 1)] - x[low])
    return found.tolist() if x.size > 1 else float(x[0])


@pytest.mark.parametrize("learn", ["fine", "channel", "coarse"])
def test_learned_a_and_b_are_in_the_metrics_of_each_epoch_and_not_in_the_folded_network(tmp_path, learn):
    run = tmp_path / "run"
    training.train(runs.tiny(epochs=2, reparam__learn=learn), run)
    for line in lines(run):
        params = runs.checkpoint(run, line["epoch"])["params"]
        psis = {"pair": params["pair"]["psi"]} if learn == "coarse" else {}
        psis = psis or {layer: params[layer]["kernel"]["psi"] for layer in ("stem", "head")}
        assert line["pairs"].keys() == psis.keys()
        for layer, psi in psis.items():
            assert line["pairs"][layer].keys() == {"a", "b"}
            for letter, found in line["pairs"][layer].items():
                assert np.size(found) == (5 if learn == "channel" else 1)
                np.testing.assert_allclose(found, quantiles(psi[letter]), rtol=1e-12)
                assert np.any(psi[letter] != 1), "they did not move"
    assert {owner: set(leaves) for owner, leaves in load_tree(run / "folded")["params"].items()} == {
        "stem": {"kernel"},
        "stem_norm": {"scale", "bias"},
        "head": {"kernel", "bias"},
    }


def test_of_equally_good_epochs_the_first_is_folded(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
    run = tmp_path / "run"
    summary = training.train(runs.tiny(), run)
    assert (summary["best_epoch"], summary["best_val_accuracy"]) == (2, 0.7)
    best = runs.checkpoint(run, 2)
    runs.assert_same_bits(load_tree(run / "folded")["batch_stats"], best["batch_stats"])
    runs.assert_same_bits(load_tree(run / "folded")["params"]["head"]["bias"], best["params"]["head"]["bias"])


LONG = [(variant, "sgd") for variant in VARIANTS if variant not in ("wc", "learned", "wn")]
LONG += [(variant, "adam") for variant in ("learned", "plain")]
VARIANTS = [("wc", "sgd"), ("learned", "sgd"), ("wn", "sgd"), ("wc", "adam")]
VARIANTS += [pytest.param(*names, marks=pytest.mark.long) for names in LONG]


@pytest.mark.parametrize("variant, optimizer", VARIANTS)
def test_every_variant_trains_an_epoch_and_folds_into_the_plain_network(tmp_path, variant, optimizer):
    config = training.check_config(runs.adam(epochs=1) if optimizer == "adam" else runs.tiny(epochs=1))
    config = training.with_variant(config, f"tiny,{variant}")
    config.reparam.a = 1.0  # on digits the initial weights do not fit into the 0.5 of the learned variants
    summary = training.train(config, tmp_path / "run")
    (line,) = lines(tmp_path / "run")
    assert 0 < line["train_loss"] < 5
    assert 0 < line["val_loss"] < 5
    assert summary["num_parameters"] == 9 * 8 + 2 * 8 + 8 * 10 + 10
