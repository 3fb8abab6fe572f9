"""Run folders written by hand, in no time, because analysis reads folders and nothing else; and a trained one."""

import json

import numpy as np
import pytest

from tests.run_folder.examples import DATA, LAYER, SUMMARY
from tests.training.conftest import compilation_cache, tiny_network, tiny_run  # noqa: F401
from wcjax.config import default_config, with_variant
from wcjax.run_folder.schema import EDGES

LAYERS = ("stem", "block1_0/conv1", "block10_0/conv1", "head")
UNIFORM = np.bincount(np.searchsorted(EDGES, np.random.default_rng(0).uniform(-1, 1, 2000)), minlength=len(EDGES) + 1)
CURVES = {"train_loss": 0.5, "val_loss": 0.6, "learning_rate": 0.1}
PAIRS = {"fine": {"a": 1.1, "b": 1.0}, "channel": {"a": [0.9, 1.0, 1.1, 1.2, 1.3], "b": [1.0] * 5}}


@pytest.fixture
def write_run(tmp_path):
    """write_run(name, variant, seed, test_accuracy, ..., key=value) makes the folder tmp_path / 'runs' / name.

    Its weights are uniform in (-1, 1). Without a test_accuracy the run is not finished, and without train_images it has
    no data.json. val_accuracy: of its summary. reparam: changes of the variant. key=value: changes of the config.
    """

    def write(
        name, variant, seed=0, test_accuracy=None, *, val_accuracy=0.9, reparam=None, train_images=1437, **changes
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = with_variant(default_config(), f"resnet8,{variant}").to_dict() | {"seed": seed} | changes
        config["reparam"] |= reparam or {}
        write_lines(folder / "config.json", config)
        if train_images is not None:
            write_lines(folder / "data.json", DATA | {"train": DATA["train"] | {"images": train_images}})
        layers = dict.fromkeys(LAYERS, LAYER | {"histogram": UNIFORM.tolist()})
        write_lines(folder / "weights.jsonl", *({"epoch": epoch, "layers": layers} for epoch in range(3)))
        pair = PAIRS.get(config["reparam"]["learn"])
        line = CURVES | {"val_accuracy": val_accuracy} | ({"pairs": dict.fromkeys(LAYERS, pair)} if pair else {})
        write_lines(folder / "metrics.jsonl", *({"epoch": epoch} | line for epoch in (1, 2)))
        if test_accuracy is not None:
            accuracies = {"best_val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
            write_lines(folder / "summary.json", SUMMARY | accuracies)
        return folder

    return write


@pytest.fixture
def write_runs(write_run):
    """write_runs(name, variant, accuracies, ...) makes name0, name1, ..., whose seeds are 0, 1, ..."""

    def write(name, variant, accuracies, **options):
        for seed, accuracy in enumerate(accuracies):
            write_run(f"{name}{seed}", variant, seed, accuracy, **options)

    return write


def write_lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
