"""The run folder, the only interface between training and everything after it: its files by name.

    config.json      the whole config
    data.json        the fingerprint of the data set, and the mean and std that normalize its images
    metrics.jsonl    one line for each epoch: loss, accuracy, learning rate, images/s
    weights.jsonl    one line for each epoch: how the weights of each layer are distributed
    progress.json    the progress of a run that trains
    summary.json     the result, once the run is finished
    failed.json      the reason, if the run can never finish; written by sweeps
    robustness.json  accuracy after changes of weights and images; written by `wcjax.analysis.robustness`
    checkpoints/     the training state after some epochs, see `wcjax.run_folder.checkpoints`
    midway/          checkpoints within an epoch, see `wcjax.training.run_checkpoints`
    folded/          the best weights as plain w
    tensorboard/     the numbers of each epoch for TensorBoard
    .lock            held by the process that trains, see `wcjax.run_folder.lock`

Run folders are untrusted input, so every file is validated when it is read.
"""

import json
import pathlib

from flax import traverse_util
from ml_collections import ConfigDict

from wcjax.config.checks import check_config
from wcjax.config.keys import MAY_DIFFER, default_config
from wcjax.errors import InputError
from wcjax.run_folder import json_files, schema
from wcjax.system.files import reading, write_json

_JSON_SCHEMAS = {
    "config.json": schema.OBJECT,
    "data.json": schema.DATA,
    "progress.json": schema.PROGRESS,
    "summary.json": schema.SUMMARY,
    "failed.json": schema.FAILED,
    "robustness.json": schema.ROBUSTNESS,
}
_LINE_SCHEMAS = {"metrics.jsonl": schema.METRICS, "weights.jsonl": schema.WEIGHTS}


def read(folder, name: str) -> dict | None:
    """The content of a JSON file of a run folder, None if there is no such file. Raises InputError."""
    path = pathlib.Path(folder, name)
    return json_files.read_json(path, _JSON_SCHEMAS[name]) if _exists(path) else None


def read_lines(folder, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of metrics.jsonl or weights.jsonl, one dict for each epoch. A last line that was cut off is omitted."""
    path = pathlib.Path(folder, name)
    return json_files.read_epochs(path, _LINE_SCHEMAS[name]) if _exists(path) else []


def read_config(folder) -> ConfigDict:
    """The config of a run, checked. Raises InputError if the folder holds none."""
    if (config := read(folder, "config.json")) is None:
        raise InputError(f"{folder} is not a run folder: it has no config.json.")
    return check_stored_config(config, pathlib.Path(folder, "config.json"))


def check_stored_config(config: dict, path) -> ConfigDict:
    """`check_config` of a config that was read from `path`, which errors name."""
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_matches(folder, config: ConfigDict) -> None:
    """Raises InputError if the folder holds anything but a run of config; it says how the configs differ."""
    stored = read(folder, "config.json")
    if stored is None and (failed := read(folder, "failed.json")):  # a run that could not start
        stored = failed["config"]
    if stored is None:
        if _exists(pathlib.Path(folder, "checkpoints")):
            raise InputError(f"workdir {folder} holds checkpoints but no config.json; give a new folder.")
        return
    defaults, requested = (json.loads(json.dumps(x.to_dict())) for x in (default_config(), config))
    defaults, stored, requested = (traverse_util.flatten_dict(x, sep=".") for x in (defaults, stored, requested))
    stored = defaults | stored  # a key that is younger than the run
    keys = [key for key in sorted(stored | requested) if key.split(".")[0] not in MAY_DIFFER]
    if differing := [key for key in keys if stored.get(key) != requested.get(key)]:
        rows = "\n".join(f"  {k}: {stored.get(k)!r} in the folder, {requested.get(k)!r} asked for" for k in differing)
        raise InputError(
            f"workdir {folder} holds a run with another config:\n{rows}\nGive a new folder, or that config."
        )


def write(folder, name: str, value: dict) -> None:
    """Writes a JSON file of a run folder, atomically. Raises SaveError."""
    assert name in _JSON_SCHEMAS
    write_json(pathlib.Path(folder, name), value)


def _exists(path) -> bool:
    with reading(path):
        return path.exists()
