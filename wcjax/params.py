"""From a plain parameter tree to a companded one and back.

The name of a leaf says which form it is in: a weight called 'kernel' is stored as 'v', with 'a' and 'b' beside it
where they are learned or 'g' under weight normalization. A weight of another name keeps it behind a colon ('w' becomes
'v:w'), so that fold restores exactly the plain network's tree.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp, WeightNorm

KERNEL_NAMES = ("kernel", "weight", "w")
LEARN = ("none", "fine")  # of a layer
LEARN_NETWORK = (*LEARN, "coarse")


def name_of(key) -> str:
    """The plain name of one entry of a JAX key path: 'kernel' for DictKey('kernel') and GetAttrKey('kernel')."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def plain_path(path):
    """path without the step into a flax.nnx variable: nnx.Optimizer shows it to init, but not to update."""
    inside = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name in ("value", "raw_value")
    return path[:-1] if inside else path


def path_str(path) -> str:
    """A key path as 'conv/kernel'."""
    return "/".join(map(name_of, path)) or "(the tree itself)"


def is_kernel(path, leaf) -> bool:
    """Whether a leaf is the weight of a linear map: a float array with two or more axes, called kernel, weight or w.

    path: a JAX key path, as jax.tree_util.tree_map_with_path gives it. Biases and the scales of norms are never
    kernels. A 'weight' of a module whose name has 'norm' or 'embed' in it is none either (Equinox and PyTorch name them
    so); to compand an embedding, pass a `where` of your own.
    """
    names = [name_of(key) for key in path]
    if names and names[-1] in ("value", "raw_value"):  # the last step into a flax.nnx variable
        names.pop()
    if not names or names[-1] not in KERNEL_NAMES or getattr(leaf, "ndim", 0) < 2:
        return False
    owner = next((name.lower() for name in reversed(names[:-1]) if not name.isdigit()), "")
    of_other_module = names[-1] == "weight" and ("norm" in owner or "embed" in owner)
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not of_other_module


def check_bound(weights, psi) -> None:
    """Raises ValueError where a concrete weight does not lie inside (−bound, bound) of psi, with the a that fits all.

    weights: {key path: w}.

    A margin of 4 roundings is kept: the float32 next to the bound can lie beyond the true one, where Ψ⁻¹ changes sign.
    Tracers and arrays that other processes hold cannot be looked at, and pass.
    """
    bound, worst = math.inf if isinstance(psi, WeightNorm) else psi.bound, None
    if isinstance(bound, jax.core.Tracer):
        return
    bound = np.asarray(bound, np.float64)
    for path, w in weights.items():
        if isinstance(w, jax.core.Tracer) or not getattr(w, "is_fully_addressable", True):
            continue
        size = np.abs(np.asarray(w, np.float64))
        if not np.all(np.isfinite(size)):
            raise ValueError(f"{path_str(path)}: the weight holds nan or inf, which have no Ψ⁻¹.")
        share = np.max(size / bound, initial=0.0)
        margin = 4 * float(jnp.finfo(jax.dtypes.canonicalize_dtype(w.dtype)).eps)
        if share >= 1 - margin and (worst is None or share > worst[0]):
            worst = share, path, np.max(size)
        inverse = jax.tree.leaves(psi.inverse(w)) if np.all(np.isinf(bound)) else []
        if not all(jnp.all(jnp.isfinite(x)) for x in inverse):
            raise ValueError(
                f"{path_str(path)}: Ψ⁻¹(w) overflows for |w| = {np.max(size):.6g} under {psi!r}. Choose a larger a, or "
                "smaller weights."
            )
    if worst:
        share, path, largest = worst
        a, b = (float(np.max(x)) for x in (psi.a, psi.b))
        unit = 10.0 ** (math.floor(math.log10(a * share)) - 1)
        fits = math.ceil(1.05 * a * share / unit) * unit
        raise ValueError(
            f"{path_str(path)}: largest |w| is {largest:.6g}, but {type(psi).__name__}(a={a:g}, b={b:g}) only "
            f"reaches |w| < {np.max(bound):.6g}. Choose a >= {fits:.3g}, or smaller weights."
        )


