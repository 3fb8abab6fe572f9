"""The configuration of a run: every key with its default."""

from collections.abc import Iterable

import ml_collections
import numpy as np
from flax import traverse_util
from ml_collections import config_dict

from wcjax.errors import InputError, unknown

# Keys that may change when a run resumes: they say where and how it runs. Only mesh changes results, by rounding, as a
# CPU with another number of cores does.
MAY_DIFFER = ("data_dir", "data_workers", "checkpoint_seconds", "checkpoint_every", "keep_checkpoints", "mesh")

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
    """A ConfigDict that converts the numbers and bools of NumPy to Python's."""

    def __setitem__(self, key, value):
        super().__setitem__(key, to_python(value))


def to_python(value):
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
    config.data_dir = ""  # its folder or file: see wcjax.data.load
    config.val_fraction = 0.1  # share of the training images that is held out for validation
    config.train_images = 0  # how many of the remaining training images are used, the first ones in order; 0: all
    config.split_seed = 0  # which images are held out: not `seed`, so that runs with different seeds are comparable
    config.augment = Config({"padding": 4, "flip": True})  # zeros around the image before a random crop, in pixels
    # For streamed data sets (tiny_imagenet, imagenet), which have no held-out part and no padding:
    config.image_size = 224  # height and width of the random resized crop, and of the centre crop of 256/224 of it
    config.data_workers = 0  # processes that decode images; 0: a thread. The results are the same

    config.model = "resnet8"  # one of wcjax.models.NAMES
    config.stem = "cifar"  # for ResNets: 'cifar' or 'imagenet'
    config.kernel_init = "kaiming"  # for ResNets and WRN: 'kaiming' (uniform, gain √2, fan-in) or 'torch' (its default)
    config.dropout = config_dict.placeholder(float)  # for WRN and VGG; None: the network's default, 0.3 and 0.5
    config.dtype = "float32"  # of the computation: 'float32' or 'bfloat16'

    # name: 'arctan', 'arsinh' or 'erf' (which take a and b), 'powerprop' (alpha), 'weightnorm' or 'none'.
    # learn: 'none', 'fine' (a pair a, b for each layer), 'channel' (for each output channel) or 'coarse' (one for all).
    config.reparam = Config({"name": "arctan", "a": 1.0, "b": 1.0, "alpha": 2.0, "learn": "none"})

    config.optimizer = "sgd"  # 'sgd' or 'adam'; the steps of adam are scaled by Ψ′(v)
    config.learning_rate = 0.1  # for adam, try 1e-3
    config.momentum = 0.9  # for sgd
    # After each epoch in milestones, the learning rate is multiplied by factor.
    config.schedule = Config({"milestones": (), "factor": 0.1})
    config.weight_decay = 1e-4  # λ: λ·w is added to the gradient of w, for adam too
    config.label_smoothing = 0.0  # ε: the target of a class is ε / number of classes, and 1 − ε more for the label
    config.decay_norm_and_bias = True  # whether biases and batch norm decay too, as in torch's SGD

    config.epochs = 10
    config.batch_size = 128
    # Least seconds between two epochs that are saved; 0: each epoch is saved. The best and the last one may be closer.
    config.checkpoint_seconds = 30
    config.checkpoint_every = 0  # steps between checkpoints within an epoch; 0: none within an epoch
    config.keep_checkpoints = 2  # how many of the newest are kept, in addition to the two best on val of those saved
    config.seed = 0  # for the initial weights, the order of the images and their augmentation

    # Devices along each axis; -1: all remaining ones. Batches are sharded over both axes, large parameters over fsdp.
    config.mesh = Config({"data": -1, "fsdp": 1})
    return config


def with_variant(config: ml_collections.ConfigDict, argument: str) -> ml_collections.ConfigDict:
    """config with the variant that follows the comma in 'model,variant'; by default `wc`.

    Raises InputError for an unknown variant.
    """
    _, _, variant = argument.partition(",")
    variant = variant or "wc"
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    config.reparam.update(VARIANTS[variant])
    return config


def flat_config(config: ml_collections.ConfigDict) -> dict:
    """{'reparam.a': 1.0, ...}: the values of config by their whole keys."""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def check_keys(keys: Iterable[str]) -> None:
    """Raises InputError for a key like 'reparam.aa' that no config has. The message names the nearest key."""
    known = flat_config(default_config())
    for key in keys:
        if inner := [k for k in known if k.startswith(f"{key}.")]:
            raise InputError(f"config.{key} has its own keys: {', '.join(inner)}.")
        if key not in known:
            raise unknown("config key", key, known)
