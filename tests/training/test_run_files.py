"""The JSON files of a run folder: what no run writes is refused by file, line and name."""

import json
import math
import os
import re

import pytest

from wcjax.errors import InputError
from wcjax.run_folder import forms as run_files
from wcjax.run_folder import read_lines
from wcjax.training.weights import EDGES

SUMMARY = {"best_epoch": 2, "best_val_accuracy": 0.9, "test_accuracy": 0.8, "epochs": 3}
SUMMARY |= {"train_seconds": 4.5, "images_per_second": 100, "device": "cpu", "jax_version": "0.10.2"}
LAYER = {"histogram": [1] * (len(EDGES) + 1), "mean": 0.0, "std": 1.0, "max": 3.0, "kurtosis": 0.1}
LAYER |= {"below_0.01": 0.1, "below_tenth_of_std": 0.2}


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_what_a_run_writes_is_read_as_it_is(tmp_path):
    assert run_files.read_json(write(tmp_path / "summary.json", SUMMARY), run_files.SUMMARY) == SUMMARY
    weights = [{"epoch": epoch, "layers": {"stem": LAYER, "block1_0/conv1": LAYER}} for epoch in (0, 1)]
    write(tmp_path / "weights.jsonl", *weights)
    assert read_lines(tmp_path, "weights.jsonl") == weights
    pairs = {"stem": {"a": 1.0, "b": -2}, "head": {"a": [0.5, 0.6, 0.7, 0.8, 0.9], "b": [1.0] * 5}}
    metrics = [{"epoch": epoch, "val_accuracy": 1, "pairs": pairs} for epoch in (1, 2)]
    write(tmp_path / "metrics.jsonl", *metrics)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "torn')
    assert read_lines(tmp_path) == metrics


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("best_epoch", 2.0, "best_epoch is not what a run writes: a whole number of at least 0 is needed, found 2.0."),
        ("best_epoch", True, "a whole number of at least 0 is needed, found True."),
        ("epochs", 10**400, "a whole number of at least 0 is needed, found 1000"),
        ("test_accuracy", 1.1, "test_accuracy is not what a run writes: a number from 0 to 1 is needed, found 1.1."),
        ("test_accuracy", math.nan, "a number from 0 to 1 is needed, found nan."),
        ("train_seconds", math.inf, "a finite number of at least 0 is needed, found inf."),
        ("train_seconds", "4", "a finite number of at least 0 is needed, found '4'."),
        ("device", "cpu\n# Title", r"device is not what a run writes: a line of text is needed, found 'cpu\n# Title'."),
        ("device", "\ud800", r"a line of text is needed, found '\ud800'."),
        ("jax_version", None, "jax_version is not what a run writes: a line of text is needed, found None."),
    ],
)
def test_a_number_of_the_summary_that_none_has_is_named(tmp_path, name, value, message):
    path = write(tmp_path / "summary.json", SUMMARY | {name: value})
    with pytest.raises(InputError, match=re.escape(message)) as error:
        run_files.read_json(path, run_files.SUMMARY)
    assert str(error.value).startswith(f"{path}, {name} ")


@pytest.mark.parametrize(
    "line, message",
    [
        ([], r"line 2 is not what a run writes: a JSON object is needed, found \[\]"),
        ({"epoch": 1}, "line 2, layers is not what a run writes: a JSON object is needed, found None"),
        ({"epoch": 1, "layers": {}}, r"line 2, layers is not what a run writes: these are no layers' names, \[\]"),
        ({"epoch": 1, "layers": {"$x$": LAYER}}, r"these are no layers' names, \['\$x\$'\]"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"std": -1}}}, "line 2, layers, stem, std is not what a run writes"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"histogram": [1]}}}, "a list of 202 counts, not all 0 is needed"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"histogram": [0] * 202}}}, "a list of 202 counts, not all 0 is"),
        ({"epoch": 1, "layers": {"head": LAYER}}, "line 2: layers are not those of the line before"),
        ({"epoch": 0, "layers": {"stem": LAYER}}, "line 2: epoch 0 follows epoch 0"),
    ],
)
def test_a_line_that_no_run_writes_is_named(tmp_path, line, message):
    write(tmp_path / "weights.jsonl", {"epoch": 0, "layers": {"stem": LAYER}}, line)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path, "weights.jsonl")


@pytest.mark.parametrize("a", [[1.0] * 4, [1.0] * 4 + [math.nan], [[1.0]] * 5, "1", None], ids=str)
def test_a_learned_pair_is_a_number_or_five_quantiles(tmp_path, a):
    write(tmp_path / "metrics.jsonl", {"epoch": 1, "val_accuracy": 1, "pairs": {"stem": {"a": a, "b": 1.0}}})
    with pytest.raises(InputError, match="line 1, pairs, stem, a is not .*: a finite number, or 5 of them is needed"):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "x.json is not JSON "),
        (b"[" * 100_000, r"x.json is not JSON \(maximum recursion depth"),
        (b"[" * 900 + b"]" * 900, r"x.json is not what a run writes: a JSON object is needed, found \[\[\[\[\["),
        (b"\xff", "x.json is no text "),
        (b"[" + b"1," * 1000 + b"1]", r"found \[1, 1, 1, 1, 1, 1, ...\]"),
    ],
    ids=["torn", "too deep", "deep", "bytes", "long"],
)
def test_what_is_no_object_is_named_and_shown_in_short(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        run_files.read_json(tmp_path / "x.json")


def test_a_pipe_and_a_huge_file_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no file; give another folder"):
        run_files.read_json(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(run_files.MAX_BYTES + 1)
    with pytest.raises(InputError, match="huge has 268,435,457 bytes; at most 268,435,456 are read"):
        run_files.read_json(tmp_path / "huge")
