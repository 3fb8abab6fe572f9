"""Checks of a configuration, before any work."""

import math
from collections.abc import Mapping

import ml_collections

from wcjax import data, models, psi
from wcjax.config.build import INT32, make_model
from wcjax.config.keys import default_config, flat_config, to_python
from wcjax.errors import InputError, short_repr, unknown
from wcjax.reparam import BY_NAME

CHOICES = {
    "dataset": data.NAMES,
    "model": models.NAMES,
    "optimizer": ("sgd", "adam"),
    "dtype": ("float32", "bfloat16"),
    "reparam.name": (*BY_NAME, "none"),
    "reparam.learn": psi.LEARN_NETWORK,
}
RANGES = {  # inclusive
    "epochs": (1, INT32),
    "batch_size": (1, INT32),
    "train_images": (0, INT32),
    "split_seed": (0, INT32),
    "seed": (0, 2**32 - 1),  # jax.random.key takes 32 bits
    "checkpoint_seconds": (0, INT32),
    "checkpoint_every": (0, INT32),
    "keep_checkpoints": (1, INT32),
    "augment.padding": (0, 32),  # the compiled step grows with the number of crop offsets
    "image_size": (1, 4096),  # this and the next one are bounded because a run folder may come from anyone
    "data_workers": (0, 1024),
    "reparam.a": psi.RANGE,
    "reparam.b": psi.RANGE,
    "reparam.alpha": psi.RANGE,
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
}
OPEN_RANGES = {"val_fraction": (0, 1), "learning_rate": (0, math.inf), "schedule.factor": (0, math.inf)}


def check_config(config: Mapping) -> ml_collections.ConfigDict:
    """A complete copy of config: missing keys get their defaults.

    Raises:
      InputError: a key or a name that does not exist (with the nearest one), a wrong type, or a number out of range.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    full = default_config()
    _merge(full, config, prefix="")

    values = flat_config(full)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise unknown(f"config.{key}", values[key], choices)
    for key, (lowest, highest) in RANGES.items():
        _check_range(key, values[key], lowest, highest)
    for key, (lowest, highest) in OPEN_RANGES.items():
        _check_range(key, values[key], lowest, highest, open_ends=True)
    data_axis, fsdp = full.mesh.data, full.mesh.fsdp
    if min(data_axis, fsdp) < -1 or 0 in (data_axis, fsdp) or data_axis == fsdp == -1:
        raise InputError(
            f"config.mesh must have sizes of at least 1, one may be -1, found {short_repr(full.mesh.to_dict())}."
        )
    milestones = full.schedule.milestones
    if any(type(m) is not int or m < 1 for m in milestones) or list(milestones) != sorted(set(milestones)):
        raise InputError(
            "config.schedule.milestones must be epochs in rising order, like (60, 120), found "
            f"{short_repr(milestones)}."
        )
    for option in models.OPTIONS:
        default = default_config()[option]
        if option not in models.options(full.model) and full[option] != default:
            raise InputError(f"config.{option} must stay {default!r}: {full.model} has no such option.")
    try:
        make_model(full, num_classes=2)
    except ValueError as error:
        raise InputError(str(error)) from error
    return full


def _merge(full, changes, prefix):
    """Sets the keys of full that changes has, with their types checked."""
    for key, value in changes.items():
        if key not in full:
            raise unknown("config key", f"{prefix}{key}", [prefix + known for known in full])
        default, value = full[key], to_python(value)
        if isinstance(default, ml_collections.ConfigDict):
            if not isinstance(value, Mapping):
                keys = ", ".join(default)
                raise InputError(f"config.{prefix}{key} has its own keys ({keys}), found {short_repr(value)}.")
            _merge(default, value, prefix=f"{prefix}{key}.")
            continue
        kind = full.get_type(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**53 else math.inf  # float(10**400) raises
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if type(value) is not kind and not (value is default is None):
            raise InputError(
                f"config.{prefix}{key} must be of type {kind.__name__}, found {short_repr(value)} of type "
                f"{type(value).__name__}."
            )
        full[key] = value


def _check_range(key, value, lowest, highest, open_ends=False):
    inside = lowest < value < highest if open_ends else lowest <= value <= highest
    if inside and value != math.inf:
        return
    if highest == math.inf:
        allowed = f"a finite number {'above' if open_ends else 'of at least'} {lowest}"
    else:
        allowed = f"{'strictly ' if open_ends else ''}between {lowest} and {highest}"
    raise InputError(f"config.{key} must be {allowed}, found {short_repr(value)}.")
