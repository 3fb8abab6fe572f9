"""A table of what is companded in a tree of parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wcjax import checks
from wcjax.params import is_kernel, is_unit, is_weight, unboxed, with_pairs
from wcjax.psi import Psi


def describe(params, where: Callable[[Any, Any], bool] = is_kernel, psi: Psi | None = None) -> None:
    """Prints which leaves are companded, with their largest |w| and its share of the bound, and how many they are.

    Args:
      params: any pytree: of plain arrays, of which `where` selects, or with Reparameterized weights.
      where: (key path, leaf) -> bool, as for `reparameterize` and `compand`.
      psi: the Ψ to be used for the selected leaves; without it their share of the bound is left out.
    """
    checks.check_where(where)
    if psi is not None:
        checks.check_psi(psi)
    rows = [("leaf", "shape", "companded", "largest |w|", "share of bound")]
    sizes = {True: [], False: []}
    for path, x in jax.tree_util.tree_leaves_with_path(with_pairs(params), is_leaf=is_unit):
        w, of_w = (unboxed(x.w), x.psi) if is_weight(x) else (unboxed(x), psi)
        companded = is_weight(x) or bool(where(path, w))
        sizes[companded].append(getattr(w, "size", 0))
        row = (checks.path_str(path), str(getattr(w, "shape", "")), "yes" if companded else "")
        rows.append((*row, *(_largest(w, of_w) if companded else ("", ""))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    selected, total = sum(sizes[True]), sum(sizes[True] + sizes[False])
    print(f"{len(sizes[True])} of {len(rows) - 1} leaves companded: {selected:,} of {total:,} parameters.")


def _largest(w, psi):
    """The largest |w| and its share of the bound, as text."""
    if not checks.has_values(w):
        return "", ""
    size = np.abs(np.asarray(w, np.float64))
    share = f"{np.max(size / psi.bound, initial=0.0):.1%}" if hasattr(psi, "bound") else ""
    return f"{np.max(size, initial=0.0):.4g}", share
