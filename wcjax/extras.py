"""The packages that only a part of wcjax needs, by the extra of pyproject.toml that installs them."""

import importlib.util
import sys

from wcjax.errors import InputError

_FLAX = {"flax": "flax"}
_TRAIN = _FLAX | {  # without tensorboardX: a run writes no events if it is missing
    "absl": "absl-py",
    "matplotlib": "matplotlib",
    "ml_collections": "ml_collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "tqdm": "tqdm",
}
EXTRAS = {  # {extra: {module: what pip calls it}}
    "flax": _FLAX,
    "train": _TRAIN,
    "sweep": _TRAIN | {"optuna": "optuna"},
    "data": {"tensorflow_datasets": "tensorflow-datasets", "array_record": "array_record", "PIL": "pillow"},
    "stream": {"grain": "grain", "simplejpeg": "simplejpeg", "PIL": "pillow", "tqdm": "tqdm"},
    "exchange": {"safetensors.numpy": "safetensors"},
}


class MissingExtra(InputError, ModuleNotFoundError):
    """A package of an extra is not installed. The message names the package and the extra."""


def needs(what: str, extra: str, *modules: str) -> None:
    """Raises MissingExtra if `what` cannot work, because a package of an extra is not installed.

    A package of wcjax calls this before it imports what it needs. If `python -m` is importing that package to find the
    program in it, the process ends with the message instead of a traceback.

    modules: those that `what` needs; by default all modules of the extra.
    """
    packages = EXTRAS[extra]
    missing = [packages[module] for module in modules or packages if not _is_installed(module)]
    if not missing:
        return
    message = f"{what} needs {', '.join(missing)}: pip install 'wcjax[{extra}]'"
    if sys.argv[:1] == ["-m"]:
        sys.exit(f"error: {message}")
    raise MissingExtra(message)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package of the module
        return False
