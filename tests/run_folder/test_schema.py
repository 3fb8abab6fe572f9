"""The JSON files of a run folder: a file that no run writes is refused, with the file, the line and the name."""

import json
import math
import os
import re

import pytest

from tests.run_folder.examples import DATA, LAYER, SUMMARY
from wcjax.errors import InputError
from wcjax.run_folder import json_files, read, read_lines
from wcjax.run_folder.schema import OBJECT


def text(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def summary(name, value, needed):
    return "summary.json", text(SUMMARY | {name: value}), f", {name}: expected {needed}, found "


def second(line, message):
    """A second line of weights.jsonl."""
    return "weights.jsonl", text({"epoch": 0, "layers": {"stem": LAYER}}, line), f", line 2{message}"


def layer(**changes):
    return second({"epoch": 1, "layers": {"stem": LAYER | changes}}, ", layers, stem, .*: expected ")


def pair(a):
    line = {"epoch": 1, "val_accuracy": 1, "pairs": {"stem": {"a": a, "b": 1.0}}}
    return "metrics.jsonl", text(line), ", line 1, pairs, stem, a: expected a finite number, or 5 of them, found "


WRONG = [
    summary("best_epoch", True, "a whole number of at least 0"),
    summary("epochs", 10**400, "a whole number of at least 0"),
    summary("test_accuracy", 1.1, "a number from 0 to 1"),
    summary("test_accuracy", math.nan, "a number from 0 to 1"),
    summary("train_seconds", "4", "a finite number of at least 0"),
    summary("train_seconds", math.inf, "a finite number of at least 0"),
    summary("device", "cpu\n# Title", "a line of text"),
    (
        "data.json",
        text(DATA | {"std": [-1, 1, 1]}),
        ", std: expected a list of 1 to 4 finite numbers of at least 0",
    ),
    ("data.json", text(DATA | {"classes": 0}), ", classes: expected a whole number from 1 to 1,000,000, found 0"),
    ("data.json", text(DATA | {"classes": 1_000_001}), ", classes: expected a whole number from 1 to 1,000,000"),
    ("data.json", text(DATA | {"train": None}), ", train: expected a JSON object, found None"),
    ("data.json", text(DATA | {"test": SUMMARY}), ", test, .*: expected "),
    second({"epoch": 1, "layers": {}}, ", layers: expected 1 to 1,000 names of .*, found "),
    second({"epoch": 1, "layers": {"$x$": LAYER}}, r", layers: expected 1 to 1,000 names of .*, found \['\$x\$'\]"),
    second({"epoch": 1, "layers": {"head": LAYER}}, ": the layers differ from the line before"),
    second({"epoch": 0, "layers": {"stem": LAYER}}, ": epoch 0 follows epoch 0"),
    layer(std=-1),
    layer(histogram=[1]),
    layer(histogram=[0] * 202),
    *(pair(a) for a in ([1.0] * 4, [1.0] * 4 + [math.nan], None)),
    ("summary.json", "{", " is not JSON"),
    ("summary.json", "[" * 100_000, r" is not JSON \(maximum recursion depth"),
    ("summary.json", "[" * 900 + "]" * 900, r".*expected a JSON object, found \[\[\[\["),
    ("summary.json", "[" + "1," * 1000 + "1]", r".*found \[1, 1, 1, 1, 1, 1, ...\]"),
]


@pytest.mark.parametrize("name, content, message", WRONG, ids=[message for _, _, message in WRONG])
def test_values_that_no_run_writes_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name))}{message}"):
        read_lines(tmp_path, name) if name.endswith("l") else read(tmp_path, name)


def test_only_text_files_of_a_reasonable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(json_files.MAX_BYTES + 1)
    for name, message in {"pipe": "not a regular", "bytes": "not UTF-8", "huge": "at most 268,435,456 are"}.items():
        with pytest.raises(InputError, match=f"{name} .*{message}"):
            json_files.read_json(tmp_path / name, OBJECT)
