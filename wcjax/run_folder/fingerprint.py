"""The data of a run: its fingerprint in data.json, and the comparison with the data of a later start."""

import json
import pathlib

import numpy as np

from wcjax import run_folder
from wcjax.data import Dataset
from wcjax.data.dataset import checksum
from wcjax.errors import InputError
from wcjax.system import processes


def checked_dataset(folder, dataset: Dataset, splits=("train", "test")) -> tuple[Dataset, dict]:
    """(dataset with the mean and std of the run, content of data.json) of a run that begins, resumes or is evaluated.

    data.json holds `Dataset.fingerprint`, 'mean' and 'std'. If a run has no data.json yet, it gets one from dataset.

    Args:
      folder: the run folder.
      dataset: the data of this start.
      splits: the splits that are used. 'val' is held out of 'train', and in a streamed set it is the same as 'test'.

    Raises:
      InputError: dataset differs from the data of the run (the message says how), or processes that share a run have
        different data.
    """
    source = {"train": "train", "val": "test" if dataset.streamed else "train", "test": "test"}
    fingerprint = dataset.fingerprint(sorted({source[split] for split in splits}))
    stored = run_folder.read(folder, "data.json")
    if not processes.all_agree(checksum(json.dumps(fingerprint).encode())):
        raise InputError(
            f"{folder}: the processes of this run found different data. Give each of them the same files in data_dir."
        )
    if stored is None:
        return dataset, fingerprint | {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    if differing := differences(stored, fingerprint):
        raise InputError(
            f"{folder}: the data found differ from the data that the run was trained on: {'; '.join(differing)}. "
            "Give that data as data_dir, or train in a new folder."
        )
    mean, std = np.float32(stored["mean"]), np.float32(stored["std"])
    if mean.shape != dataset.mean.shape or std.shape != dataset.std.shape:
        path = pathlib.Path(folder, "data.json")
        raise InputError(f"{path}: mean and std must have {len(dataset.mean)} numbers, one for each channel.")
    return dataset._replace(mean=mean, std=std), stored


def differences(stored: dict, found: dict) -> list[str]:
    """How the fingerprint of the data found differs from the stored one of the run, in words. found may lack splits."""
    lines = []
    if stored["classes"] != found["classes"]:
        lines.append(f"{stored['classes']:,} classes in the run, {found['classes']:,} found")
    for split in (name for name in ("train", "test") if name in found):
        old, new = stored[split], found[split]
        if old["images"] != new["images"]:
            lines.append(f"{old['images']:,} {split} images in the run, {new['images']:,} found")
        elif old["content"] != new["content"]:
            lines.append(f"other {split} images (in their pixels, or in the names and sizes of their files)")
        elif old["labels"] != new["labels"]:
            lines.append(f"other labels of the {split} images")
    return lines
