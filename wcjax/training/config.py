"""The configuration of a run: every key with its default, and the checks that come before any work."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from ml_collections import config_dict

from wcjax import data, models
from wcjax.checks import LEARN_NETWORK
from wcjax.errors import InputError, shown, unknown
from wcjax.reparam import BY_NAME

REPARAMS = (*BY_NAME, "none")
OPTIMIZERS = ("sgd", "adam")
DTYPES = ("float32", "bfloat16")
# Say where and how; mesh changes roundings only.
MAY_DIFFER = ("data_dir", "data_workers", "checkpoint_every", "keep_checkpoints", "mesh")

INT32 = 2**31 - 1  # of steps and images
HIGHEST = {"image_size": 4096, "data_workers": 1024, "augment.padding": 4096}  # a config may come with a run folder

# Named choices of reparam.* that every config file offers after a comma: configs/cifar10.py:resnet18,plain
VARIANTS = {
    "wc": {"name": "arctan"},
    "arsinh": {"name": "arsinh"},
    "erf": {"name": "erf"},
    "learned": {"name": "arctan", "learn": "fine", "a": 0.5, "b": 1.0},
    "coarse": {"name": "arctan", "learn": "coarse", "a": 0.5, "b": 1.0},
    "channel": {"name": "arctan", "learn": "channel", "a": 0.5, "b": 1.0},  # ours, not the paper's
    "pp": {"name": "powerprop"},
    "wn": {"name": "weightnorm"},
    "plain": {"name": "none"},
}


class Config(ml_collections.ConfigDict):
    """A ConfigDict that takes numbers and bools of NumPy for those of Python."""

    def __setitem__(self, key, value):
        super().__setitem__(key, plain(value))


def plain(value):
    """value with Python's numbers instead of NumPy's, in tuples and lists too."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return tuple(value.tolist()) if value.ndim else value.item()
    if type(value) in (list, tuple):
        return type(value)(x.item() if isinstance(x, np.generic) else x for x in value)
    return value


def default_config() -> ml_collections.ConfigDict:
    """Every key of a run with its default value."""
    config = Config()

    config.dataset = "digits"  # one of wcjax.data.NAMES
    config.data_dir = ""  # where it lies: see wcjax.data.load
    config.val_fraction = 0.1  # share of the training images that is held out for validation
    config.split_seed = 0  # which images are held out; apart from `seed`, so that runs of other seeds are comparable
    config.augment = Config({"padding": 4, "flip": True})  # pixels of zeros around a random crop; horizontal flips
    # Of streamed sets (tiny_imagenet, imagenet), which have no held out part and no padding:
    config.image_size = 224  # height and width of the random resized crop, and of the centre crop of 256/224 of it
    config.data_workers = 0  # processes that decode; 0: a thread. The results do not depend on it

    config.model = "resnet8"  # one of wcjax.models.NAMES
    config.stem = "cifar"  # of ResNets: 'cifar' or 'imagenet'
    config.kernel_init = "kaiming"  # of ResNets and WRN: 'kaiming' (uniform, gain √2, fan-in) or 'torch' (its default)
    config.dropout = config_dict.placeholder(float)  # of WRN and VGG; None: the network's own, 0.3 and 0.5
    config.dtype = "float32"  # of the computation: 'float32' or 'bfloat16'

    config.reparam = Config({"name": "arctan", "a": 1.0, "b": 1.0, "alpha": 2.0, "learn": "none"})

    config.optimizer = "sgd"  # 'sgd', or 'adam', whose steps are scaled by Ψ′(v)
    config.learning_rate = 0.1  # for adam say 1e-3
    config.momentum = 0.9  # of sgd
    config.schedule = Config({"milestones": (), "factor": 0.1})  # the rate is times factor from each milestone on
    config.weight_decay = 1e-4  # λ: the gradient of w gets λ·w, before the step also with adam
    config.decay_norm_and_bias = True  # whether biases and batch norm decay too, as in torch's SGD

    config.epochs = 10
    config.batch_size = 128
    config.checkpoint_every = 0  # steps between checkpoints within an epoch; 0: only at its end
    config.keep_checkpoints = 2  # the newest ones that are kept, beside the two best on val
    config.seed = 0  # of the initial weights, the order of the images and their augmentation

    # Devices along each axis; -1: all that are left. Batches are sharded over both, large parameters over fsdp
    config.mesh = Config({"data": -1, "fsdp": 1})
    return config


def with_variant(config: ml_collections.ConfigDict, argument: str) -> ml_collections.ConfigDict:
    """config with the variant that stands after the comma of 'model,variant'; `wc` where there is none.

    Raises InputError for an unknown variant.
    """
    _, _, variant = argument.partition(",")
    variant = variant or "wc"
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    config.reparam.update(VARIANTS[variant])
    return config


def check_keys(keys: Iterable[str]) -> None:
    """Raises InputError for a key like 'reparam.aa' that no config has, with the nearest."""
    known = traverse_util.flatten_dict(default_config().to_dict(), sep=".")
    for key in keys:
        if inner := [k for k in known if k.startswith(f"{key}.")]:
            raise InputError(f"config.{key} has keys of its own: {', '.join(inner)}.")
        if key not in known:
            raise unknown("config key", key, known)


