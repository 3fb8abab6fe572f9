"""The schema of each file of a run folder, which may come from anyone."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wcjax.errors import InputError, short_repr

# The edges of the histograms of weights: 0.01·sinh(t) for 201 even t, as fine near zero (0.0007) as figure 4 needs, and
# as wide as plain weights grow.
EDGES = tuple(np.float32(0.01 * math.sinh(t)).item() for t in np.linspace(-1, 1, 201) * math.asinh(4 / 0.01))
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of a and b over the channels of a layer, in metrics.jsonl

MAX_NAMES = 1000

RESTORE_HINT = " Restore the file, or give another run folder."


class Schema(NamedTuple):
    """What one value in a file must be. The schema of an object is a dict instead: {name: schema of its value}."""

    description: str
    accepts: Callable[[Any], bool]


EACH = object()  # a key of a schema's dict that stands for every name, of a layer or of a change
COUNT = Schema("a whole number of at least 0", lambda x: type(x) is int and 0 <= x < 2**53)
# The number of classes decides how much memory a network takes. ImageNet-21k has 21,841.
CLASSES = Schema("a whole number from 1 to 1,000,000", lambda x: COUNT.accepts(x) and 1 <= x <= 1_000_000)
# Larger numbers overflow in plots.
NUMBER = Schema("a number of at most 1e30 in magnitude", lambda x: type(x) in (int, float) and abs(x) <= 1e30)
NON_NEGATIVE = Schema("a finite number of at least 0", lambda x: NUMBER.accepts(x) and x >= 0)
SHARE = Schema("a number from 0 to 1", lambda x: NUMBER.accepts(x) and 0 <= x <= 1)
LINE = Schema("a line of text", lambda x: type(x) is str and x.isprintable())
TEXT = Schema("text", lambda x: type(x) is str)
CHECKSUM = Schema("16 hexadecimal digits", lambda x: type(x) is str and re.fullmatch("[0-9a-f]{16}", x))
OBJECT = Schema("a JSON object", lambda x: type(x) is dict)
CHANNELS = Schema(
    "a list of 1 to 4 finite numbers of at least 0",
    lambda x: type(x) is list and 1 <= len(x) <= 4 and all(map(NON_NEGATIVE.accepts, x)),
)
LEARNED = Schema(
    f"a finite number, or {len(QUANTILES)} of them",
    lambda x: NUMBER.accepts(x) or (type(x) is list and len(x) == len(QUANTILES) and all(map(NUMBER.accepts, x))),
)
HISTOGRAM = Schema(
    f"a list of {len(EDGES) + 1} counts, not all 0",
    lambda x: type(x) is list and len(x) == len(EDGES) + 1 and all(map(COUNT.accepts, x)) and any(x),
)
CURVE = Schema(
    "a list of [level, accuracy]",
    lambda x: (
        type(x) is list and x and all(type(p) is list and len(p) == 2 and all(map(NON_NEGATIVE.accepts, p)) for p in x)
    ),
)

# The files, in the order of `wcjax.run_folder`.
SPLIT = {"images": COUNT, "labels": CHECKSUM, "content": CHECKSUM}
DATA = {"classes": CLASSES, "train": SPLIT, "test": SPLIT, "mean": CHANNELS, "std": CHANNELS}
METRICS = {"epoch": COUNT, "val_accuracy": SHARE}
PAIRS = {"pairs": {EACH: {"a": LEARNED, "b": LEARNED}}}  # in metrics.jsonl, if the run learns them
LAYER_STATISTICS = {
    "mean": NUMBER,
    "std": NON_NEGATIVE,
    "max": NON_NEGATIVE,
    "kurtosis": NUMBER,
    "below_0.01": SHARE,
    "below_tenth_of_std": SHARE,
}
WEIGHTS = {"epoch": COUNT, "layers": {EACH: {"histogram": HISTOGRAM} | LAYER_STATISTICS}}
PROGRESS = dict.fromkeys(("epoch", "epochs", "step", "steps_per_epoch"), COUNT)
PROGRESS |= dict.fromkeys(("loss", "images_per_second", "epoch_seconds_left", "seconds_left"), NON_NEGATIVE)
PROGRESS["accuracy"] = SHARE
SUMMARY = {
    "best_epoch": COUNT,
    "best_val_accuracy": SHARE,
    "test_accuracy": SHARE,
    "epochs": COUNT,
    "train_seconds": NON_NEGATIVE,
    "images_per_second": NON_NEGATIVE,
    "device": LINE,
    "jax_version": LINE,
}
FAILED = {"reason": TEXT, "config": OBJECT}
ROBUSTNESS = {"images": COUNT, "accuracy": SHARE, "curves": {EACH: CURVE}}
# Records of checkpoints: at the end of an epoch, and midway in one.
CHECKPOINT = {"epoch": COUNT, "best_epoch": COUNT, "best_val_accuracy": NUMBER, "train_seconds": NON_NEGATIVE}
MIDWAY_CHECKPOINT = CHECKPOINT | {"seconds": NON_NEGATIVE}


def check_schema(value, schema, at: str, hint: str = RESTORE_HINT) -> None:
    """Raises InputError if value does not have this schema. at: the place of the value. hint: ends the message."""
    description, accepts = OBJECT if isinstance(schema, dict) else schema
    if not accepts(value):
        raise InputError(f"{at}: expected {description}, found {short_repr(value)}.{hint}")
    if not isinstance(schema, dict):
        return
    if EACH in schema:
        # The names appear in plots, where a $ or a line break would have a meaning.
        if not 0 < len(value) <= MAX_NAMES or not all(re.fullmatch(r"[\w./:-]{1,200}", name) for name in value):
            raise InputError(
                f"{at}: expected 1 to {MAX_NAMES:,} names of letters, digits and _ . / : -, "
                f"found {short_repr(list(value))}.{hint}"
            )
        schema = dict.fromkeys(value, schema[EACH])
    for name, inner in schema.items():
        check_schema(value.get(name), inner, f"{at}, {name}", hint)
