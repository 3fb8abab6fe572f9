"""Parameter trees whose weights are reparameterized: a weight is a value of its own type.

    Reparameterized(v, psi)     stands in the tree where the array w = psi(v) stood

Nothing is recognized by its name after `reparameterize` has asked `where` once. All of this works on any pytree: dicts,
lists, named tuples, the parameters of Flax Linen and Haiku, NNX states, Equinox modules.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import checks, serialization
from wcjax.psi import Psi

KERNEL_NAMES = ("kernel", "weight", "w")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Reparameterized:
    """A weight that is stored as v.

    Attributes:
      v: an array, in the box of its framework if it has one (nn.Partitioned, nnx.Param).
      psi: its Ψ. None: the pair of a `wcjax.linen.LearnedPair`, a Ψ elsewhere in the tree that its layers share.
    """

    v: Any
    psi: Psi | None

    @property
    def w(self):
        """psi(v), an array of the shape and dtype of v, in its box. ValueError if layers share the Ψ."""
        if self.psi is None:
            raise ValueError("this weight shares its a and b with others: fold the tree that holds them all.")
        return jax.tree.map(self.psi, self.v)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("psi", "v")], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children[::-1])


def is_kernel(path, leaf) -> bool:
    """Whether a leaf is the weight of a linear map: a float array with two or more axes, called kernel, weight or w.

    path: a JAX key path, as jax.tree_util.tree_map_with_path gives it. Biases and the scales of norms are never
    kernels. Neither is the 'weight' of a module that is held under a name with 'norm' or 'embed' in it, as in Equinox
    and PyTorch; to compand an embedding, pass another `where`.
    """
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    if names[-1:] == ["value"] and names[-2:-1] and names[-2] in KERNEL_NAMES:  # the array in an nnx.Param
        names.pop()
    if not names or names[-1] not in KERNEL_NAMES or getattr(leaf, "ndim", 0) < 2:
        return False
    owner = next((name.lower() for name in reversed(names[:-1]) if not name.isdigit()), "")
    of_other_module = names[-1] == "weight" and ("norm" in owner or "embed" in owner)
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not of_other_module


def reparameterize(params, psi, where: Callable[[Any, Any], bool] = is_kernel, learn: str = "none"):
    """Replaces every weight w that `where` selects by Reparameterized(v, psi) with psi(v) = w.

    Args:
      params: any pytree of arrays. Weights that are reparameterized already stay as they are.
      psi: Arctan, Arsinh, Erf, PowerProp or WeightNorm. Its numbers are constants, its arrays are learned.
      where: (key path, leaf) -> bool, which leaves are weights.
      learn: 'none': a and b stay as psi has them. 'fine': each weight learns its own pair. 'channel': a pair for each
        index of its last axis, which in Equinox and PyTorch counts inputs.

    Returns:
      The same tree with a `Reparameterized` in the place of each selected leaf.

    Raises:
      ValueError: no leaf is selected; a selected leaf is not an array of floats; |w| >= psi.bound (with the a that
        fits); an unknown `learn`, or nothing to learn.

    A leaf that stacks layers, as nn.scan makes it, counts as one weight. Call this under jax.vmap over that axis to
    give each layer its own pair or norms, as the layers of `wcjax.linen` have them.
    """
    checks.check_psi(psi)
    checks.check_learn(psi, learn)
    serialization.register(Reparameterized, type(psi))
    weights = selected(params, where)
    checks.check_selection(weights, params)
    checks.check_weights(weights, psi)

    def of_leaf(path, leaf):
        if path not in weights:
            return leaf
        make = lambda leaf: reparameterized(leaf, psi, learn)
        return jax.eval_shape(make, leaf) if isinstance(weights[path], jax.ShapeDtypeStruct) else make(leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, params, is_leaf=is_unit)


def reparameterized(leaf, psi: Psi, learn: str, axes: tuple[int, ...] = (-1,)) -> Reparameterized:
    """The weight of a leaf, perhaps in a box, as v under psi. axes: its output axes, if psi names none itself."""
    w = unboxed(leaf)
    own = getattr(psi, "axis", None)
    axes = axes if own is None else own
    psi = psi.for_weight(w, learn, np.lib.array_utils.normalize_axis_tuple(axes if w.ndim else (), w.ndim))
    return Reparameterized(jax.tree.map(psi.inverse, leaf), psi)


def fold(params):
    """Replaces every Reparameterized by its w: the plain network's tree. A pair that layers share is left out.

    Raises:
      ValueError: the tree holds no Reparameterized; layers share a pair that is not in the tree, or not the only one.
    """
    if not any(map(is_weight, jax.tree.leaves(params, is_leaf=is_weight))):
        raise ValueError("fold found no wcjax.Reparameterized in the tree: it is plain already.")
    plain = jax.tree.map(lambda x: x.w if is_weight(x) else x, with_pairs(params), is_leaf=is_weight)
    return _without_pairs(plain) if _share_pair(params) else plain


def with_pairs(params):
    """params in which the weights that share a pair hold it as their Ψ. ValueError if there is not exactly one."""
    if not _share_pair(params):
        return params
    pairs = [x for x in jax.tree.leaves(params, is_leaf=_is_weight_or_psi) if isinstance(x, Psi)]
    if len(pairs) != 1:
        raise ValueError(
            f"layers of this tree share one learned pair of a and b, but it holds {len(pairs)} pairs. Keep the pair "
            "and all its layers in one tree, and under one optimizer."
        )

    def of_weight(x):
        # In an ensemble made by vmap a scalar has leading axes: append others until it has the rank of v.
        rank = lambda scalar: jnp.reshape(scalar, scalar.shape + (1,) * (unboxed(x.v).ndim - scalar.ndim))
        return Reparameterized(x.v, jax.tree.map(rank, pairs[0])) if is_weight(x) and x.psi is None else x

    return jax.tree.map(of_weight, params, is_leaf=is_weight)


def selected(params, where) -> dict:
    """{key path: w} of the leaves that `where` selects. It is not asked about weights that are Reparameterized."""
    checks.check_where(where)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_unit)
    return {path: unboxed(x) for path, x in leaves if not is_weight(x) and where(path, unboxed(x))}


def unboxed(x):
    """The array in a box, or x itself."""
    return jax.tree.leaves(x)[0] if _is_box(x) else x


def is_weight(x) -> bool:
    return isinstance(x, Reparameterized)


def _is_box(x):
    """Whether x is an nnx.Variable, or a box of Flax Linen like nn.Partitioned, with one array in it."""
    known = hasattr(type(x), "get_value") or hasattr(type(x), "replace_boxed")
    return known and len(jax.tree.leaves(x)) == 1


def is_unit(x) -> bool:
    """Whether a traversal stops at x as a whole: at a Reparameterized weight or an array in a box."""
    return is_weight(x) or _is_box(x)


def _is_weight_or_psi(x):
    return isinstance(x, Reparameterized | Psi)


def _share_pair(params) -> bool:
    weights = filter(is_weight, jax.tree.leaves(params, is_leaf=is_weight))
    return any(x.psi is None and jax.tree.leaves(x.v) for x in weights)  # a mask can take v away


def _without_pairs(tree):
    """tree without the Ψ in its mappings, and without the mappings that held nothing else."""

    def of_mapping(x):
        if not isinstance(x, Mapping):
            return x
        rest = {name: _without_pairs(y) for name, y in x.items() if not isinstance(y, Psi)}
        emptied = {name for name, y in rest.items() if isinstance(y, Mapping) and not y and x[name]}
        return type(x)({name: y for name, y in rest.items() if name not in emptied})

    return jax.tree.map(of_mapping, tree, is_leaf=lambda x: isinstance(x, Mapping))
