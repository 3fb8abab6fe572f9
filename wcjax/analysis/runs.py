"""Run folders as records, and which of them may be compared with each other."""

import collections
import dataclasses
import itertools
import json
import logging
import os
import pathlib
from typing import NamedTuple

from flax import traverse_util

from wcjax import run_folder
from wcjax.config.keys import MAY_DIFFER
from wcjax.errors import InputError
from wcjax.reparam import BY_NAME
from wcjax.system.files import reading
from wcjax.system.paths import local_path

log = logging.getLogger(__name__)

# Keys that may differ between the runs of one setting. Those from reparam to label_smoothing make variants of a method.
_FREE = ("seed", "reparam", "learning_rate", "weight_decay", "label_smoothing", *MAY_DIFFER)


class RunRecord(NamedTuple):
    """What a run folder holds. A run that diverged or could not start has a failure, an unfinished one no summary."""

    path: pathlib.Path
    config: dict
    summary: dict | None
    failure: str | None  # why it will never finish
    data: dict | None = None  # the fingerprint of its data; None if it never read them, or is older than data.json

    @property
    def method(self) -> str:
        return method_name(self.config["reparam"]) + (", label smoothing" if self.config["label_smoothing"] else "")

    @property
    def reparam(self) -> str:
        return describe_reparam(self.config["reparam"])

    @property
    def tuning(self) -> str:
        smoothing = f", smoothing {self.config['label_smoothing']:g}" if self.config["label_smoothing"] else ""
        return f"{self.config['learning_rate']:g}, {self.config['weight_decay']:g}{smoothing}"

    @property
    def variant(self) -> tuple[str, str, str]:
        """What runs that differ only in their seeds have in common."""
        return self.method, self.reparam, self.tuning


class Setting(NamedTuple):
    """Runs whose accuracies can be compared: they differ only in Ψ, learning rate, decay, label smoothing and seed."""

    dataset: str  # 'cifar10', or 'cifar10-data-1' if there are runs on different data of that name
    model: str
    others: tuple  # ((key, value as JSON), ...) of every other key of the config
    runs: list[RunRecord]
    letter: str = ""  # 'A', 'B', ... if several settings have this data set and network

    @property
    def name(self) -> str:
        """'resnet18 on cifar10', or 'resnet18 on cifar10 (A)' with a letter."""
        return f"{self.model} on {self.dataset}" + (f" ({self.letter})" if self.letter else "")


def find_runs(folders) -> tuple[list[RunRecord], dict[pathlib.Path, str]]:
    """(the runs in folders and their subfolders, sorted by path, {omitted path: why}).

    A run folder is not searched further. Links, unreadable paths, and subfolders whose files are not those of a run are
    omitted and logged.

    Raises:
      InputError: a given folder does not exist, cannot be read or holds such files; there is no run at all.
    """
    runs, omitted = {}, {}
    for folder in (local_path(folder, "RUNS") for folder in folders):
        with reading(folder):
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder; give folders of runs.")
            os.listdir(folder)
        for path, subfolders, files in os.walk(folder):
            path = pathlib.Path(path)
            if "config.json" in files or "failed.json" in files:
                subfolders.clear()
                run = _run_or_fault(path, files, is_given=path == folder)
                if isinstance(run, str):
                    omitted[path] = run
                else:
                    runs[path.resolve()] = run
            omitted |= _links_and_closed_folders(path, subfolders, files)
    omitted = {path: why for path, why in omitted.items() if path.resolve() not in runs}
    if not runs:
        reasons = "".join(f" {path} was omitted: {why}." for path, why in omitted.items())
        raise InputError(f"no run in {', '.join(map(str, folders))}: a run folder holds a config.json.{reasons}")
    for path, why in omitted.items():
        log.warning("omitted: %s: %s", path, why)
    return sorted(runs.values()), omitted


def _run_or_fault(path, files, is_given) -> RunRecord | str:
    """The run in a folder, or why it is omitted. Raises InputError for a fault in a folder that the user gave."""
    if closed := [path / name for name in files if ".json" in name and not os.access(path / name, os.R_OK)]:
        return f"{closed[0]} cannot be read: permission denied"
    try:
        return read_run(path)
    except InputError as error:
        if is_given:
            raise
        return str(error).removeprefix(f"{path}: ")


