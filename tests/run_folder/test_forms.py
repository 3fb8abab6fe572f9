"""The JSON files of a run folder: a file that no run writes is refused, with the file, the line and the name."""

import json
import math
import os
import re

import pytest

from tests.run_folder.examples import DATA, LAYER, PAIRS, SUMMARY
from wcjax.errors import InputError
from wcjax.run_folder import forms, read, read_lines

WEIGHTS = [{"epoch": epoch, "layers": {"stem": LAYER, "block1_0/conv1": LAYER}} for epoch in (0, 1)]
METRICS = [{"epoch": epoch, "val_accuracy": 1, "pairs": PAIRS} for epoch in (1, 2)]


def text(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_the_files_of_a_run_are_read_as_they_are(tmp_path):
    contents = {"summary.json": text(SUMMARY), "data.json": text(DATA), "weights.jsonl": text(*WEIGHTS)}
    contents["metrics.jsonl"] = text(*METRICS) + '{"epoch": 3, "torn'
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert (read(tmp_path, "summary.json"), read(tmp_path, "data.json")) == (SUMMARY, DATA)
    assert (read_lines(tmp_path, "weights.jsonl"), read_lines(tmp_path)) == (WEIGHTS, METRICS)
    assert (read(tmp_path, "failed.json"), read_lines(tmp_path / "none")) == (None, [])


def summary(name, value):
    return "summary.json", text(SUMMARY | {name: value}), f", {name}"


def data(name, value):
    return "data.json", text(DATA | {name: value}), f", {name}"


def layer(**changes):
    return second({"epoch": 1, "layers": {"stem": LAYER | changes}}, ", layers, stem")


def second(line, place=""):
    return "weights.jsonl", text({"epoch": 0, "layers": {"stem": LAYER}}, line), f", line 2{place}"


def pair(a):
    line = {"epoch": 1, "val_accuracy": 1, "pairs": {"stem": {"a": a, "b": 1.0}}}
    return "metrics.jsonl", text(line), ", line 1, pairs, stem, a"


def whole(content):
    return "summary.json", content, ""


WHOLE, SHARE = "a whole number of at least 0 is needed, found ", "a number from 0 to 1 is needed, found "
FINITE, LINE, OBJECT = "a finite number of at least 0 is needed", "a line of text is needed", "a JSON object is needed"
COUNTS, PAIR = "a list of 202 counts, not all 0 is needed", "a finite number, or 5 of them is needed"
WRONG = [
    (summary("best_epoch", 2.0), f"{WHOLE}2.0."),
    (summary("best_epoch", True), f"{WHOLE}True."),
    (summary("epochs", 10**400), f"{WHOLE}1000"),
    (summary("test_accuracy", 1.1), f"{SHARE}1.1."),
    (summary("test_accuracy", math.nan), f"{SHARE}nan."),
    (summary("train_seconds", math.inf), FINITE),
    (summary("train_seconds", "4"), FINITE),
    (summary("device", "cpu\n# Title"), LINE),
    (summary("device", "\ud800"), LINE),
    (summary("jax_version", None), LINE),
    (data("std", [-1, 1, 1]), "a list of 1 to 4 finite numbers of at least 0"),
    (data("train", None), OBJECT),
    (data("test", DATA["test"] | {"labels": "| x |"}), "16 hexadecimal digits is needed, found '| x |'"),
    (second([]), OBJECT),
    (second({"epoch": 1}), "layers is not what a run writes"),
    (second({"epoch": 1, "layers": {}}), "names of layers, []"),
    (second({"epoch": 1, "layers": {"$x$": LAYER}}), "names of layers, ['$x$']"),
    (second({"epoch": 1, "layers": {"head": LAYER}}), "the layers differ from the line before"),
    (second({"epoch": 0, "layers": {"stem": LAYER}}), "epoch 0 follows epoch 0"),
    (layer(std=-1), FINITE),
    (layer(histogram=[1]), COUNTS),
    (layer(histogram=[0] * 202), COUNTS),
    *((pair(a), PAIR) for a in ([1.0] * 4, [1.0] * 4 + [math.nan], [[1.0]] * 5, "1", None)),
    (whole("{"), "is not JSON"),
    (whole("[" * 100_000), "is not JSON (maximum recursion depth"),
    (whole("[" * 900 + "]" * 900), f"{OBJECT}, found [[[["),
    (whole("[" + "1," * 1000 + "1]"), "found [1, 1, 1, 1, 1, 1, ...]"),
]


@pytest.mark.parametrize("file, message", WRONG, ids=[f"{file[0]}{file[2]}: {message}" for file, message in WRONG])
def test_what_no_run_writes_is_named(tmp_path, file, message):
    name, content, place = file
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name) + place)}.*{re.escape(message)}"):
        read_lines(tmp_path, name) if name.endswith("l") else read(tmp_path, name)


def test_only_text_files_of_a_reasonable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(forms.MAX_BYTES + 1)
    for name, message in {
        "pipe": "file",
        "bytes": "text",
        "huge": "has 268,435,457 bytes; at most 268,435,456",
    }.items():
        with pytest.raises(InputError, match=f"{name} .*{message}"):
            forms.read_json(tmp_path / name)
