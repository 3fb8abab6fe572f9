"""Weights to and from files of other programs: safetensors, and torchvision's ResNets.

A run keeps its best network, folded to plain weights, in the Orbax folder `folded/`, which
`wcjax.training.evaluate.load_folded` reads. To hand those weights on:

    model, variables = load_folded(run)
    io.save_safetensors("weights.safetensors", variables)                       # for JAX
    io.save_safetensors("torch.safetensors", io.to_torchvision(variables))      # for torch: safetensors.torch.load_file
"""

import os
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.errors import InputError
from wcjax.params import Reparameterized

_SHOWN = 4  # names listed in an error
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # (in, out) -> (out, in), HWIO -> OIHW
_TO_JAX = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_TORCH_NAMES = {
    "stem": "conv1",
    "stem_norm": "bn1",
    "norm1": "bn1",
    "norm2": "bn2",
    "norm3": "bn3",
    "shortcut": "downsample.0",
    "shortcut_norm": "downsample.1",
    "head": "fc",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def save_safetensors(path, variables) -> None:
    """Writes nested mappings of arrays to one file, under names such as 'params/stem/kernel'; no pickle.

    Shapes, dtypes (bfloat16 too) and bits are kept. The file appears by one rename, so a failure leaves an older one as
    it was.

    Raises:
      InputError: a leaf is no array or of a dtype that the format lacks; a name is empty or has a '/' in it;
        safetensors is not installed. OSError: the file cannot be written.
    """
    safetensors = _safetensors()
    path = pathlib.Path(path)
    # safetensors writes the memory as it lies, so a transposed view has to be copied; order='C' keeps the shape ()
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _flatten(variables).items()}
    try:
        content = safetensors.numpy.save(arrays)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_safetensors(path, like=None) -> dict:
    """Nested dicts of NumPy arrays from any safetensors file, its names split at '/'.

    like: where given, the result has passed `check_like(result, like)`.

    Raises:
      InputError: the file does not exist or is damaged; it does not fit `like`; safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, AttributeError) as error:  # AttributeError: a dtype NumPy lacks
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    variables = _unflatten(arrays, path)
    if like is not None:
        check_like(variables, like, f"the arrays in {path}")
    return variables


def check_like(variables, like, source="the variables") -> None:
    """Raises InputError unless variables has exactly the names, shapes and dtypes of `like` and neither nan nor inf.

    like: arrays, or shapes alone: jax.eval_shape(model.init, jax.random.key(0), images). variables may be shapes too.
    source: where they come from, for the error.
    """
    _check(_flatten(variables), _flatten(like), f"{source} do not fit the network")


def to_torchvision(variables) -> dict[str, np.ndarray]:
    """The state dict of torchvision's resnet18, resnet34 or resnet50 that gives the same logits.

    model.load_state_dict({name: torch.from_numpy(x) for name, x in to_torchvision(variables).items()})

    Args:
      variables: {'params', 'batch_stats'} of the plain ResNet-18, -34 or -50 of `wcjax.models` with stem='imagenet',
        float32. The depth is found from the names.

    Returns:
      Arrays of their own memory under torchvision's names (models/resnet.py), convolutions OIHW, fc.weight (out, in);
      num_batches_tracked, which wcjax does not count, is 0.

    Raises:
      InputError: the weights are companded; names, shapes or dtypes are of another network; nan or inf.
    """
    found = _flatten(variables)
    like = _flatten(_shapes(found, found.get("params/head/bias")))
    _check(found, like, "these are not the variables of a ResNet-18, -34 or -50 with stem='imagenet'")
    out = {}
    for name, leaf in found.items():
        out[_torch_name(name)] = np.array(np.asarray(leaf).transpose(_TO_TORCH[leaf.ndim]), order="C")
        if name.endswith("/mean"):
            out[_torch_name(name).replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return out


def from_torchvision(state_dict) -> dict:
    """The variables for `wcjax.models.create(name, num_classes, stem='imagenet')` from torchvision's state dict.

    Args:
      state_dict: of torchvision's resnet18, resnet34 or resnet50, float32: torch tensors or NumPy arrays. The depth is
        found from the names; num_classes is the length of 'fc.bias'; num_batches_tracked is ignored.

    Returns:
      {'params', 'batch_stats'}, NumPy arrays of their own memory; plain weights, ready for `wcjax.reparameterize`.

    Raises:
      InputError: names, shapes or dtypes are of another network; nan or inf.
    """
    found = {name: _from_torch(name, x) for name, x in state_dict.items() if not name.endswith(".num_batches_tracked")}
    like = _flatten(_shapes(found, found.get("fc.bias")))
    expected = {
        _torch_name(name): jax.ShapeDtypeStruct([x.shape[i] for i in _TO_TORCH[x.ndim]], x.dtype)
        for name, x in like.items()
    }
    _check(found, expected, "this is not the state dict of torchvision's resnet18, resnet34 or resnet50")
    arrays = {
        name: np.array(np.asarray(found[_torch_name(name)]).transpose(_TO_JAX[x.ndim]), order="C")
        for name, x in like.items()
    }
    return _unflatten(arrays, "the state dict")


def _shapes(names: Iterable[str], head_bias):
    """Shapes of the plain ResNet that names, ours or torchvision's, come nearest to."""
    from wcjax import models  # here, so that this file imports no Flax

    network = "resnet18"
    if any(name.startswith(("params/stage1_block3/", "layer1.2.")) for name in names):
        network = "resnet34"
    if any(name.startswith(("params/stage1_block1/conv3/", "layer1.0.conv3.")) for name in names):
        network = "resnet50"
    num_classes = 1000 if head_bias is None else head_bias.size
    model = models.create(network, num_classes, stem="imagenet")
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))


