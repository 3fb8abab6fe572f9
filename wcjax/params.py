"""Parameter trees whose weights are reparameterized. Such a weight is a value of its own type.

    Reparameterized(v, psi)     replaces the array w = psi(v) in the tree

`reparameterize` asks `where` once for each leaf. After that nothing is recognized by its name. All of this works on
any pytree: dicts, lists, named tuples, the parameters of Flax Linen and Haiku, NNX states, Equinox modules.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import checks, serialization
from wcjax.psi import Psi, PyTree, Where
from wcjax.trees import instances

KERNEL_NAMES = ("kernel", "weight", "w")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["psi", "v"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Reparameterized:
    """A weight that is stored as v.

    Attributes:
      v: an array, in the box of its framework if it has one (nn.Partitioned, nnx.Param).
      psi: its Ψ, or None if layers share it: then it is the pair of a `wcjax.linen.LearnedPair`, elsewhere in the tree.
    """

    v: Any
    psi: Psi | None

    @property
    def w(self) -> Any:
        """psi(v), an array of the shape and dtype of v, in its box. ValueError without its Ψ, or its a and b."""
        if self.psi is None:
            raise ValueError("this weight shares its a and b with others: fold the tree that holds them all.")
        if lacks_pair(self):
            raise ValueError("this weight's learned a and b are in another part of the tree: combine the parts first.")
        return jax.tree.map(self.psi, self.v)


def lacks_pair(weight: Reparameterized) -> bool:
    """Whether v is here but its own learned a or b is not, because a mask or a partition took it away."""
    is_there = lambda name: bool(jax.tree.leaves(getattr(weight.psi, name)))
    return bool(jax.tree.leaves(weight.v)) and not all(map(is_there, getattr(weight.psi, "learned", ())))


def is_kernel(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
    """Whether a leaf is the weight of a linear map: a float array with two or more axes, called kernel, weight or w.

    path: a JAX key path, as jax.tree_util.tree_map_with_path gives it. Biases and the scales of norms are never
    kernels. Neither is the 'weight' of a module whose name has 'norm' or 'embed' in it, as in Equinox and PyTorch. To
    compand an embedding, pass another `where`.
    """
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    in_variable = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")  # the array in an nnx.Param
    if in_variable and names[-2] in KERNEL_NAMES:
        names.pop()
    if not names or names[-1] not in KERNEL_NAMES or getattr(leaf, "ndim", 0) < 2:
        return False
    module = next((name.lower() for name in reversed(names[:-1]) if not name.isdigit()), "")
    is_linear = names[-1] != "weight" or not ("norm" in module or "embed" in module)
    return jnp.issubdtype(leaf.dtype, jnp.floating) and is_linear


def reparameterize(params: PyTree, psi: Psi, where: Where | None = None, learn: str = "none") -> PyTree:
    """Replaces every weight w that `where` selects by Reparameterized(v, psi) with psi(v) = w.

    A leaf that stacks layers, as nn.scan makes it, counts as one weight. To give each layer its own pair or norms, as
    the layers of `wcjax.linen` do, call this under jax.vmap over that axis.

    Args:
      params: any pytree of arrays. Weights that are Reparameterized already stay as they are.
      psi: Arctan, Arsinh, Erf, PowerProp or WeightNorm. Its numbers are constants, its arrays are learned.
      where: (key path, leaf) -> bool, which leaves are weights; None: `wcjax.is_kernel`.
      learn: 'none': a and b stay as psi has them. 'fine': each selected leaf learns its own pair. 'channel': a pair
        for each index of its last axis, which in Equinox and PyTorch counts inputs.

    Returns:
      The same tree with a `Reparameterized` instead of each selected leaf.

    Raises:
      ValueError: no leaf is selected; a selected leaf is not an array of floats; |w| >= psi.bound (the message has an a
        that fits); `learn` is unknown, or psi has nothing to learn.

    Examples:
      >>> import jax.numpy as jnp
      >>> import wcjax
      >>> plain = {"kernel": jnp.array([[0.5, -0.2]]), "bias": jnp.zeros(2)}
      >>> params = wcjax.reparameterize(plain, wcjax.Arctan(a=0.6, b=0.6))
      >>> params["kernel"].v.round(3)  # 0.6·tan(w / 0.6), which the optimizer moves
      Array([[ 0.66 , -0.208]], dtype=float32)
      >>> wcjax.fold(params)["kernel"].round(3)  # which the network sees
      Array([[ 0.5, -0.2]], dtype=float32)
    """
    checks.check_psi(psi)
    checks.check_learn(psi, learn)
    serialization.register(Reparameterized, type(psi))
    weights = selected_weights(params, where)
    checks.check_selection(weights, params, len(instances(params, Reparameterized)))
    checks.check_weights(weights, psi, stores_v=True)

    def replace(path, leaf):
        if path not in weights:
            return leaf
        make = lambda leaf: reparameterize_leaf(leaf, psi, learn)
        return jax.eval_shape(make, leaf) if isinstance(weights[path], jax.ShapeDtypeStruct) else make(leaf)

    return jax.tree_util.tree_map_with_path(replace, params, is_leaf=is_reparameterized_or_box)


def reparameterize_leaf(leaf: Any, psi: Psi, learn: str, axes: tuple[int, ...] = (-1,)) -> Reparameterized:
    """The weight of a leaf, which may be in a box, as v under psi. axes: its output axes, unless psi names its own."""
    w = unboxed(leaf)
    psi = psi.for_weight(w, learn, np.lib.array_utils.normalize_axis_tuple(axes if w.ndim else (), w.ndim))
    return Reparameterized(jax.tree.map(psi.inverse, leaf), psi)


def fold(params: PyTree) -> PyTree:
    """Replaces every Reparameterized by its w: the plain network's tree. A pair that layers share is omitted.

    Raises:
      ValueError: the tree holds no Reparameterized; layers share a pair, and the tree does not hold exactly one.
    """
    if not instances(params, Reparameterized):
        raise ValueError("fold found no wcjax.Reparameterized in the tree: it is plain already.")
    w_of = lambda x: x.w if is_reparameterized(x) else x
    plain = jax.tree.map(w_of, with_shared_pair(params), is_leaf=is_reparameterized)
    return _without_psis(plain) if _shares_pair(params) else plain


def with_shared_pair(params: PyTree) -> PyTree:
    """params in which the weights that share a pair hold it as their Ψ. ValueError if there is not exactly one pair."""
    if not _shares_pair(params):
        return params
    pairs = [x for x in instances(params, (Reparameterized, Psi)) if isinstance(x, Psi)]
    if len(pairs) != 1:
        raise ValueError(
            f"layers of this tree share one learned pair of a and b, but it holds {len(pairs)} pairs. Keep the pair "
            "and all its layers in one tree, and under one optimizer."
        )

    def insert(x):
        # In an ensemble made by vmap a scalar has leading axes: append others until it has the rank of v.
        with_rank_of_v = lambda scalar: jnp.reshape(scalar, scalar.shape + (1,) * (unboxed(x.v).ndim - scalar.ndim))
        if not is_reparameterized(x) or x.psi is not None:
            return x
        return Reparameterized(x.v, jax.tree.map(with_rank_of_v, pairs[0]))

    return jax.tree.map(insert, params, is_leaf=is_reparameterized)


def selected_weights(params: PyTree, where: Where | None) -> dict[jax.tree_util.KeyPath, Any]:
    """{key path: w} of the leaves that `where` selects. It is not asked about weights that are Reparameterized."""
    # The default is not is_kernel itself, because optax.inject_hyperparams would call it as a schedule.
    where = is_kernel if where is None else where
    checks.check_where(where)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_reparameterized_or_box)
    plain = {path: unboxed(x) for path, x in leaves if not is_reparameterized(x)}
    return {path: w for path, w in plain.items() if checks.checked_answer(where(path, w), path)}


def unboxed(x: Any) -> Any:
    """The array in a box, or x itself."""
    return jax.tree.leaves(x)[0] if _is_box(x) else x


def is_reparameterized(x: Any) -> bool:
    """Whether x is a Reparameterized weight."""
    return isinstance(x, Reparameterized)


def is_reparameterized_or_box(x: Any) -> bool:
    """Whether x is one entry of a tree of parameters: a Reparameterized weight, or a box with an array in it."""
    return is_reparameterized(x) or _is_box(x)


def _is_box(x):
    """Whether x is an nnx.Variable, or a box of Flax Linen like nn.Partitioned, with one array in it."""
    is_variable = hasattr(type(x), "get_value") and hasattr(type(x), "get_metadata")
    if not (is_variable or hasattr(type(x), "replace_boxed")):
        return False
    leaves = jax.tree.leaves(x, is_leaf=is_reparameterized)
    return len(leaves) == 1 and not is_reparameterized(leaves[0])


def _shares_pair(params: PyTree) -> bool:
    # v without leaves was taken away by a mask.
    return any(x.psi is None and jax.tree.leaves(x.v) for x in instances(params, Reparameterized))


def _without_psis(tree):
    """tree without the Ψ in its mappings, and without the mappings that held nothing else."""

    def remove(x):
        if not isinstance(x, Mapping):
            return x
        rest = {name: _without_psis(y) for name, y in x.items() if not isinstance(y, Psi)}
        is_emptied = lambda name: isinstance(rest[name], Mapping) and not rest[name] and x[name]
        rest = {name: y for name, y in rest.items() if not is_emptied(name)}
        if not isinstance(x, dict):
            mapping_type: Any = type(x)
            return mapping_type(rest)
        mapping = copy.copy(x)  # a defaultdict keeps its factory
        mapping.clear()
        mapping.update(rest)
        return mapping

    return jax.tree.map(remove, tree, is_leaf=lambda x: isinstance(x, Mapping))
