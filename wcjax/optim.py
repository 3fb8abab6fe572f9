"""optax transforms for networks that hold v: decay on w = Ψ(v), and adaptive steps scaled by Ψ′(v).

    SGD    optax.chain(add_decayed_weights(1e-4, psi), optax.sgd(0.1, momentum=0.9))
    Adam   optax.chain(add_decayed_weights(1e-4, psi), scale_by_derivative(optax.adam(1e-3), psi))

Both know a companded weight by the name of its leaf ('v'), and take learned a and b from the leaves beside it or from the
shared pair, as `wcjax.params` describes. Under optax.inject_hyperparams name psi in static_args, because a Ψ is callable
and would pass for a schedule.

Source: Cakaj et al. 2023, arXiv 2306.16993; the scaling of adaptive steps is that of Powerpropagation, Schwarz et al.
2021, arXiv 2110.00296.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wcjax.params import Learned, psi_tree
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp

NO_PARAMS = "This transform needs the parameters: call update(grads, state, params)."


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, psi, mask: Any | Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Adds the gradient of the penalty λ/2·‖w‖² to the gradients: decay acts on w = Ψ(v), not on v.

    A leaf v gets λ·Ψ(v)·Ψ′(v), any other leaf λ·p: biases and norms decay too, unless the mask says otherwise. Where a and
    b are learned, v gets λ·v instead, and a and b nothing.

    Args:
      weight_decay: λ, or a schedule of it over the count of updates.
      psi: the Ψ of the network.
      mask: bools in the structure of the params (or a prefix of it), or a function from params to them; True decays.
        Use this argument and not optax.masked, which would hide a and b from the transform.

    Returns:
      A transform with the state of optax.add_decayed_weights. update raises ValueError without params.
    """
    _check_elementwise(psi)
    inner = optax.add_decayed_weights(weight_decay, mask)

    def penalized(p, of_leaf):
        if isinstance(of_leaf, Learned):
            return jnp.zeros_like(p)
        return of_leaf(p) * of_leaf.derivative(p) if of_leaf is psi else p

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(NO_PARAMS)
        return inner.update(updates, state, jax.tree.map(penalized, params, psi_tree(params, psi)))

    return optax.GradientTransformation(inner.init, update_fn)


def scale_by_derivative(inner: optax.GradientTransformation, psi) -> optax.GradientTransformationExtraArgs:
    """Lets an adaptive optimizer step on dL/dw and multiplies its step by Ψ′(v).

    For a leaf v the inner optimizer sees dL/dw = (dL/dv) / Ψ′(v), and w = Ψ(v) in place of v as its params at init and at
    update; the update of v is its step times Ψ′(v). Where Ψ′(v) = 0 (PowerProp at 0) dL/dw is taken as 0 and v rests.
    Other leaves, learned a and b among them, are left to the inner optimizer.

    Args:
      inner: optax.adam(...) or any other optimizer that normalizes gradients. L2 decay belongs before its step:
        optax.chain(add_decayed_weights(λ, psi), this) or optax.chain(optax.add_decayed_weights(λ), adam) inside this.
      psi: the Ψ of the network.

    Returns:
      A transform whose state is that of inner. update raises ValueError without params, or where optax.masked or
      optax.multi_transform gave a and b to another optimizer than their v.
    """
    _check_elementwise(psi)
    inner = optax.with_extra_args_support(inner)

    def split(params):
        """w in place of each v, and Ψ′(v) (1 for leaves without Ψ)."""
        psis = psi_tree(params, psi)
        _check_pairs(psis, psi)
        plain = lambda of_leaf: of_leaf is None or isinstance(of_leaf, Learned)
        weights = jax.tree.map(lambda p, of_leaf: p if plain(of_leaf) else of_leaf(p), params, psis)
        return weights, jax.tree.map(lambda p, of_leaf: 1 if plain(of_leaf) else of_leaf.derivative(p), params, psis)

    def unscaled(g, slope):
        if isinstance(slope, int):
            return g
        usable = jnp.abs(slope) > jnp.finfo(slope.dtype).tiny
        return jnp.where(usable, g / jnp.where(usable, slope, 1), 0).astype(g.dtype)

    def init_fn(params):
        return inner.init(split(params)[0])

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(NO_PARAMS)
        weights, slopes = split(params)
        updates = jax.tree.map(unscaled, updates, slopes)
        updates, state = inner.update(updates, state, weights, **extra_args)
        return jax.tree.map(lambda u, slope: (u * slope).astype(u.dtype), updates, slopes), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_elementwise(psi):
    if not isinstance(psi, Arctan | Arsinh | Erf | PowerProp):
        raise ValueError(
            f"psi must be Arctan, Arsinh, Erf or PowerProp, found {psi!r}. For plain or weight-normalized networks use "
            "optax.add_decayed_weights and the optimizer itself; under optax.inject_hyperparams pass static_args=('psi',)."
        )


def _check_pairs(psis, psi):
    is_psi = lambda x: isinstance(x, type(psi))
    for of_leaf in filter(is_psi, jax.tree.leaves(psis, is_leaf=is_psi)):
        if any(isinstance(x, optax.MaskedNode) for x in vars(of_leaf).values()):
            raise ValueError("A mask hides the learned a and b from their v: give all three to the same optimizer.")