def _links_and_closed_folders(path, subfolders, files) -> dict[pathlib.Path, str]:
    """{path: why it is omitted} of the links to folders, and of the subfolders that cannot be read."""
    omitted = {}
    for entry in (path / name for name in subfolders + files):
        if entry.is_symlink() and not entry.is_file():
            omitted[entry] = f"a link to {os.readlink(entry)}; give that folder too if its runs belong here"
        elif entry.name in subfolders and not os.access(entry, os.R_OK | os.X_OK):
            omitted[entry] = "cannot be read: permission denied"
    return omitted


def read_run(folder) -> RunRecord:
    """The run in a folder that has a config.json, or a failed.json alone if the run could not start."""
    folder = pathlib.Path(folder)
    config, summary, failed, data = (
        run_folder.read(folder, f"{name}.json") for name in ("config", "summary", "failed", "data")
    )
    if config is None and failed is None:
        raise InputError(f"{folder} holds no config.json: give the folder of a run.")
    config = run_folder.check_stored_config(failed["config"] if config is None else config, folder).to_dict()
    failure = " ".join(failed["reason"].split()) if failed and not summary else None
    data = data and {key: data[key] for key in ("classes", "train", "test")}
    return RunRecord(folder, config, summary, failure, data)


def group_by_setting(runs: list[RunRecord]) -> list[Setting]:
    """The settings of runs, sorted by data set and model.

    A run that ended before it read its data joins any setting of its config.
    """
    groups = collections.defaultdict(list)  # {(config without _FREE, data): runs}
    for run in sorted(runs, key=lambda run: run.data is None):
        others = _flat({key: value for key, value in run.config.items() if key not in _FREE})
        data = json.dumps(run.data)
        if run.data is None and run.summary is None:
            data = next((known for keys, known in groups if keys == others), data)
        groups[others, data].append(run)

    data_numbers = collections.defaultdict(dict)  # {data set: {its data: number, from 1}}
    for (_, data), members in groups.items():
        numbers = data_numbers[members[0].config["dataset"]]
        numbers.setdefault(data, len(numbers) + 1)

    settings = []
    for (others, data), members in groups.items():
        dataset, model = members[0].config["dataset"], members[0].config["model"]
        numbers = data_numbers[dataset]
        name = f"{dataset}-data-{numbers[data]}" if len(numbers) > 1 else dataset
        settings.append(Setting(name, model, others, members))

    return _with_letters(sorted(settings))


def _with_letters(settings):
    lettered = []
    for _, group in itertools.groupby(settings, key=lambda s: (s.dataset, s.model)):
        group = list(group)
        lettered += [s._replace(letter=_letter(i)) for i, s in enumerate(group)] if len(group) > 1 else group
    return lettered


def _letter(i):
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def _flat(nested) -> tuple:
    flat = traverse_util.flatten_dict(nested, sep=".")
    return tuple((key, json.dumps(flat[key])) for key in sorted(flat))


def differences(settings: list[Setting]) -> dict[str, list[str]]:
    """{key: its values, one for each setting} for every key of the config in which settings differ."""
    return _differing([dict(setting.others) for setting in settings])


def data_differences(runs: list[RunRecord]) -> dict[str, list[str]]:
    """{key: its values, one for each run} for every key such as 'train.images' in which the data of runs differ."""
    return _differing([dict(_flat(run.data or {})) for run in runs])


def _differing(columns: list[dict[str, str]]) -> dict[str, list[str]]:
    rows = {key: [column.get(key, "-") for column in columns] for key in sorted(set().union(*columns))}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def finished_and_repeats(runs: list[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """(finished runs, repeats). Of several finished runs of one variant and seed, all but the first are repeats."""
    first, repeats = {}, []
    for run in (run for run in runs if run.summary):
        if first.setdefault((run.variant, run.config["seed"]), run) is not run:
            repeats.append(run)
    return list(first.values()), repeats


def method_name(reparam: dict) -> str:
    """The name of the reparam of a config in the paper's tables: one of `paper.METHODS`."""
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
