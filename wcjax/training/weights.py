"""How the weights of a network are distributed after an epoch: one line of weights.jsonl, a dict for each layer.

All numbers describe w, the weights that the network uses, even if the run holds v. The numbers of a layer:

    'histogram'            counts of w between EDGES, (len(EDGES) + 1,); the first and the last count w beyond them
    'mean', 'std', 'max'   of w, of w (divided by n), of |w|
    'kurtosis'             excess kurtosis, mean(((w − mean) / std)⁴) − 3: 0 for a normal distribution
    'below_0.01'           share of the weights with |w| < 0.01
    'below_tenth_of_std'   share of the weights with |w| < 0.1·std: 0.08 for a normal distribution
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from wcjax.params import fold, is_kernel, is_reparameterized
from wcjax.psi import Psi
from wcjax.run_folder.schema import EDGES, QUANTILES
from wcjax.system.unoptimized import jit_unoptimized
from wcjax.trees import path_str


def layer_weights(params, plain: bool) -> dict[str, jax.Array]:
    """{layer: w} of a network of `wcjax.models`, companded or plain. A layer's name is like 'stage1_block1/conv2'."""
    leaves = jax.tree_util.tree_leaves_with_path(params if plain else fold(params))
    return {path_str(path[:-1]): w for path, w in leaves if is_kernel(path, w)}


def weight_statistics(w: jax.Array) -> dict[str, jax.Array]:
    """The numbers of one layer that the docstring of this file lists. w: floats of any shape, not empty."""
    w = w.ravel().astype(jnp.float32)
    below = jnp.searchsorted(jnp.asarray(EDGES, jnp.float32), w, side="right")
    std = jnp.std(w)
    standardized = (w - jnp.mean(w)) / jnp.where(std > 0, std, 1)
    return {
        "histogram": jnp.bincount(below, length=len(EDGES) + 1),
        "mean": jnp.mean(w),
        "std": std,
        "max": jnp.max(jnp.abs(w)),
        "kurtosis": jnp.where(std > 0, jnp.mean(standardized**4) - 3, 0),
        "below_0.01": jnp.mean(jnp.abs(w) < 0.01),
        "below_tenth_of_std": jnp.mean(jnp.abs(w) < 0.1 * std),
    }


def layer_statistics(params, config: ConfigDict) -> dict[str, dict]:
    """{layer: its numbers} as Python numbers and lists. Blocks until the device has finished."""
    weights = _jitted_layer_weights(params, plain=config.reparam.name == "none")
    statistics = jax.device_get({layer: _jitted_weight_statistics(w) for layer, w in weights.items()})
    return {layer: {name: x.tolist() for name, x in numbers.items()} for layer, numbers in statistics.items()}


# Two functions, so that the second is compiled only once for all layers of a shape.
_jitted_layer_weights = jit_unoptimized(layer_weights, static_argnames="plain")
_jitted_weight_statistics = jit_unoptimized(weight_statistics)


def learned_psis(params) -> dict[str, Psi]:
    """{layer: its Ψ} of a network that learns a and b: a weight's own Ψ, or the pair that all share."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: is_reparameterized(x) or isinstance(x, Psi))
    psis = ((path, getattr(x, "psi", x)) for path, x in leaves)  # None for the weights that share a pair
    return {path_str(path[:-1]): psi for path, psi in psis if isinstance(psi, Psi)}


def learned_pairs(params) -> dict[str, dict]:
    """{layer: {'a': a, 'b': b}} of a network that learns them: numbers, or their `QUANTILES` over the channels."""
    pairs = {}
    for layer, psi in learned_psis(params).items():
        arrays = {name: np.asarray(getattr(psi, name), np.float64) for name in psi.learned}
        pairs[layer] = {
            name: x.item() if x.size == 1 else np.quantile(x, QUANTILES).tolist() for name, x in arrays.items()
        }
    return pairs
