"""Weights to and from safetensors files."""

import os

import numpy as np

from wcjax.errors import InputError
from wcjax.exchange.mappings import check_like, flatten, unflatten
from wcjax.extras import needs
from wcjax.system.files import atomic_write

# The dtypes that both the format and its NumPy loader know.
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = ("bool", *_INTEGERS, "float16", "bfloat16", "float32", "float64")


def save_safetensors(path, variables) -> None:
    """Writes nested mappings of arrays to one file, under names such as 'params/stem/kernel'; no pickle.

    Shapes, dtypes (including bfloat16) and bits are kept. The file appears by one rename, so a failure leaves an older
    file as it was.

    Raises:
      InputError: a leaf is not an array or has a dtype that the format lacks; a name is empty or contains a '/';
        safetensors is not installed.
      OSError: the file cannot be written.
    """
    safetensors = _safetensors()
    leaves = flatten(variables)
    _check_leaves(leaves)
    # safetensors writes memory in its order, so a transposed view has to be copied; order='C' keeps the shape ()
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    try:
        content = safetensors.numpy.save(arrays)
    except (safetensors.SafetensorError, UnicodeEncodeError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    with atomic_write(path) as file:
        file.write(content)


def load_safetensors(path, like=None) -> dict:
    """Nested dicts of NumPy arrays from any safetensors file, its names split at '/'.

    like: if not None, the result has passed `check_like(result, like)`.

    Raises:
      InputError: the file does not exist or is damaged; it does not fit `like`; safetensors is not installed.
    """
    safetensors = _safetensors()
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} cannot be read as safetensors: it is not a file.")  # reading a pipe would never end
    try:
        arrays = safetensors.numpy.load_file(path)
    # AttributeError: a dtype that NumPy lacks. ValueError: a shape that NumPy refuses.
    except (safetensors.SafetensorError, OSError, AttributeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    variables = unflatten(arrays, path)
    if like is not None:
        check_like(variables, like, f"the arrays in {path}")
    return variables


def _check_leaves(leaves):
    """Raises InputError if one of the leaves, {name: array}, would not come back from a file."""
    for name, leaf in leaves.items():
        if not hasattr(leaf, "__array__") or str(leaf.dtype) not in DTYPES:
            kind = leaf.dtype if hasattr(leaf, "__array__") else f"a {type(leaf).__name__} without values"
            raise InputError(f"{name} is {kind}; a file can hold arrays of {', '.join(DTYPES)}.")
        if name == "__metadata__":
            raise InputError("__metadata__ cannot be the name of an array in a safetensors file.")


def _safetensors():
    needs("a .safetensors file", "exchange")
    import safetensors.numpy

    return safetensors