def _torch_name(name: str) -> str:
    """'layer1.0.bn1.running_mean' for 'batch_stats/stage1_block1/norm1/mean'."""
    out = []
    for part in name.split("/")[1:]:
        stage, block, i = part.partition("_block")
        out.append(f"{stage.replace('stage', 'layer')}.{int(i) - 1}" if block else _TORCH_NAMES.get(part, part))
    return ".".join(out)


def _from_torch(name: str, x):
    if not hasattr(x, "dtype"):
        raise InputError(f"{name} is a {type(x).__name__}: expected a tensor or an array.")
    if not hasattr(x, "detach"):
        return x
    try:
        return x.detach().cpu().numpy()
    except TypeError as error:  # bfloat16, for one
        raise InputError(f"{name}: NumPy has no {x.dtype}; convert it with .float().") from error


def _check(found: Mapping, expected: Mapping, sentence: str) -> None:
    """Raises InputError, which begins with `sentence`, where found is not like expected; {name: array} both."""
    common = [name for name in expected if name in found]
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "different": [
            f"{name} is {_describe(found[name])}, expected {_describe(expected[name])}"
            for name in common
            if _describe(found[name]) != _describe(expected[name])
        ],
        "with nan or inf": [
            name
            for name in common
            if not isinstance(found[name], jax.ShapeDtypeStruct)
            and jnp.issubdtype(found[name].dtype, jnp.inexact)
            and not np.all(np.isfinite(np.asarray(found[name])))
        ],
    }
    if any(wrong.values()):
        parts = [
            f"{len(names)} {how}: {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)}"
            for how, names in wrong.items()
            if names
        ]
        raise InputError(f"{sentence}. {'. '.join(parts)}.")


def _describe(x) -> str:
    return f"{x.dtype}{tuple(x.shape)}"


def _flatten(tree, at: str = "") -> dict:
    """{'params/stem/kernel': array} for nested mappings."""
    if isinstance(tree, Mapping):
        out = {}
        for name, x in tree.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise InputError(f"{at or 'the tree'} has the name {name!r}: names are strings without '/'.")
            out |= _flatten(x, f"{at}/{name}" if at else name)
        return out
    if isinstance(tree, Reparameterized):
        raise InputError(f"{at} is Reparameterized: fold first, wcjax.fold(variables['params']).")
    if not at or not hasattr(tree, "dtype"):
        raise InputError(f"{at or 'the tree'} is a {type(tree).__name__}: expected nested mappings of arrays.")
    return {at: tree}


def _unflatten(arrays: Mapping, source) -> dict:
    """Nested dicts for {'params/stem/kernel': array}."""
    out = {}
    for name, x in arrays.items():
        *folders, last = name.split("/")
        inside = out
        for folder in folders:
            inside = inside.setdefault(folder, {})
            if not isinstance(inside, dict):
                raise InputError(f"{source}: {name} lies below an array.")
        if last in inside:
            raise InputError(f"{source}: {name} is both an array and a folder of arrays.")
        inside[last] = x
    return out


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError("safetensors is not installed: pip install 'wcjax[io]'.") from error
    return safetensors
