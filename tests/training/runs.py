"""Small runs: their configs, what stops and damages them, and the comparison of two run folders."""

import functools
import json
import shutil

import jax
import numpy as np

from tests.data import sets
from wcjax import models, training
from wcjax.models import resnet
from wcjax.run_folder.checkpoints import load_tree

EPOCHS = 4
STEPS = 719 // 64  # in an epoch of `tiny`
TIMES = {"images_per_second", "seconds", "train_seconds", "compile_seconds"}


def register_tiny() -> None:
    """Adds the network 'tiny', the stem and the head of a ResNet, which compile in a second."""
    models.NETWORKS["tiny"] = functools.partial(resnet.ResNet, stages=(), block=resnet.BasicBlock, width=8)


def changed(config, changes):
    """A config with the values of keys like 'reparam.a'."""
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        config = config | {outer: config.get(outer, {}) | {inner: value} if inner else value}
    return config


def tiny(**changes):
    """A run of a second on 719 training and 718 val images. reparam__a=0.5 stands for the key reparam.a."""
    config = {
        "model": "tiny",
        "epochs": EPOCHS,
        "batch_size": 64,
        "val_fraction": 0.5,
        "augment": {"padding": 1, "flip": False},
        "schedule": {"milestones": (2, 3), "factor": 0.5},
        "reparam": {},
        "checkpoint_seconds": 0,
    }
    return changed(config, {key.replace("__", "."): value for key, value in changes.items()})


def streamed(images, **changes):
    """A run on the 42 training and 15 val images of `pictures.class_folders`, with 5 steps in an epoch."""
    return tiny(**{"dataset": "imagenet", "data_dir": str(images), "image_size": 16, "batch_size": 8} | changes)


def cifar(data_dir, **changes):
    """A run on the 91 training and 10 val images of `write_cifar`, with 5 steps in an epoch."""
    return tiny(dataset="cifar10", data_dir=str(data_dir), batch_size=16, val_fraction=0.1, **changes)


cifar_arrays = functools.partial(sets.cifar_arrays, 101, 21)


def write_cifar(folder, **changes):
    """Writes folder/cifar10.npz with some of its arrays replaced, and returns folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "cifar10.npz", **cifar_arrays() | changes)
    return folder


def pretend(monkeypatch, accuracies) -> None:
    """Makes these the accuracies on val of the next epochs."""
    values = iter(accuracies)
    monkeypatch.setattr("wcjax.training.loop.evaluate", lambda *_: {"loss": 1.0, "accuracy": next(values)})


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop(config, run, step) -> None:
    """Trains until this step is done and the run is stopped."""

    def on_step(progress):
        if progress.step == step:
            raise Stopped

    try:
        training.train(config, run, on_step)
    except Stopped:
        return
    raise AssertionError("the run has ended before it was stopped")


def resume(config, run) -> list[int]:
    """Trains to the end of the run, and returns the numbers of the steps."""
    steps = []
    training.train(config, run, lambda progress: steps.append(progress.step))
    return steps


def unfinished_copy(run, destination, epoch=EPOCHS):
    """A copy of a finished run as it was when it had saved the checkpoint of an epoch."""
    shutil.copytree(run, destination)
    (destination / "summary.json").unlink()
    shutil.rmtree(destination / "folded")
    for number in saved(destination):
        if number > epoch:
            shutil.rmtree(destination / "checkpoints" / str(number))
    return destination


def cut(checkpoint) -> None:
    """Cuts the largest file of a checkpoint in half."""
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def files(folder) -> dict:
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(run, kind="checkpoints") -> list[int]:
    """The numbers of the checkpoints of a run: epochs, or steps if kind is 'midway'."""
    return sorted(int(path.name) for path in (run / kind).glob("*") if path.name.isdigit())


def checkpoint(run, epoch):
    """The training state saved after an epoch, as nested dicts, lists and arrays."""
    return load_tree(run / "checkpoints" / str(epoch) / "state")


def timeless(numbers: dict) -> dict:
    """A summary or a line of the metrics without the numbers that a clock measured."""
    return {key: value for key, value in numbers.items() if key not in TIMES}


def metrics(run) -> list[dict]:
    return [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run) -> dict:
    return json.loads((run / "summary.json").read_text())


def assert_same_history(run, expected):
    """Compares the losses of two run folders to 1e-5 of their value, and the accuracies to the last image."""
    run, expected = metrics(run), metrics(expected)
    assert [line["step"] for line in run] == [line["step"] for line in expected]
    for line, other in zip(run, expected, strict=True):
        for split in ("train", "val"):
            assert line[f"{split}_accuracy"] == other[f"{split}_accuracy"]
            np.testing.assert_allclose(line[f"{split}_loss"], other[f"{split}_loss"], rtol=1e-5)


def assert_same_bits(tree, expected):
    tree, expected = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (tree, expected))
    assert tree.keys() == expected.keys()
    for path, leaf in tree.items():
        leaf, other = np.asarray(leaf), np.asarray(expected[path])
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape), jax.tree_util.keystr(path)
        assert leaf.tobytes() == other.tobytes(), jax.tree_util.keystr(path)


def assert_same_run(run, expected, rounded=()):
    """Compares the numbers of two finished run folders: every metric and histogram, the last state and the weights.

    rounded: numbers of the summary that may differ by rounding errors.
    """
    assert metrics(run) == metrics(expected)
    assert (run / "weights.jsonl").read_bytes() == (expected / "weights.jsonl").read_bytes()
    last = metrics(expected)[-1]["epoch"]
    assert_same_bits(checkpoint(run, last), checkpoint(expected, last))
    assert_same_bits(load_tree(run / "folded"), load_tree(expected / "folded"))
    numbers, others = (timeless(summary(folder)) for folder in (run, expected))
    for name in rounded:
        np.testing.assert_allclose(numbers.pop(name), others.pop(name), rtol=1e-6)
    assert numbers == others
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}
