"""Run folders written by hand, in no time: analysis reads folders and nothing else."""

import copy
import json

import numpy as np
import pytest

from wcjax.config import default_config, with_variant
from wcjax.training.weights import describe

LAYERS = {"stem": (3, 3, 1, 16), "block1_0/conv1": (3, 3, 16, 16), "block10_0/conv1": (3, 3, 16, 16), "head": (16, 10)}


@pytest.fixture
def write_run():
    """write_run(folder, variant, seed, test_accuracy, ..., key=value) makes a folder as train leaves it.

    train_images: of the data, which are not known where it is None.
    """

    def write(
        folder,
        variant,
        seed,
        test_accuracy=None,
        val_accuracy=0.9,
        epochs=2,
        reparam=None,
        train_images=1437,
        **changes,
    ):
        folder.mkdir(parents=True)
        config = with_variant(default_config(), f"resnet8,{variant}").to_dict() | {"seed": seed} | changes
        config["reparam"] |= reparam or {}
        (folder / "config.json").write_text(json.dumps(config))
        if train_images is not None:
            split = {"images": train_images, "labels": "0123456789abcdef", "content": "0" * 16}
            found = {"classes": 10, "train": split, "test": split | {"images": 360}, "mean": [0.5], "std": [0.5]}
            (folder / "data.json").write_text(json.dumps(found))
        draw = np.random.default_rng(seed)
        with (folder / "weights.jsonl").open("w") as file:
            for epoch in range(epochs + 1):
                drawn = {name: describe(np.float32(draw.uniform(-1, 1, shape))) for name, shape in LAYERS.items()}
                layers = {name: {key: x.tolist() for key, x in of.items()} for name, of in sorted(drawn.items())}
                file.write(json.dumps({"epoch": epoch, "layers": layers}) + "\n")
        with (folder / "metrics.jsonl").open("w") as file:
            for epoch in range(1, epochs + 1):
                line = {"epoch": epoch, "val_accuracy": val_accuracy}
                if (learn := config["reparam"]["learn"]) in ("fine", "channel"):
                    a = 1 + epoch / 10
                    pair = {"a": [a - 0.2, a - 0.1, a, a + 0.1, a + 0.2], "b": [1.0] * 5}  # quantiles over channels
                    pair = {"a": a, "b": 1.0} if learn == "fine" else pair
                    line["pairs"] = {name: pair for name in sorted(LAYERS)}
                file.write(json.dumps(line) + "\n")
        if test_accuracy is not None:
            summary = copy.copy(SUMMARY) | {"best_val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


SUMMARY = {
    "best_epoch": 2,
    "test_loss": 0.1,
    "epochs": 2,
    "train_seconds": 4.6,
    "images_per_second": 2827.3,
    "num_parameters": 77754,
    "device": "cpu",
    "jax_version": "0.10.2",
}
