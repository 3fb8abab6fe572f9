"""Conversion of weights to and from torchvision's ResNets."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.errors import InputError
from wcjax.exchange.mappings import check_same, flatten, unflatten

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


def to_torchvision(variables) -> dict[str, np.ndarray]:
    """The state dict of torchvision's resnet18, resnet34 or resnet50 that gives the same logits.

    model.load_state_dict({name: torch.from_numpy(x) for name, x in to_torchvision(variables).items()})

    Args:
      variables: {'params', 'batch_stats'} of the plain ResNet-18, -34 or -50 of `wcjax.models` with stem='imagenet',
        float32. The names give the depth.

    Returns:
      Arrays with their own memory under torchvision's names (models/resnet.py), convolutions OIHW, fc.weight (out, in);
      num_batches_tracked, which wcjax does not count, is 0.

    Raises:
      InputError: the weights are companded; names, shapes or dtypes belong to another network; nan or inf.
    """
    leaves = flatten(variables)
    like = flatten(_expected_shapes(leaves, leaves.get("params/head/bias")))
    check_same(leaves, like, "these are not the variables of a ResNet-18, -34 or -50 with stem='imagenet'")
    state_dict = {}
    for name, leaf in leaves.items():
        torch_name = _torch_name(name)
        state_dict[torch_name] = np.array(np.asarray(leaf).transpose(_TO_TORCH[leaf.ndim]), order="C")
        if torch_name.endswith(".running_mean"):
            state_dict[torch_name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def from_torchvision(state_dict) -> dict:
    """The variables for `wcjax.models.create(name, num_classes, stem='imagenet')` from torchvision's state dict.

    Args:
      state_dict: torch tensors or NumPy arrays, float32, of torchvision's resnet18, resnet34 or resnet50. The names
        give the depth, and 'fc.bias' gives num_classes. num_batches_tracked is ignored.

    Returns:
      {'params', 'batch_stats'}, NumPy arrays with their own memory; plain weights, ready for `wcjax.reparameterize`.

    Raises:
      InputError: names, shapes or dtypes belong to another network; nan or inf.
    """
    tensors = {name: _to_numpy(name, x) for name, x in state_dict.items() if not name.endswith(".num_batches_tracked")}
    like = flatten(_expected_shapes(tensors, tensors.get("fc.bias")))
    expected = {
        _torch_name(name): jax.ShapeDtypeStruct([x.shape[i] for i in _TO_TORCH[x.ndim]], x.dtype)
        for name, x in like.items()
    }
    check_same(tensors, expected, "this is not the state dict of torchvision's resnet18, resnet34 or resnet50")
    arrays = {
        name: np.array(np.asarray(tensors[_torch_name(name)]).transpose(_TO_JAX[x.ndim]), order="C")
        for name, x in like.items()
    }
    return unflatten(arrays, "the state dict")


def _expected_shapes(names: Iterable[str], head_bias):
    """Shapes of the plain ResNet of the depth that the names, ours or torchvision's, show."""
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
    parts = []
    for part in name.split("/")[1:]:
        stage, block, i = part.partition("_block")
        parts.append(f"{stage.replace('stage', 'layer')}.{int(i) - 1}" if block else _TORCH_NAMES.get(part, part))
    return ".".join(parts)


def _to_numpy(name: str, x):
    if not hasattr(x, "dtype"):
        raise InputError(f"{name} is a {type(x).__name__}: expected a tensor or an array.")
    if not hasattr(x, "detach"):
        return x
    try:
        return x.detach().cpu().numpy()
    except TypeError as error:  # for example bfloat16
        raise InputError(f"{name}: NumPy has no {x.dtype}; convert it with .float().") from error