def check_psi(psi, allowed=(Arctan, Arsinh, Erf, PowerProp, WeightNorm)) -> None:
    """Raises ValueError where psi is no object of the allowed classes (a class itself is none)."""
    if not isinstance(psi, allowed):
        names = ", ".join(f"{cls.__name__}(...)" for cls in allowed)
        raise ValueError(f"psi must be one of {names}; found {psi!r}.")


def check_learnable(psi, learn: str, allowed=LEARN) -> None:
    """Raises ValueError for an unknown way of learning, and for a Ψ without a and b that should learn them."""
    if learn not in allowed:
        raise ValueError(f"learn must be one of {', '.join(map(repr, allowed))}, found {learn!r}.")
    if learn != "none" and not hasattr(psi, "a"):
        name = "None" if psi is None else type(psi).__name__
        raise ValueError(f"{name} has no a and b to learn: use learn='none'.")


def reparameterize(params, psi, where: Callable[[Any, Any], bool] = is_kernel, learn: str = "none"):
    """Replaces every weight w that `where` selects by v = Ψ⁻¹(w).

    Args:
      params: nested mappings (lists and tuples too) of arrays.
      psi: Arctan, Arsinh, Erf, PowerProp or WeightNorm.
      where: (key path, leaf) -> bool, which leaves are weights; the direct child of a mapping only.
      learn: 'fine' puts scalars 'a' and 'b' beside each v, to be learned; 'none' leaves them fixed.

    Returns:
      A tree of plain dicts in which each selected 'kernel' is now 'v' (and 'a', 'b', or 'g' of shape (features,)).

    Raises:
      ValueError: no leaf is selected; |w| >= psi.bound; the tree is companded already; unknown `learn`.
    """
    check_psi(psi)
    check_learnable(psi, learn)
    found = {}

    def convert(node, path):
        if isinstance(node, list | tuple):
            return _rebuild(node, [convert(x, (*path, jax.tree_util.SequenceKey(i))) for i, x in enumerate(node)])
        if not isinstance(node, Mapping):
            if _is_leaf(node):
                return node
            raise ValueError(
                f"{path_str(path)} is a {type(node).__name__}, but leaves can be renamed only in mappings, lists and "
                "tuples. Unbox it first, or use wcjax.compand, which works on any pytree."
            )
        out = {}
        for name, leaf in node.items():
            at = (*path, jax.tree_util.DictKey(name))
            kind, _ = _kind(name)
            if _is_leaf(leaf) and kind == "v":
                raise ValueError(f"{path_str(at)}: a leaf called 'v' is companded already (if it is not, rename it).")
            if not (_is_leaf(leaf) and where(at, leaf)):
                out[name] = convert(leaf, at)
                continue
            found[at] = leaf
            if isinstance(psi, WeightNorm):
                new = dict(zip("vg", psi.inverse(leaf), strict=True))
            else:
                new = {"v": psi.inverse(leaf)}
                if learn == "fine":
                    new |= {"a": jnp.asarray(psi.a, leaf.dtype), "b": jnp.asarray(psi.b, leaf.dtype)}
            suffix = "" if name == "kernel" else f":{name}"
            new = {key + suffix: value for key, value in new.items()}
            if taken := [letter + suffix for letter in "vabg" if letter + suffix in node]:
                raise ValueError(
                    f"{path_str(at)}: the names {taken}, which stand for its reparameterization, are taken."
                )
            out |= new
        return out

    out = convert(params, ())
    check_bound(found, psi)
    if pairs := _shared_pairs(_modules(jax.tree_util.tree_leaves_with_path(params))):
        raise ValueError(f"{path_str(pairs[0])} holds 'a' and 'b' alone, like a shared pair: rename them.")
    if not found:
        names = [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shown = ", ".join(names[:8]) + ", …" * (len(names) > 8)
        raise ValueError(f"`where` selects none of the {len(names)} leaves ({shown}).")
    return out


def fold(params, psi):
    """Replaces every v by w = Ψ(v): the plain network's tree, with nothing left of a, b, g or a shared pair.

    Args:
      params: a tree from `reparameterize` or of layers from `wcjax.linen`.
      psi: the Ψ it was made with; a learned pair in the tree takes the place of its a and b.

    Raises:
      ValueError: the tree holds no 'v', or psi is none that it can have been made with, as far as the names of the
        leaves tell; a v, or its a, b or g, is no float array of a fitting shape.
    """

    def convert(node, psis):
        if isinstance(node, list | tuple):
            return _rebuild(node, [convert(x, p) for x, p in zip(node, psis, strict=True)])
        if not isinstance(node, Mapping):
            return node
        out = {}
        for name, leaf in node.items():
            kind, suffix = _kind(name)
            own = psis[name]
            if isinstance(own, WeightNorm):
                out[suffix[1:] or "kernel"] = _weight(name, own, leaf, node["g" + suffix])
            elif isinstance(own, type(psi)):
                out[suffix[1:] or "kernel"] = _weight(name, own, leaf)
            elif isinstance(own, Learned) or (kind == "g" and isinstance(psis.get("v" + suffix), WeightNorm)):
                continue
            elif kind == "v" and not isinstance(leaf, Mapping | list | tuple) and not _is_leaf(leaf):
                raise ValueError(f"{name!r} is a {type(leaf).__name__}, whose leaf cannot be renamed. Unbox it first.")
            else:
                new = convert(leaf, own)
                if not (
                    isinstance(leaf, Mapping) and leaf and not new
                ):  # a module that held only the shared pair is gone
                    out[name] = new
        return out

    check_psi(psi)
    psis = psi_tree(params, psi)
    if not any(isinstance(x, type(psi)) for x in jax.tree.leaves(psis, is_leaf=lambda x: isinstance(x, type(psi)))):
        raise ValueError("fold found no leaf called 'v': the tree is plain already.")
    return convert(params, psis)


def _weight(name, psi, v, *g):
    """w = psi(v, *g), of the shape of v."""
    leaves = [v, *g, *jax.tree.leaves(psi)]
    dtypes = [getattr(x, "dtype", type(x)) for x in leaves]
    if all(jnp.issubdtype(dtype, jnp.floating) or dtype is int for dtype in dtypes):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # JAX's, for shapes that do not go together
            w = psi(v, *g)
            if w.shape == jnp.shape(v):
                return w
    found = ", ".join(f"{dtype}{np.shape(x)}" for dtype, x in zip(dtypes, leaves, strict=True))
    raise ValueError(f"{name!r} and its g, a and b must be float arrays, the latter of fitting shapes; found {found}.")


def describe(params, where: Callable[[Any, Any], bool] = is_kernel, psi=None) -> None:
    """Prints which leaves `where` selects, with their largest |w| and its share of psi's bound, and how many they are.

    Args:
      params: any pytree of arrays in plain form: a parameter dict, an Equinox module, an NNX state.
      where: (key path, leaf) -> bool, as for `reparameterize` and `compand`.
      psi: the Ψ to be used; without it the bound is left out.
    """
    rows = [("leaf", "shape", "companded", "largest |w|", "share of bound")]
    total, companded, leaves = 0, 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = plain_path(path)
        size = getattr(leaf, "size", 0)
        total += size
        if not where(path, leaf):
            rows.append((path_str(path), str(getattr(leaf, "shape", "")), "", "", ""))
            continue
        companded, leaves = companded + size, leaves + 1
        largest = float(np.max(np.abs(np.asarray(leaf, np.float64)), initial=0.0))
        share = f"{largest / float(psi.bound):.1%}" if hasattr(psi, "bound") else ""
        rows.append((path_str(path), str(leaf.shape), "yes", f"{largest:.4g}", share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{leaves} of {len(rows) - 1} leaves companded: {companded:,} of {total:,} parameters.")


class Learned(NamedTuple):
    """Stands in `psi_tree` for a learned a or b."""


def psi_tree(params, psi):
    """The Ψ of every leaf, in the structure of params: a Ψ for each v, Learned() for a learned a or b, None for others.

    The Ψ of a v whose a and b are learned holds those leaves: its own, beside it, or the shared pair, which is the one
    module that holds scalars 'a' and 'b' and nothing else. Leaves that optax.masked took away stay as they are.

    Raises:
      ValueError: more than one shared pair.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_hole)
    modules = _modules(flat)
    shared = _shared_pairs(modules)
    if len(shared) > 1:
        raise ValueError(f"more than one shared pair of a and b: {', '.join(map(path_str, shared))}.")

    def of_leaf(path, leaf):
        path = plain_path(path)
        if not path or _is_hole(leaf):
            return leaf if path else None
        owner, (kind, suffix) = path[:-1], _kind(name_of(path[-1]))
        inside = modules[owner]
        if kind == "v":
            if ("g" + suffix in inside) != isinstance(psi, WeightNorm):
                state = "has a" if "g" + suffix in inside else "has no"
                raise ValueError(f"{path_str(path)} {state} norm 'g{suffix}' beside it, but psi is {psi!r}.")
            if (shared or "a" + suffix in inside) and not hasattr(psi, "a"):
                raise ValueError(f"{path_str(path)} has learned a and b, but psi is {psi!r}.")
            if "a" + suffix in inside and "b" + suffix in inside:
                return dataclasses.replace(
                    psi, a=_over(inside["a" + suffix], leaf), b=_over(inside["b" + suffix], leaf)
                )
            return (
                dataclasses.replace(psi, **{k: _over(x, leaf) for k, x in modules[shared[0]].items()})
                if shared
                else psi
            )
        if kind in ("a", "b") and (owner in shared or "v" + suffix in inside):
            return Learned()
        return None

    return structure.unflatten([of_leaf(path, leaf) for path, leaf in flat])


def _modules(flat):
    """{path of a module: {name: leaf}} for the (path, leaf) of a tree."""
    modules = collections.defaultdict(dict)
    for path, leaf in flat:
        if path := plain_path(path):
            modules[path[:-1]][name_of(path[-1])] = leaf
    return modules


def _shared_pairs(modules):
    """Paths of the modules that hold scalars 'a' and 'b' and nothing else."""
    scalar = lambda x: getattr(x, "ndim", 0) < 2  # one axis: of networks stacked by vmap
    return [path for path, leaves in modules.items() if set(leaves) == {"a", "b"} and all(map(scalar, leaves.values()))]


def _over(scalar, v):
    """A learned a or b so that it broadcasts against v; both may have leading axes, of layers stacked by nn.scan."""
    stacked = getattr(scalar, "ndim", 0)
    return jnp.reshape(scalar, jnp.shape(scalar) + (1,) * (jnp.ndim(v) - stacked)) if stacked else scalar


def _rebuild(node, children):
    """A list, tuple or named tuple like node, of other children."""
    return type(node)(*children) if hasattr(node, "_fields") else type(node)(children)


def _is_leaf(x):
    return x is None or jax.tree_util.all_leaves([x])


def _is_hole(x):
    return isinstance(x, tuple) and not x  # optax.MaskedNode, without importing optax


def _kind(name):
    """('v', ':w') for 'v:w': what the leaf is, and the suffix that its partners share."""
    head, colon, tail = str(name).partition(":")
    return head, colon + tail
