"""Ψ of a tree of weights: what `compand` computes of every weight at once.

The argument `psis` has the structure of the other trees, with the Ψ of each companded leaf and None elsewhere. Leaves
without a Ψ stay as they are. A companded leaf may be in the box of its framework, and a gradient may be None.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from wcjax import checks, elementary, precision
from wcjax.params import unboxed
from wcjax.precision import wide_dtype, widen
from wcjax.psi import Psi, PyTree


def is_psi_or_none(x: Any) -> bool:
    """Whether x is an entry of psis: a Ψ, or the None of a leaf that has no Ψ."""
    return x is None or isinstance(x, Psi)


def apply(psis: PyTree, v: PyTree) -> PyTree:
    """w = Ψ(v)."""
    return _map_companded(lambda psi, v: psi(v), psis, v)


def inverse(psis: PyTree, w: PyTree) -> PyTree:
    """v = Ψ⁻¹(w)."""
    return _map_companded(lambda psi, w: psi.inverse(w), psis, w)


def slopes(psis: PyTree, w: PyTree) -> PyTree:
    """Ψ′(v), in the `wide_dtype` of w. Leaves without a Ψ stay the w that they were, and nothing reads them."""
    return _map_companded(lambda psi, w: psi.slope(widen(w)), psis, w)


def reciprocal_slopes(psis: PyTree, v: PyTree) -> PyTree:
    """1 / Ψ′(v), in the `wide_dtype` of v. Leaves without a Ψ stay the v that they were, and nothing reads them."""
    return _map_companded(lambda psi, v: psi.reciprocal_derivative(widen(v)), psis, v)


def scale(psis: PyTree, tree: PyTree, factors: PyTree) -> PyTree:
    """Each companded leaf times its factor, by `precision.scale`."""
    return _map_companded(lambda _, x, factor: precision.scale(x, factor), psis, tree, factors)


def scale_steps(psis: PyTree, steps: PyTree, factors: PyTree) -> PyTree:
    """The step of each companded leaf times its factor, by `precision.scale_step`."""
    return _map_companded(lambda _, step, factor: precision.scale_step(step, factor), psis, steps, factors)


def clip_weights(psis: PyTree, params: PyTree) -> PyTree:
    """Each companded leaf clipped to the limit of its Ψ, just inside its bound."""

    def clip(psi, param):
        if isinstance(param, jax.ShapeDtypeStruct):
            return param
        param = jnp.asarray(param)
        limit = _limit(psi, param.dtype)
        return jnp.clip(widen(param), -limit, limit).astype(param.dtype)

    return _map_companded(clip, psis, params)


def changes(psis: PyTree, steps: PyTree, w: PyTree, params: PyTree, new_psis: PyTree) -> PyTree:
    """Ψ_new(Ψ⁻¹(w) + step), clipped to the limit of Ψ_new, minus the param. The step itself for leaves without a Ψ.

    w: params, clipped by `clip_weights`. new_psis: psis, or psis with other a and b.
    """

    def change_of_param(psi, u, w, param, new_psi):
        dtype = jnp.asarray(param).dtype
        u, w, param = (jnp.asarray(x, wide_dtype(dtype)) for x in (u, w, param))
        limit = _limit(new_psi, dtype)
        change = psi.change(w, u, None if new_psi is psi else new_psi)
        return (elementary.clip(change, -limit - w, limit - w) + (w - param)).astype(dtype)

    return _map_companded(change_of_param, psis, steps, w, params, new_psis)


def _limit(psi, dtype):
    """The largest |w| that a step may reach, inside the bound of psi by `checks.STEP_MARGIN` of dtype."""
    largest = jnp.asarray(float(jnp.finfo(dtype).max) / 2, wide_dtype(dtype))
    if isinstance(psi.bound, float) and math.isinf(psi.bound):  # an infinite array would stop jax.debug_infs
        return largest
    limit = jnp.asarray(psi.bound, wide_dtype(dtype)) * (1 - checks.STEP_MARGIN * float(jnp.finfo(dtype).eps))
    return jnp.minimum(limit, largest)


def _map_companded(f, psis, tree, *trees):
    """tree with f(Ψ, x, ...) instead of each companded leaf x. A gradient of None stays."""

    def apply_to_leaf(psi, x, *others):
        if not isinstance(psi, Psi):
            return x
        arrays = [unboxed(y) for y in others]
        return jax.tree.map(lambda x: f(psi, x, *arrays), x)  # x may be None, or in a box

    return jax.tree.map(apply_to_leaf, psis, tree, *trees, is_leaf=is_psi_or_none)
