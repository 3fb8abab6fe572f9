"""What is in the JSON files of a run folder."""

from wcjax.run_folder.schema import EDGES

LAYER = {"histogram": [1] * (len(EDGES) + 1), "mean": 0.0, "std": 1.0, "max": 3.0, "kurtosis": 0.1}
LAYER |= {"below_0.01": 0.1, "below_tenth_of_std": 0.2}
SUMMARY = {"best_epoch": 2, "best_val_accuracy": 0.9, "test_accuracy": 0.8, "epochs": 2, "test_loss": 0.5}
SUMMARY |= {"train_seconds": 4.5, "images_per_second": 100.0, "device": "cpu", "jax_version": "0.10.2"}
PAIRS = {"stem": {"a": 1.0, "b": -2}, "head": {"a": [0.5, 0.6, 0.7, 0.8, 0.9], "b": [1.0] * 5}}
SPLIT = {"images": 9, "labels": "0123456789abcdef", "content": "0" * 16}
DATA = {"classes": 10, "train": SPLIT, "test": SPLIT, "mean": [0.5], "std": [0.5]}
