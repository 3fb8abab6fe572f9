"""The JSON files of a run folder: a file that no run writes is refused, with the file, the line and the name."""

import json
import math
import os
import re

import pytest

from tests.run_folder.examples import LAYER, PAIRS, SUMMARY
from wcjax.errors import InputError
from wcjax.run_folder import forms, read, read_lines


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_the_files_of_a_run_are_read_as_they_are(tmp_path):
    weights = [{"epoch": epoch, "layers": {"stem": LAYER, "block1_0/conv1": LAYER}} for epoch in (0, 1)]
    metrics = [{"epoch": epoch, "val_accuracy": 1, "pairs": PAIRS} for epoch in (1, 2)]
    write(tmp_path / "summary.json", SUMMARY)
    write(tmp_path / "weights.jsonl", *weights)
    with write(tmp_path / "metrics.jsonl", *metrics).open("a") as file:
        file.write('{"epoch": 3, "torn')
    assert read(tmp_path, "summary.json") == SUMMARY
    assert read_lines(tmp_path, "weights.jsonl") == weights
    assert read_lines(tmp_path) == metrics
    assert (read(tmp_path, "data.json"), read_lines(tmp_path / "none")) == (None, [])


WHOLE, SHARE = "a whole number of at least 0 is needed, found", "a number from 0 to 1 is needed, found"
FINITE, LINE = "a finite number of at least 0 is needed, found", "a line of text is needed, found"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("best_epoch", 2.0, f"{WHOLE} 2.0."),
        ("best_epoch", True, f"{WHOLE} True."),
        ("epochs", 10**400, f"{WHOLE} 1000"),
        ("test_accuracy", 1.1, f"{SHARE} 1.1."),
        ("test_accuracy", math.nan, f"{SHARE} nan."),
        ("train_seconds", math.inf, f"{FINITE} inf."),
        ("train_seconds", "4", f"{FINITE} '4'."),
        ("device", "cpu\n# Title", rf"{LINE} 'cpu\n# Title'."),
        ("device", "\ud800", rf"{LINE} '\ud800'."),
        ("jax_version", None, f"{LINE} None."),
    ],
)
def test_a_value_that_no_summary_has_is_named(tmp_path, name, value, message):
    path = write(tmp_path / "summary.json", SUMMARY | {name: value})
    with pytest.raises(InputError, match=re.escape(f"{path}, {name} is not what a run writes: {message}")):
        read(tmp_path, "summary.json")


@pytest.mark.parametrize(
    "line, message",
    [
        ([], r"line 2 is not what a run writes: a JSON object is needed, found \[\]"),
        ({"epoch": 1}, "line 2, layers is not what a run writes: a JSON object is needed, found None"),
        ({"epoch": 1, "layers": {}}, r"line 2, layers is not what a run writes: .* names of layers, \[\]"),
        ({"epoch": 1, "layers": {"$x$": LAYER}}, r"names of layers, \['\$x\$'\]"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"std": -1}}}, "line 2, layers, stem, std is not what a run writes"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"histogram": [1]}}}, "a list of 202 counts, not all 0 is needed"),
        ({"epoch": 1, "layers": {"stem": LAYER | {"histogram": [0] * 202}}}, "a list of 202 counts, not all 0 is"),
        ({"epoch": 1, "layers": {"head": LAYER}}, "line 2: the layers differ from the line before"),
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
        (b"\xff", "x.json is .* text "),
        (b"[" + b"1," * 1000 + b"1]", r"found \[1, 1, 1, 1, 1, 1, ...\]"),
    ],
    ids=["torn", "too deep", "deep", "bytes", "long"],
)
def test_a_file_without_an_object_is_named_in_short(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        forms.read_json(tmp_path / "x.json")


def test_a_pipe_and_a_huge_file_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is .* file"):
        forms.read_json(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(forms.MAX_BYTES + 1)
    with pytest.raises(InputError, match="huge has 268,435,457 bytes; at most 268,435,456 are read"):
        forms.read_json(tmp_path / "huge")
