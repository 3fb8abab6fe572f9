"""Weights to and from safetensors files."""

import numpy as np

from wcjax.errors import InputError
from wcjax.exchange.mappings import check_like, flatten, unflatten
from wcjax.extras import needs
from wcjax.files import replacing


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
    # safetensors writes memory in its order, so a transposed view has to be copied; order='C' keeps the shape ()
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flatten(variables).items()}
    try:
        content = safetensors.numpy.save(arrays)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    with replacing(path) as file:
        file.write(content)


def load_safetensors(path, like=None) -> dict:
    """Nested dicts of NumPy arrays from any safetensors file, its names split at '/'.

    like: if not None, the result has passed `check_like(result, like)`.

    Raises:
      InputError: the file does not exist or is damaged; it does not fit `like`; safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, AttributeError) as error:  # AttributeError: a dtype NumPy lacks
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    variables = unflatten(arrays, path)
    if like is not None:
        check_like(variables, like, f"the arrays in {path}")
    return variables


def _safetensors():
    needs("a .safetensors file", "exchange")
    import safetensors.numpy

    return safetensors
