"""Configurations of small runs, and the comparison of two run folders bit by bit."""

import functools
import json
import pathlib
import runpy
import shutil

import jax
import numpy as np

from wcjax import models
from wcjax.models import resnet
from wcjax.run_folder.checkpoints import load_tree

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS = 4
STOPPED = 3  # the epoch after which `stopped_copy` goes on
TINY = (functools.partial(resnet.ResNet, stages=(), block=resnet.BasicBlock, width=8), models.options("resnet8"))
TIMES = {"images_per_second", "seconds", "train_seconds", "compile_seconds"}


def digits():
    """The first run of the README, shorter. `train.py --config configs/digits.py --config.epochs=4` is the same."""
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    config.epochs = EPOCHS
    return config.to_dict()


def tiny(**changes):
    """A run of a second. Keys with a dot are spelt with two underscores: reparam__a=0.5."""
    config = {
        "model": "tiny",
        "epochs": EPOCHS,
        "batch_size": 64,
        "val_fraction": 0.5,
        "augment": {"padding": 1, "flip": False},
        "schedule": {"milestones": (2, 3), "factor": 0.5},
        "reparam": {},
    }
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        config |= {outer: config.get(outer, {}) | {inner: value} if inner else value}
    return config


def adam(**changes):
    return tiny(optimizer="adam", learning_rate=0.01, **changes)


def metrics(run):
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def timeless(summary):
    return {key: value for key, value in summary.items() if key not in TIMES}


def checkpoint(run, epoch):
    """The training state saved after an epoch, as nested dicts, lists and arrays."""
    return load_tree(run / "checkpoints" / str(epoch) / "state")


def epochs_kept(run):
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir())


def stopped_copy(run, destination):
    """A copy of a finished run as it was after epoch STOPPED."""
    shutil.copytree(run, destination)
    (destination / "summary.json").unlink()
    shutil.rmtree(destination / "folded")
    for epoch in epochs_kept(destination):
        if epoch > STOPPED:
            shutil.rmtree(destination / "checkpoints" / str(epoch))
    return destination


def assert_same_course(found, expected):
    """That two run folders hold the same losses, to 1e-5 of them, and the same accuracies, to the last image."""
    found, expected = metrics(found), metrics(expected)
    assert [line["epoch"] for line in found] == [line["epoch"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line["step"] == other["step"]
        for split in ("train", "val"):
            assert line[f"{split}_accuracy"] == other[f"{split}_accuracy"]
            np.testing.assert_allclose(line[f"{split}_loss"], other[f"{split}_loss"], rtol=1e-5)


def assert_same_bits(found, expected):
    found, expected = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, expected))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        leaf, other = np.asarray(leaf), np.asarray(expected[path])
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape), jax.tree_util.keystr(path)
        assert leaf.tobytes() == other.tobytes(), jax.tree_util.keystr(path)


def assert_same_run(found, expected):
    """That two run folders hold the same numbers: each metric and histogram, the last state, the folded network."""
    assert metrics(found) == metrics(expected)
    assert (found / "weights.jsonl").read_bytes() == (expected / "weights.jsonl").read_bytes()
    last = metrics(expected)[-1]["epoch"]
    assert_same_bits(checkpoint(found, last), checkpoint(expected, last))
    assert_same_bits(load_tree(found / "folded"), load_tree(expected / "folded"))
    summaries = (json.loads((run / "summary.json").read_text()) for run in (found, expected))
    assert timeless(next(summaries)) == timeless(next(summaries))
