"""TinyImageNet and ImageNet from a local path; both are streamed, and evaluated on their official validation split."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from wcjax.data import folder, tfds
from wcjax.data.records import Records
from wcjax.data.splits import Dataset
from wcjax.errors import InputError

NAMES = ("tiny_imagenet", "imagenet")
# Of ImageNet's training images, as everywhere (torchvision, timm, tensorflow/models); also taken for TinyImageNet.
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def read(name, data_dir):
    """Returns the Dataset called `name`; see `wcjax.data.load`. `val` and `test` are the same official split.

    Raises:
      InputError: nothing is there, or what is there cannot be used.
    """
    check_installed(name)
    if not data_dir:
        raise InputError(f"{name} needs data_dir. {_how_to_get(name, 'DIR')}")
    path = Path(os.path.expanduser(data_dir))
    if not path.is_dir():
        raise InputError(f"{name}: there is no directory {path}. {_how_to_get(name, path)}")

    if name == "tiny_imagenet":
        if not any((p / "wnids.txt").is_file() for p in (path, path / folder.TINY_IMAGENET)):
            raise InputError(f"{name}: {path} does not hold wnids.txt. {_how_to_get(name, path)}")
        train, val, num_classes = folder.tiny_imagenet(path)
    elif prepared := tfds.newest_version(path / "imagenet2012"):
        train, val = Records(str(prepared), "train"), Records(str(prepared), "validation")
        num_classes = train.num_classes
    elif (path / "train").is_dir():
        train, val, num_classes = folder.class_per_folder(path)
    else:
        raise InputError(
            f"{name}: {path} holds neither train/ nor imagenet2012/<version>/dataset_info.json. "
            f"{_how_to_get(name, path)}"
        )
    return Dataset(train, val, val, num_classes, MEAN, STD)


def check_installed(name):
    # Optional dependencies, which only streamed data sets need.
    missing = [module for module in ("grain", "PIL", "simplejpeg") if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"{name}: streaming images needs packages that are not installed ({', '.join(missing)}). "
            "Run: pip install 'wcjax[stream]'"
        )


def _how_to_get(name, directory):
    """Says how to make what `read` looks for."""
    if name == "tiny_imagenet":
        return (
            "Unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) and pass as data_dir the "
            f"folder {folder.TINY_IMAGENET}, or the one it lies in."
        )
    return (
        "Pass as data_dir a folder with train/<class>/<image> and val/<class>/<image>. Or download the ILSVRC 2012 "
        "archives from image-net.org into downloads/manual below the directory and prepare them once (needs "
        "TensorFlow):\n"
        "    pip install 'wcjax[prepare]'\n"
        f"    {tfds.prepare_command('imagenet2012', directory)}\n"
        f"and pass data_dir='{directory}'."
    )
