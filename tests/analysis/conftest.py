"""Run folders written by hand, in no time: analysis reads folders and nothing else."""

import json

import numpy as np
import pytest

from wcjax.config import default_config, with_variant
from wcjax.run_folder.forms import EDGES, NUMBERS

LAYERS = {"stem": (3, 3, 1, 16), "block1_0/conv1": (3, 3, 16, 16), "block10_0/conv1": (3, 3, 16, 16), "head": (16, 10)}
SUMMARY = {"best_epoch": 2, "best_val_accuracy": 0.9, "test_loss": 0.1, "epochs": 2, "train_seconds": 4.6}
SUMMARY |= {"images_per_second": 2827.3, "num_parameters": 77754, "device": "cpu", "jax_version": "0.10.2"}


@pytest.fixture
def write_run(tmp_path):
    """write_run(name, variant, seed, test_accuracy, ..., key=value) makes the folder tmp_path / 'runs' / name.

    Its weights are uniform in (-1, 1). Without a test_accuracy the run is not finished, and without train_images it has
    no data.json. val_accuracy: of its summary. reparam: changes of the variant. key=value: changes of the config.
    """

    def write(name, variant, seed=0, test_accuracy=None, **changes):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        val_accuracy, reparam = changes.pop("val_accuracy", 0.9), changes.pop("reparam", {})
        train_images = changes.pop("train_images", 1437)
        config = with_variant(default_config(), f"resnet8,{variant}").to_dict() | {"seed": seed} | changes
        config["reparam"] |= reparam
        write_lines(folder / "config.json", config)
        if train_images is not None:
            split = {"images": train_images, "labels": "0123456789abcdef", "content": "0" * 16}
            data = {"classes": 10, "train": split, "test": split | {"images": 360}, "mean": [0.5], "std": [0.5]}
            write_lines(folder / "data.json", data)
        draw = np.random.default_rng(seed)
        weights = [
            {"epoch": epoch, "layers": {name: numbers(draw, LAYERS[name]) for name in LAYERS}} for epoch in range(3)
        ]
        write_lines(folder / "weights.jsonl", *weights)
        quantiles = {"a": [0.9, 1.0, 1.1, 1.2, 1.3], "b": [1.0] * 5}  # over the channels of a layer
        pair = {"fine": {"a": 1.1, "b": 1.0}, "channel": quantiles}.get(config["reparam"]["learn"])
        pairs = {"pairs": dict.fromkeys(LAYERS, pair)} if pair else {}
        curves = {"val_accuracy": val_accuracy, "train_loss": 0.5, "val_loss": 0.6, "learning_rate": 0.1}
        write_lines(folder / "metrics.jsonl", *({"epoch": i} | curves | pairs for i in (1, 2)))
        if test_accuracy is not None:
            summary = SUMMARY | {"best_val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
            write_lines(folder / "summary.json", summary)
        return folder

    return write


def numbers(draw, shape):
    w = np.float32(draw.uniform(-1, 1, shape)).ravel()
    histogram = np.bincount(np.searchsorted(EDGES, w), minlength=len(EDGES) + 1)
    return dict.fromkeys(NUMBERS, 0.5) | {"histogram": histogram.tolist(), "max": float(abs(w).max())}


def write_lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
