"""A table of what is companded in a tree of parameters."""

import jax
import jax.numpy as jnp

from wcjax import checks
from wcjax.params import is_reparameterized, is_reparameterized_or_box, selected_weights, unboxed, with_shared_pair
from wcjax.precision import widen
from wcjax.psi import Elementwise, Psi, PyTree, Where
from wcjax.trees import path_str


def describe(params: PyTree, where: Where | None = None, psi: Psi | None = None) -> None:
    """Prints which leaves are companded, with their largest |w| and its share of the bound, and their number.

    Args:
      params: any pytree, either of plain arrays, from which `where` selects, or with Reparameterized weights.
      where: (key path, leaf) -> bool, as for `reparameterize` and `compand`; None: `wcjax.is_kernel`.
      psi: the Ψ to be used for the selected leaves. Without it their share of the bound is omitted.
    """
    weights = selected_weights(params, where)
    if psi is not None:
        checks.check_psi(psi)
    rows = [("leaf", "shape", "companded", "largest |w|", "share of bound")]
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for path, x in jax.tree_util.tree_leaves_with_path(with_shared_pair(params), is_leaf=is_reparameterized_or_box):
        w, own_psi = (unboxed(x.w), x.psi) if is_reparameterized(x) else (unboxed(x), psi)
        companded = is_reparameterized(x) or path in weights
        if companded and not is_reparameterized(x):
            checks.check_float(path_str(path), w)
        sizes[companded].append(getattr(w, "size", 0))
        largest, share = _largest(w, own_psi) if companded else ("", "")
        shape = str(getattr(w, "shape", ""))
        rows.append((path_str(path), shape, "yes" if companded else "", largest, share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    num_companded, total = sum(sizes[True]), sum(sizes[True] + sizes[False])
    print(f"{len(sizes[True])} of {len(rows) - 1} leaves companded: {num_companded:,} of {total:,} parameters.")


def _largest(w, psi):
    """The largest |w| and its share of the bound, as text."""
    if not checks.has_values(w) or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(psi)):
        return "", ""
    with jax.ensure_compile_time_eval():
        magnitude = jnp.abs(widen(jnp.asarray(w)))
        largest = f"{float(magnitude.max(initial=0)):.4g}"
        if not isinstance(psi, Elementwise):
            return largest, ""
        try:
            bound = psi.for_weight(w, "none", axes=()).bound
        except ValueError:
            return largest, "arrays do not fit"
        return largest, "" if jnp.isinf(bound).all() else f"{float((magnitude / bound).max(initial=0)):.1%}"
