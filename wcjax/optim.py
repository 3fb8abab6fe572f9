"""optax transforms for networks that hold v: decay on w = Ψ(v), and adaptive steps scaled by Ψ′(v).

    SGD    optax.chain(add_decayed_weights(1e-4, psi), optax.sgd(0.1, momentum=0.9))
    Adam   optax.chain(add_decayed_weights(1e-4, psi), scale_by_derivative(optax.adam(1e-3), psi))

Both know a companded weight by the name of its leaf ('v'), and take learned a and b from the leaves beside it or from
the shared pair, as `wcjax.params` describes. `compand` does the same work for a network that holds plain w. Under
optax.inject_hyperparams all arguments but the rates belong in static_args (for compand: inner, psi, adaptive, where,
learn), because a Ψ and a `where` are callable and would pass for schedules.

Source: Cakaj et al. 2023, arXiv 2306.16993; the scaling of adaptive steps is that of Powerpropagation, Schwarz et al.
2021, arXiv 2110.00296.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wcjax.params import LEARN_NETWORK, Learned, check_bound, check_learnable, is_kernel, path_str, plain_path, psi_tree
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp

NO_PARAMS = "This transform needs the parameters: call update(grads, state, params)."


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, psi, mask: Any | Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Adds the gradient of the penalty λ/2·‖w‖² to the gradients: decay acts on w = Ψ(v), not on v.

    A leaf v gets λ·Ψ(v)·Ψ′(v), any other leaf λ·p: biases and norms decay too, unless the mask says otherwise. Where a
    and b are learned, v gets λ·v instead, and a and b nothing.

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
        fixed = of_leaf is psi  # with learned a and b it is a copy that holds them
        return of_leaf(p) * of_leaf.derivative(p) if fixed else p

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(NO_PARAMS)
        return inner.update(updates, state, jax.tree.map(penalized, params, psi_tree(params, psi)))

    return optax.GradientTransformation(inner.init, update_fn)


def scale_by_derivative(inner: optax.GradientTransformation, psi) -> optax.GradientTransformationExtraArgs:
    """Lets an adaptive optimizer step on dL/dw and multiplies its step by Ψ′(v).

    For a leaf v the inner optimizer sees dL/dw = (dL/dv) / Ψ′(v), and w = Ψ(v) in place of v as its params at init and
    at update; the update of v is its step times Ψ′(v). Where Ψ′(v) = 0 (PowerProp at 0) dL/dw is taken as 0 and v
    rests. Other leaves, learned a and b among them, are left to the inner optimizer.

    Args:
      inner: optax.adam(...) or any other optimizer that normalizes gradients. L2 decay belongs before its step:
        optax.chain(optax.add_decayed_weights(λ), adam) inside this, or optax.chain(add_decayed_weights(λ, psi), this),
        which costs more.
      psi: the Ψ of the network.

    Returns:
      A transform whose state is that of inner. update raises ValueError without params, or where optax.masked or
      optax.multi_transform gave a and b to another optimizer than their v. The labels of multi_transform must be one
      for each leaf: with one for a whole layer the check has no pair to look at.
    """
    _check_elementwise(psi)
    inner = optax.with_extra_args_support(inner)

    def psis_of(params):
        psis = psi_tree(params, psi)
        _check_pairs(psis, psi)
        return psis

    def init_fn(params):
        return inner.init(_map(lambda p, v: p(v), psis_of(params), params))

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(NO_PARAMS)
        psis = psis_of(params)
        weights = _map(lambda p, v: p(v), psis, params)
        slopes = _map(lambda p, v: p.derivative(v), psis, params)
        updates = _map(lambda p, g, v: _scale(p, g, p.reciprocal_derivative(v)), psis, updates, params)
        steps, state = inner.update(updates, state, weights, **extra_args)
        return _map(_scale, psis, steps, slopes), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class CompandState(NamedTuple):
    """State of `compand`."""

    inner: optax.OptState
    decay: optax.OptState
    pairs: Any  # None where a and b are fixed; {'a', 'b'} where learn='coarse'; {leaf path: {'a', 'b'}} where 'fine'


def compand(
    inner: optax.GradientTransformation,
    psi,
    *,
    adaptive: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any | Callable[[Any], Any] | None = None,
    where: Callable[[Any, Any], bool] = is_kernel,
    learn: str = "none",
) -> optax.GradientTransformationExtraArgs:
    """Trains any model as if its weights were w = Ψ(v), while its parameters stay plain w.

    Each update takes the step u that inner would make on v = Ψ⁻¹(w) and returns Δw = Ψ(v + u) − w. Nothing is swapped
    in the model, nothing is folded afterwards, and forward and backward pass cost nothing more. v is not kept: w, which
    may be loaded, averaged or clipped between updates, is all there is to know. A w that was put beyond the bound after
    init, or before an init under jit, which cannot look at values, counts as one at the bound: the next update takes it
    there.

        tx = wcjax.compand(optax.sgd(0.1, momentum=0.9), wcjax.Arctan(0.6, 0.6), weight_decay=1e-4)
        tx = wcjax.compand(optax.adam(1e-3), wcjax.Arctan(0.6, 0.6), adaptive=True)

    Args:
      inner: an optax optimizer. Its step u may be anything; only its size in v matters. One that keeps parameters of
        its own for evaluation (schedule_free) keeps v of them, with adaptive=True w that no bound holds.
      psi: Arctan, Arsinh, Erf or PowerProp.
      adaptive: False: inner sees dL/dv = Ψ′(v)·dL/dw, and v as its params. True, for optimizers that normalize
        gradients (adam, lion, rmsprop, lamb, muon): inner sees dL/dw and w, and u is its step times Ψ′(v).
      weight_decay: λ or a schedule of it. dL/dw gets λ·w before inner sees it, the gradient of any other leaf λ·p.
        Where a and b are learned, dL/dv gets λ·v instead, and they get nothing.
      mask: bools in the structure of the params (or a prefix of it), or a function from params to them; True decays.
      where: (key path, leaf) -> bool, the leaves that are companded. The others are left to inner.
      learn: 'fine', a learned (a, b) for each companded leaf; 'coarse', one for all. They start at psi's, live in the
        state and are stepped by inner, which then sees the tuple (params, pairs); w follows them. Masks and labels of
        inner must be of that tuple, and its own decay (adamw's) falls on the pairs too.

    Returns:
      A transform. init raises ValueError where nothing is companded, or |w| >= psi.bound (with the a that fits). update
      raises ValueError without params, or for a value_fn, which a line search would call with v, unless adaptive=True.

    A w that a step would carry to the bound stops a few roundings before it. Updates of companded leaves have the dtype
    of their leaf.
    """
    _check_elementwise(psi)
    check_learnable(psi, learn, LEARN_NETWORK)
    inner = optax.with_extra_args_support(inner)
    decay = optax.add_decayed_weights(weight_decay, mask)
    learned = learn != "none"

    def psis_of(params, pairs):
        """Ψ for each companded leaf, None for the others, in the structure of params."""

        def of_leaf(path, leaf):
            path = plain_path(path)
            if not where(path, leaf):
                return None
            pair = pairs if learn == "coarse" else pairs[path_str(path)] if learned else {}
            return dataclasses.replace(psi, **pair)

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    def init_fn(params):
        leaves = [(plain_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
        leaves = [(path, leaf) for path, leaf in leaves if where(path, leaf)]
        if not leaves:
            raise ValueError("`where` selects no leaf of the params: see wcjax.describe(params, where).")
        check_bound(dict(leaves), psi)
        pairs = None
        if learned:
            of_leaves = {path_str(path): _pair(psi, leaf.dtype) for path, leaf in leaves}
            pairs = of_leaves if learn == "fine" else _pair(psi, jnp.result_type(*(leaf.dtype for _, leaf in leaves)))
        seen = params if adaptive else _map(lambda p, w: p.inverse(w), psis_of(params, pairs), params)
        return CompandState(inner.init((seen, pairs) if learned else seen), decay.init(params), pairs)

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(NO_PARAMS)
        if "value_fn" in extra_args and not adaptive:
            raise ValueError("inner would call value_fn with v in place of w: use adaptive=True, or no line search.")
        psis, given = psis_of(params, state.pairs), params
        params = _map(lambda p, w: jnp.clip(w, -_limit(p, w), _limit(p, w)), psis, given)
        slopes = _map(lambda p, w: p.slope(w), psis, params)
        v = _map(lambda p, w: p.inverse(w), psis, params)

        # dL/dw gets λ·w, which is λ·w·Ψ′ in dL/dv; with learned a and b dL/dv gets λ·v, which is λ·v/Ψ′ in dL/dw.
        if adaptive:
            seen, seen_params = updates, params
            penalized = _map(lambda _, v, slope: _divide(v, slope), psis, v, slopes) if learned else params
        else:
            seen, seen_params = _map(_scale, psis, updates, slopes), v
            penalized = v if learned else _map(_scale, psis, params, slopes)
        seen, decay_state = decay.update(seen, state.decay, penalized)
        if learned:
            seen = (seen, _pair_grads(psis, params, updates, coarse=learn == "coarse"))
            seen_params = (seen_params, state.pairs)
        steps, inner_state = inner.update(seen, state.inner, seen_params, **extra_args)
        pairs, new_psis = None, psis
        if learned:
            steps, pair_steps = steps
            pairs = jax.tree.map(_nonzero, optax.apply_updates(state.pairs, pair_steps))
            new_psis = psis_of(params, pairs)
        if adaptive:
            steps = _map(lambda _, u, slope: _scale(_, jnp.clip(u, -_HUGE, _HUGE), slope), psis, steps, slopes)

        def change_of_w(p, u, w, given, new):
            u = jnp.clip(u, -_HUGE, _HUGE)
            delta = p.change(w, new, u) if learned else p.increment(w, u)
            return _keep_inside(new, w, delta) + (w - given)

        return _map(change_of_w, psis, steps, params, given, new_psis), CompandState(inner_state, decay_state, pairs)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


_HUGE = 1e30  # beyond this a step is as good as infinite, and its products would overflow in float32


def _map(f, psis, tree, *more):
    """f(Ψ, leaf, ...) on the leaves that have a Ψ; the others stay."""

    def of_leaf(x, p, *rest):
        return x if p is None or isinstance(p, Learned) else f(p, x, *rest)

    return jax.tree.map(of_leaf, tree, psis, *more)


def _scale(_, x, slope):
    return (x * slope).astype(x.dtype)


def _divide(x, slope):
    """x / slope, and 0 where slope is 0."""
    usable = jnp.abs(slope) > jnp.finfo(slope.dtype).tiny
    return jnp.where(usable, x / jnp.where(usable, slope, 1), 0).astype(x.dtype)


def _limit(p, w):
    """The largest w allowed: 6 roundings inside the bound of p."""
    limit = jnp.abs(jnp.asarray(p.bound, jnp.float32)) * (1 - 6 * jnp.finfo(w.dtype).eps)
    return jnp.minimum(limit, jnp.finfo(w.dtype).max / 2).astype(w.dtype)


def _keep_inside(p, w, delta):
    """delta, cut so that w + delta stays within the limit."""
    limit = _limit(p, w)
    return jnp.clip(delta, -limit - w, limit - w)


def _pair_grads(psis, params, grads, coarse):
    """dL/da and dL/db of each companded leaf by its path, or their sums over all of them."""
    found = {}

    def of_leaf(path, w, p, g):
        if p is not None:
            w, g = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (w, g))
            found[path_str(plain_path(path))] = {
                "a": jnp.sum(g * p.derivative_a(w)),
                "b": jnp.sum(g * p.derivative_b(w)),
            }

    jax.tree_util.tree_map_with_path(of_leaf, params, psis, grads)
    return jax.tree.map(lambda *x: sum(x), *found.values()) if coarse else found


def _pair(psi, dtype):
    return {letter: jnp.asarray(getattr(psi, letter), jnp.promote_types(dtype, jnp.float32)) for letter in "ab"}


def _nonzero(x):
    """x, or a small number in place of an exact zero, at which w no longer determines v."""
    return jnp.where(x == 0, 1e-8, x).astype(x.dtype)


def _check_elementwise(psi):
    if not isinstance(psi, Arctan | Arsinh | Erf | PowerProp):
        raise ValueError(
            f"psi must be Arctan, Arsinh, Erf or PowerProp, found {psi!r}. Plain and weight-normalized networks take "
            "optax's own transforms; under optax.inject_hyperparams pass static_args=('psi',), for compand "
            "also 'inner', 'adaptive', 'where' and 'learn'."
        )


def _check_pairs(psis, psi):
    is_psi = lambda x: isinstance(x, type(psi))
    for of_leaf in filter(is_psi, jax.tree.leaves(psis, is_leaf=is_psi)):
        if any(isinstance(x, optax.MaskedNode) for x in vars(of_leaf).values()):
            raise ValueError("A mask hides the learned a and b from their v: give all three to the same optimizer.")
