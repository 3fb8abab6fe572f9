"""The JSON of a run folder, which may come from anyone: the form that each file must have, and reading it."""

import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wcjax.errors import InputError, short_repr
from wcjax.files import reading

# The edges of the histograms of weights: 0.01·sinh(t) for 201 even t, as fine near zero (0.0007) as figure 4 needs, and
# as wide as plain weights grow.
EDGES = tuple(np.float32(0.01 * math.sinh(t)).item() for t in np.linspace(-1, 1, 201) * math.asinh(4 / 0.01))
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of a and b over the channels of a layer, in metrics.jsonl

MAX_BYTES = 2**28  # of a file; weights.jsonl of a ResNet50 has 20 MB after 200 epochs
MAX_LAYERS = 1000

CURE = " Restore the file, or give another run folder."


class Form(NamedTuple):
    """What one value in a file must be. The form of an object is a dict instead: {name: form of its value}."""

    name: str
    holds: Callable[[Any], bool]


EACH = object()  # a key of such a dict, which stands for the name of every layer
COUNT = Form("a whole number of at least 0", lambda x: type(x) is int and 0 <= x < 2**53)
NUMBER = Form("a finite number", lambda x: type(x) in (int, float) and abs(x) <= 1e30)  # larger ones overflow in plots
POSITIVE = Form("a finite number of at least 0", lambda x: NUMBER.holds(x) and x >= 0)
SHARE = Form("a number from 0 to 1", lambda x: NUMBER.holds(x) and 0 <= x <= 1)
TEXT = Form("a line of text", lambda x: type(x) is str and x.isprintable())
ANY_TEXT = Form("text", lambda x: type(x) is str)
OBJECT = Form("a JSON object", lambda x: type(x) is dict)
LEARNED = Form(
    f"a finite number, or {len(QUANTILES)} of them",
    lambda x: NUMBER.holds(x) or (type(x) is list and len(x) == len(QUANTILES) and all(map(NUMBER.holds, x))),
)
HISTOGRAM = Form(
    f"a list of {len(EDGES) + 1} counts, not all 0",
    lambda x: type(x) is list and len(x) == len(EDGES) + 1 and all(map(COUNT.holds, x)) and any(x),
)

NUMBERS = {
    "mean": NUMBER,
    "std": POSITIVE,
    "max": POSITIVE,
    "kurtosis": NUMBER,
    "below_0.01": SHARE,
    "below_tenth_of_std": SHARE,
}
SUMMARY = {
    "best_epoch": COUNT,
    "best_val_accuracy": SHARE,
    "test_accuracy": SHARE,
    "epochs": COUNT,
    "train_seconds": POSITIVE,
    "images_per_second": POSITIVE,
    "device": TEXT,
    "jax_version": TEXT,
}
CHANNELS = Form(
    "a list of 1 to 4 finite numbers of at least 0",
    lambda x: type(x) is list and 1 <= len(x) <= 4 and all(map(POSITIVE.holds, x)),
)
CHECKSUM = Form("16 hexadecimal digits", lambda x: type(x) is str and re.fullmatch("[0-9a-f]{16}", x))
SPLIT = {"images": COUNT, "labels": CHECKSUM, "content": CHECKSUM}
# The number of classes decides how much memory a network takes. ImageNet-21k has 21,841.
CLASSES = Form("a whole number from 1 to 1,000,000", lambda x: COUNT.holds(x) and 1 <= x <= 1_000_000)
DATA = {"classes": CLASSES, "train": SPLIT, "test": SPLIT, "mean": CHANNELS, "std": CHANNELS}
# Records of checkpoints: at the end of an epoch, and within one.
RECORD = {"epoch": COUNT, "best_epoch": COUNT, "best_val_accuracy": NUMBER, "train_seconds": POSITIVE}
RECORD_WITHIN = RECORD | {"seconds": POSITIVE}
CURVE = Form(
    "a list of [level, accuracy]",
    lambda x: type(x) is list and x and all(type(p) is list and len(p) == 2 and all(map(POSITIVE.holds, p)) for p in x),
)
ROBUSTNESS = {"images": COUNT, "accuracy": SHARE, "curves": {EACH: CURVE}}
PROGRESS = dict.fromkeys(("epoch", "epochs", "step", "steps_per_epoch"), COUNT)
PROGRESS |= dict.fromkeys(("loss", "images_per_second", "epoch_seconds_left", "seconds_left"), POSITIVE)
PROGRESS["accuracy"] = SHARE
FAILED = {"reason": ANY_TEXT, "config": OBJECT}
METRICS = {"epoch": COUNT, "val_accuracy": SHARE}
PAIRS = {"pairs": {EACH: {"a": LEARNED, "b": LEARNED}}}
WEIGHTS = {"epoch": COUNT, "layers": {EACH: {"histogram": HISTOGRAM} | NUMBERS}}


def read_json(path, form=OBJECT) -> dict:
    """The object in a JSON file. Raises InputError if the file is not JSON, or has another form."""
    return _parse(_text(path), form, str(path))


def read_lines(path, form) -> list[dict]:
    """The objects in the lines of a file, one for each epoch.

    A last line without a newline was cut off when the process was killed, and is ignored.

    Raises InputError for a line of another form, or one whose epoch is not later than the epoch of the line before, or
    whose layers differ.
    """
    values = []
    for number, line in enumerate(_text(path).split("\n")[:-1], start=1):
        at = f"{path}, line {number}"
        value = _parse(line, form, at)
        if "pairs" in value:
            check_form(value, PAIRS, at)
        if values and value["epoch"] <= values[-1]["epoch"]:
            raise InputError(f"{at}: epoch {value['epoch']} follows epoch {values[-1]['epoch']}.{CURE}")
        for each in ("layers", "pairs"):
            if values and value.get(each, {}).keys() != values[-1].get(each, {}).keys():
                raise InputError(f"{at}: the {each} differ from the line before.{CURE}")
        values.append(value)
    return values


def _text(path) -> str:
    """The content of a text file. Raises InputError if it is not a regular file (a pipe never ends) or is too large."""
    path = pathlib.Path(path)
    with reading(path):
        if not path.is_file():
            raise InputError(f"{path} is not a regular file.{CURE}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.{CURE}")
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise InputError(f"{path} is not UTF-8 text ({error}).{CURE}") from error


def _parse(text, form, at) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{at} is not JSON ({error}).{CURE}") from error
    check_form(value, form, at)
    return value


def check_form(value, form, at, then=CURE) -> None:
    """Raises InputError if value does not have the form. at: the place of the value; then: a sentence with the cure."""
    what, holds = OBJECT if isinstance(form, dict) else form
    if not holds(value):
        raise InputError(f"{at}: expected {what}, found {short_repr(value)}.{then}")
    if not isinstance(form, dict):
        return
    if EACH in form:
        # The names appear in plots, where a $ or a line break would have a meaning.
        if not 0 < len(value) <= MAX_LAYERS or not all(re.fullmatch(r"[\w./:-]{1,200}", name) for name in value):
            raise InputError(f"{at}: these are not layer names: {short_repr(list(value))}.{then}")
        form = dict.fromkeys(value, form[EACH])
    for name, inner in form.items():
        check_form(value.get(name), inner, f"{at}, {name}", then)