def check_config(config: Mapping) -> ml_collections.ConfigDict:
    """A complete copy of config: missing keys get their defaults.

    Raises:
      InputError: a key or a name that does not exist (with the nearest), a wrong type, or a number out of range.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    full = default_config()
    _merge(full, config, prefix="")

    _one_of(full, "dataset", data.NAMES)
    _one_of(full, "model", models.NAMES)
    _one_of(full, "optimizer", OPTIMIZERS)
    _one_of(full, "dtype", DTYPES)
    _one_of(full, "reparam.name", REPARAMS)
    _one_of(full, "reparam.learn", LEARN_NETWORK)
    lowest = {"epochs": 1, "batch_size": 1, "split_seed": 0, "augment.padding": 0}
    lowest |= {"image_size": 1, "data_workers": 0, "checkpoint_every": 0, "keep_checkpoints": 1}
    for key, least in lowest.items():
        _in_range(full, key, least, HIGHEST.get(key, INT32))
    data_axis, fsdp = full.mesh.data, full.mesh.fsdp
    if min(data_axis, fsdp) < -1 or 0 in (data_axis, fsdp) or data_axis == fsdp == -1:
        raise InputError(
            f"config.mesh must have sizes of at least 1, one may be -1, found {shown(full.mesh.to_dict())}."
        )
    _in_range(full, "seed", 0, 2**32 - 1)  # jax.random.key takes no more bits
    _in_range(full, "val_fraction", 0, 1, open_ends=True)
    _in_range(full, "learning_rate", 0, math.inf, open_ends=True)
    _in_range(full, "schedule.factor", 0, math.inf, open_ends=True)
    _in_range(full, "momentum", 0, 1)
    _in_range(full, "weight_decay", 0, math.inf)
    milestones = full.schedule.milestones
    if any(type(m) is not int or m < 1 for m in milestones) or list(milestones) != sorted(set(milestones)):
        raise InputError(
            f"schedule.milestones must be epochs in rising order, like (60, 120), found {shown(milestones)}."
        )
    for option in set(models.OPTIONS) - set(models.options(full.model)):
        if full[option] != (default := default_config()[option]):
            raise InputError(f"config.{option} must stay {default!r}: {full.model} has no such option.")
    try:
        make_model(full, num_classes=2)
    except ValueError as error:
        raise InputError(str(error)) from error
    for key in ("reparam.a", "reparam.b", "reparam.alpha"):
        _in_range(full, key, 1e-6, 1e6)  # beyond, float32 does not carry Ψ
    return full


def check_stored(config: Mapping, path) -> ml_collections.ConfigDict:
    """`check_config` for a config that was found in the file `path`, which the errors name."""
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def make_psi(config):
    """The Ψ that config.reparam names: Arctan, Arsinh, Erf, PowerProp, WeightNorm or None. ValueError: out of range."""
    if config.reparam.name == "none":
        return None
    cls = BY_NAME[config.reparam.name]
    return cls(**{f.name: config.reparam[f.name] for f in dataclasses.fields(cls) if f.name in config.reparam})


def make_model(config, num_classes: int, plain: bool = False):
    """The network of config; plain=True leaves Ψ out, for folded weights."""
    options = {name: config[name] for name in models.options(config.model) if config[name] is not None}
    psi, learn = (None, "none") if plain else (make_psi(config), config.reparam.learn)
    return models.create(config.model, num_classes, psi, learn, jnp.dtype(config.dtype), **options)


def load_dataset(config) -> data.Dataset:
    """The data set of config. Raises InputError where it cannot be read or is smaller than a batch."""
    dataset = data.load(
        config.dataset,
        config.data_dir or None,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
    )
    found = dataset.train.num_images
    if found < config.batch_size:
        raise InputError(f"config.batch_size is {config.batch_size}, but {config.dataset} has {found} training images.")
    return dataset


def _merge(full, given, prefix):
    for key, value in given.items():
        if key not in full:
            raise unknown("config key", f"{prefix}{key}", [prefix + known for known in full])
        default, value = full[key], plain(value)
        if isinstance(default, ml_collections.ConfigDict):
            if not isinstance(value, Mapping):
                keys = ", ".join(default)
                raise InputError(f"config.{prefix}{key} has keys of its own ({keys}), found {shown(value)}.")
            _merge(default, value, prefix=f"{prefix}{key}.")
            continue
        if full.get_type(key) is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**53 else math.inf  # float(10**400) raises, and so on
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        kind = full.get_type(key)
        if type(value) is not kind and not (value is default is None):
            raise InputError(
                f"config.{prefix}{key} must be of type {kind.__name__}, found {shown(value)} of type "
                f"{type(value).__name__}."
            )
        full[key] = value


def _get(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def _one_of(config, key, known):
    value = _get(config, key)
    if value not in known:
        raise unknown(f"config.{key}", value, known)


def _in_range(config, key, lowest, highest, open_ends=False):
    value = _get(config, key)
    inside = lowest < value < highest if open_ends else lowest <= value <= highest
    if not inside or value == math.inf:
        ends = "strictly between" if open_ends else "between"
        raise InputError(f"config.{key} must be {ends} {lowest} and {highest}, found {shown(value)}.")
