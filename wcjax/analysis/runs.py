"""Run folders as records, and which of them may be compared with each other."""

import collections
import dataclasses
import json
import os
import pathlib
from typing import NamedTuple

from flax import traverse_util

from wcjax import run_folder
from wcjax.config.keys import MAY_DIFFER
from wcjax.errors import InputError
from wcjax.files import local_path, reading
from wcjax.reparam import BY_NAME

_FREE = ("seed", "reparam", *MAY_DIFFER)  # what may differ between runs of one setting
_TUNED = ("learning_rate", "weight_decay")  # and what may for the plain network, as a and b may for WC


class Run(NamedTuple):
    """One run folder. A run that diverged or could not start has a failure, one that is not finished has no summary."""

    path: pathlib.Path
    config: dict
    summary: dict | None
    failure: str | None  # why it will never finish
    data: dict | None = None  # the fingerprint of its data; None if it saw none, or is older than data.json
    tuned: bool = False  # a plain network with another learning rate or decay than the rest of its setting

    @property
    def reparam(self) -> str:
        described = describe_reparam(self.config["reparam"])
        if self.tuned:
            described += f", lr {self.config['learning_rate']:g}, decay {self.config['weight_decay']:g}"
        return described

    @property
    def method(self) -> str:
        return "plain tuned" if self.tuned else method(self.config["reparam"])


class Setting(NamedTuple):
    """Runs that differ in Ψ and seed alone, so that their accuracies can be compared, and tuned plain ones."""

    dataset: str  # 'cifar10', or 'cifar10-data-1' if there are runs on several data of that name
    model: str
    others: tuple  # ((key, value as JSON), ...) of every other key of the config
    runs: list[Run]


def find_runs(folders) -> list[Run]:
    """The runs in folders and below, sorted by path; a folder of a run is not searched further.

    Raises InputError for a folder that does not exist or cannot be read, and if there is no run at all.
    """
    found, left_out = search(folders)
    if not found:
        reasons = "".join(f" {path} was left out: {why}." for path, why in left_out.items())
        raise InputError(f"no run in {', '.join(map(str, folders))}: a run folder holds a config.json.{reasons}")
    return sorted(read_run(at) for at in found)


def search(folders) -> tuple[list[pathlib.Path], dict[pathlib.Path, str]]:
    """(run folders in folders and below, {path below that was left out: why}): links and what cannot be read."""
    found, left_out = {}, {}
    for folder in (local_path(folder, "RUNS") for folder in folders):
        with reading(folder):
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; give folders of runs.")
            os.listdir(folder)
        for at, below, files in os.walk(folder):
            at = pathlib.Path(at)
            if "config.json" in files or "failed.json" in files:
                below.clear()
                if denied := [at / name for name in files if ".json" in name and not os.access(at / name, os.R_OK)]:
                    left_out[at] = f"{denied[0]} cannot be read: permission denied"
                else:
                    found[at.resolve()] = at
            for path in (at / name for name in below + files):
                if path.is_symlink() and not path.is_file():
                    left_out[path] = f"a link to {os.readlink(path)}; give that folder too if its runs belong here"
                elif path.name in below and not os.access(path, os.R_OK | os.X_OK):
                    left_out[path] = "cannot be read: permission denied"
    return list(found.values()), {path: why for path, why in left_out.items() if path.resolve() not in found}


def read_run(folder) -> Run:
    """The run in a folder, with config.json, or with failed.json alone if it could not start."""
    folder = pathlib.Path(folder)
    config, summary, failed, data = (
        run_folder.read(folder, f"{name}.json") for name in ("config", "summary", "failed", "data")
    )
    if config is None and failed is None:
        raise InputError(f"{folder} holds no config.json: give the folder of a run.")
    config = run_folder.check_stored_config(failed["config"] if config is None else config, folder).to_dict()
    failure = " ".join(failed["reason"].split()) if failed and not summary else None
    return Run(folder, config, summary, failure, data and {key: data[key] for key in ("classes", "train", "test")})


def settings(runs: list[Run]) -> list[Setting]:
    """runs in groups that may be compared, sorted by data set and model.

    Plain runs that differ in learning rate and decay alone from one group with a Ψ join it as tuned ones. A run that
    ended before it saw its data joins any group of its config.
    """
    groups = collections.defaultdict(list)
    for run in sorted(runs, key=lambda run: run.data is None):
        config = _flat({key: value for key, value in run.config.items() if key not in _FREE})
        key = (*config, ("data", json.dumps(run.data)))
        if run.data is None and run.summary is None:
            key = next((other for other in groups if other[:-1] == config), key)
        groups[key].append(run)
    plain = [key for key, of in groups.items() if {run.method for run in of} == {"plain"}]
    for key in plain:
        beside = [other for other in groups if other not in plain and _without_tuned(other) == _without_tuned(key)]
        if len(beside) == 1:
            groups[beside[0]] += [run._replace(tuned=True) for run in groups.pop(key)]
    data = collections.defaultdict(list)
    for key, of in groups.items():
        if key[-1] not in data[of[0].config["dataset"]]:
            data[of[0].config["dataset"]].append(key[-1])

    def setting(key, of):
        name = of[0].config["dataset"]
        number = f"-data-{1 + data[name].index(key[-1])}" if len(data[name]) > 1 else ""
        return Setting(name + number, of[0].config["model"], key[:-1], of)

    return sorted(setting(key, of) for key, of in groups.items())


def _flat(nested):
    flat = traverse_util.flatten_dict(nested, sep=".")
    return tuple((key, json.dumps(flat[key])) for key in sorted(flat))


def _without_tuned(others):
    return [(key, value) for key, value in others if key not in _TUNED]


def differences(of: list[Setting]) -> dict[str, list[str]]:
    """{key: its values, one for each setting} for every key of the config in which settings differ."""
    return _differing([dict(setting.others) for setting in of])


def data_differences(runs: list[Run]) -> dict[str, list[str]]:
    """The same of the data of runs, with keys like 'train.images'."""
    return _differing([dict(_flat(run.data or {})) for run in runs])


def _differing(values):
    keys = sorted(set().union(*values)) if values else []
    rows = {key: [x.get(key, "-") for x in values] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def without_repeats(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """(runs, repeats): of runs with the same Ψ and seed, which are no new evidence, the first one stays."""
    first, repeats = {}, []
    for run in runs:
        if first.setdefault((run.reparam, run.config["seed"]), run) is not run:
            repeats.append(run)
    return list(first.values()), repeats


def method(reparam: dict) -> str:
    """The name in the paper's tables of the reparam of a config: one of `paper.METHODS`."""
    learned = "" if reparam["learn"] == "none" else f" learned {reparam['learn']}"
    names = {"none": "plain", "powerprop": "PP", "weightnorm": "WN", "arctan": "WC"}
    return names.get(reparam["name"], f"WC {reparam['name']}") + learned


def describe_reparam(reparam: dict) -> str:
    """'arctan(a=1, b=0.6)' for the reparam of a config."""
    name = reparam["name"]
    fields = dataclasses.fields(BY_NAME[name]) if name in BY_NAME else ()
    texts = [f"{f.name.replace('alpha', 'α')}={reparam[f.name]:g}" for f in fields if f.name in reparam]
    if reparam["learn"] != "none":
        texts.append(f"learned {reparam['learn']}")
    return f"{name}({', '.join(texts)})" if texts else name
