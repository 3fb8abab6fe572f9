"""The data that a run is trained on: what data.json keeps of it, and the comparison with the data found later."""

import json
import pathlib

import numpy as np

from wcjax import processes, run_folder
from wcjax.data import Dataset
from wcjax.data.dataset import checksum
from wcjax.errors import InputError


def check_data(run, dataset: Dataset, splits=("train", "test")) -> tuple[Dataset, dict]:
    """(dataset with the mean and std of the run, content of data.json) of a run that begins, resumes or is evaluated.

    data.json holds `Dataset.fingerprint`, 'mean' and 'std'. A run that has none yet gets those of dataset.

    Args:
      run: the run folder.
      dataset: the data found.
      splits: the splits that are used. 'val' is held out of 'train', and in a streamed set the same as 'test'.

    Raises:
      InputError: dataset is not the data of the run, with what differs; or processes that share a run found different
        data.
    """
    official = {"val": "test" if dataset.streamed else "train"}
    found = dataset.fingerprint(sorted({official.get(name, name) for name in splits}))
    stored = run_folder.read(run, "data.json")
    if not processes.all_agree(checksum(json.dumps(found).encode())):
        raise InputError(
            f"{run}: the processes of this run found different data. Give each of them the same files in data_dir."
        )
    if stored is None:
        return dataset, found | {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    if differing := differences(stored, found):
        raise InputError(
            f"{run}: the data found differ from the data that the run was trained on: {'; '.join(differing)}. "
            "Give that data as data_dir, or train in a new folder."
        )
    mean, std = np.float32(stored["mean"]), np.float32(stored["std"])
    if mean.shape != dataset.mean.shape or std.shape != dataset.std.shape:
        path = pathlib.Path(run, "data.json")
        raise InputError(f"{path}: mean and std must have {len(dataset.mean)} numbers, one for each channel.")
    return dataset._replace(mean=mean, std=std), stored


def differences(stored: dict, found: dict) -> list[str]:
    """What differs between the fingerprint of a run and that of other data, in words. found may lack splits."""
    lines = []
    if stored["classes"] != found["classes"]:
        lines.append(f"{stored['classes']:,} classes in the run, {found['classes']:,} found")
    for split in ("train", "test"):
        one, other = stored[split], found.get(split, stored[split])
        if one["images"] != other["images"]:
            lines.append(f"{one['images']:,} {split} images in the run, {other['images']:,} found")
        elif one["content"] != other["content"]:
            lines.append(f"other {split} images (in their pixels, or in the names and sizes of their files)")
        elif one["labels"] != other["labels"]:
            lines.append(f"other labels of the {split} images")
    return lines
