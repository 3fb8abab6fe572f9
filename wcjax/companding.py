"""compand: WC for any model, as an optax optimizer around another one. The parameters stay plain w.

Under optax.inject_hyperparams every argument but the rates belongs in static_args (inner, psi, adaptive, where, learn),
because a Ψ and a `where` are callable and would pass for schedules.

Source: Cakaj et al. 2023, arXiv 2306.16993. docs/two_doors.md derives the step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from wcjax import checks, serialization
from wcjax.optim import LARGEST, scale, scale_step
from wcjax.params import is_kernel, is_unit, is_weight, selected, unboxed
from wcjax.psi import Elementwise, Psi, wide_dtype


class CompandState(NamedTuple):
    """State of `compand`.

    Attributes:
      inner: the state of the inner optimizer.
      decay: the state of optax.add_decayed_weights.
      psis: in the structure of the params, the Ψ of each companded leaf and None elsewhere: which leaves `where`
        selected. It has no leaves of its own, unless a Ψ with arrays was given.
      pairs: None if nothing is learned. With learn='coarse' the pair {'a': (), 'b': ()} of all weights. Otherwise, in
        the structure of the params, {'a', 'b'} of each companded leaf, arrays of its rank, and None elsewhere.
    """

    inner: optax.OptState
    decay: optax.OptState
    psis: Any
    pairs: Any


def compand(
    inner: optax.GradientTransformation,
    psi: Elementwise,
    *,
    adaptive: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any | Callable[[Any], Any] | None = None,
    where: Callable[[Any, Any], bool] = is_kernel,
    learn: str = "none",
) -> optax.GradientTransformationExtraArgs:
    """Trains any model as if its weights were w = Ψ(v), while its parameters stay plain w.

    Each update takes the step u that inner would make on v = Ψ⁻¹(w) and returns Δw = Ψ(v + u) − w. Nothing is swapped
    in the model, nothing is folded afterwards, and the forward and backward pass cost what they did before. v is not
    kept, so w may be loaded, averaged or clipped between updates. If a w is beyond the bound, because it was put there
    or because init ran under jit, which cannot look at values, the next update takes it just inside.

        tx = wcjax.compand(optax.sgd(0.1, momentum=0.9), wcjax.Arctan(0.6, 0.6), weight_decay=1e-4)
        tx = wcjax.compand(optax.adam(1e-3), wcjax.Arctan(0.6, 0.6), adaptive=True)

    Args:
      inner: an optax optimizer. Its update is the step u in v.
      psi: Arctan, Arsinh, Erf or PowerProp.
      adaptive: False: inner sees dL/dv = Ψ′(v)·dL/dw, and v as its params. True, for optimizers that normalize
        gradients (adam, lion, rmsprop, lamb, muon): inner sees dL/dw and w, and u is its step times Ψ′(v).
      weight_decay: λ or a schedule of it. dL/dw gets λ·w before inner sees it, the gradient of any other leaf λ·p. If a
        and b are learned, dL/dv gets λ·v instead, and they get nothing.
      mask: bools in the structure of the params (or a prefix of it), or a function from params to them; True decays.
      where: (key path, leaf) -> bool, the leaves that are companded; asked once, by init. The others are left to inner.
      learn: 'fine', a learned (a, b) for each companded leaf; 'channel', one for each index of its last axis; 'coarse',
        one for all. They start at psi's, are kept in the state and stepped by inner, which then sees the tuple (params,
        pairs); w follows them. Masks and labels of inner must be of that tuple, and its own decay (adamw's) acts on the
        pairs too.

    Returns:
      A transform with a `CompandState`. Updates of companded leaves have the dtype of their leaf. A step that would
      carry w to the bound stops a few roundings before it.

    Raises:
      ValueError, by init: nothing is selected; a selected leaf is not an array of floats; |w| >= psi.bound (with the a
        that fits); adaptive=True around an inner that returns to weights it keeps (sam, schedule_free, madgrad,
        mechanic, cocob), because its way back would be scaled too.
      ValueError, by update: no params; a function among the extra arguments (a line search's value_fn), which inner
        would call with v, unless adaptive=True and nothing is learned.
    """
    checks.check_psi(psi, Elementwise)
    checks.check_learn(psi, learn, checks.LEARN_NETWORK)
    inner = optax.with_extra_args_support(inner)
    decay = optax.add_decayed_weights(weight_decay, mask)
    learned = learn != "none"

    def init_fn(params):
        psis, pairs = _selection(params, psi, where, learn)
        start_psis = _with_pairs(psis, pairs, learn)
        inner_params = _map(_inside if adaptive else lambda psi, w: psi.inverse(_inside(psi, w)), start_psis, params)
        inner_state = inner.init((inner_params, pairs) if learned else inner_params)
        checks.check_inner(inner_state, adaptive)
        return CompandState(inner_state, decay.init(params), psis, pairs)

    def update_fn(updates, state, params=None, **extra_args):
        checks.check_update(params, {} if adaptive and not learned else extra_args)
        psis = _with_pairs(state.psis, state.pairs, learn)
        weights = _map(_inside, psis, params)
        slopes = _map(lambda psi, w: psi.slope(w), psis, weights)
        v = _map(lambda psi, w: psi.inverse(w), psis, weights)

        # dL/dw gets λ·w, which is λ·w·Ψ′ in dL/dv. With learned a and b dL/dv gets λ·v, which is λ·v/Ψ′ in dL/dw.
        if adaptive:
            grads, inner_params = updates, weights
            penalized = _map(lambda psi, v: scale(v, psi.reciprocal_derivative(v)), psis, v) if learned else weights
        else:
            grads, inner_params = _map(lambda _, g, slope: scale(g, slope), psis, updates, slopes), v
            penalized = v if learned else _map(lambda _, w, slope: scale(w, slope), psis, weights, slopes)
        grads, decay_state = decay.update(grads, state.decay, penalized)

        if learned:
            pair_grads = _pair_gradients(state, psis, weights, updates, learn)
            (steps, pair_steps), inner_state = inner.update(
                (grads, pair_grads), state.inner, (inner_params, state.pairs), **extra_args
            )
            pairs = jax.tree.map(_nonzero, optax.apply_updates(state.pairs, pair_steps))
            new_psis = _with_pairs(state.psis, pairs, learn)
        else:
            steps, inner_state = inner.update(grads, state.inner, inner_params, **extra_args)
            pairs, new_psis = None, psis
        if adaptive:
            steps = _map(lambda _, step, slope: scale_step(step, slope), psis, steps, slopes)
        updates = _map(_change_of_w, psis, steps, weights, params, new_psis)
        return updates, CompandState(inner_state, decay_state, state.psis, pairs)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def schedule_free_eval_params(state: CompandState, params):
    """The w at which to evaluate a network that compand(optax.contrib.schedule_free(...), psi) trains.

    optax's function of this name averages what the inner optimizer sees, which is v. state, params: after any update.
    Raises ValueError if a and b are learned, or for another state.
    """
    if not (isinstance(state, CompandState) and isinstance(state.inner, optax.contrib.ScheduleFreeState)):
        raise ValueError("this takes the CompandState of compand(schedule_free(...), psi) itself, not one around it.")
    if state.pairs is not None:
        raise ValueError("schedule_free has no evaluation weights with learned a and b: use learn='none'.")
    v = _map(lambda psi, w: psi.inverse(w), state.psis, params)
    return _map(lambda psi, v: psi(v), state.psis, optax.contrib.schedule_free_eval_params(state.inner, v))


def _selection(params, psi, where, learn):
    """(psis, pairs) of `CompandState` at the start."""
    serialization.register(type(psi))
    structure = jax.tree.structure(params)
    if structure.num_nodes == 1 and structure.num_leaves == 0:  # stands for any tree, in optax.tree.map_params
        any_tree = jnp.zeros(())
        return any_tree, {"none": None, "coarse": _pair(psi, any_tree, learn)}.get(learn, any_tree)
    if any(map(is_weight, jax.tree.leaves(params, is_leaf=is_weight))):
        raise ValueError(
            "compand takes plain weights, but this tree has Reparameterized ones, which hold v: use "
            "wcjax.optim.add_decayed_weights and scale_by_derivative for it, or fold it first."
        )
    weights = selected(params, where)
    checks.check_selection(weights, params)
    checks.check_weights(weights, psi)

    def at_weights(make):
        of_leaf = lambda path, _: make(weights[path]) if path in weights else None
        return jax.tree_util.tree_map_with_path(of_leaf, params, is_leaf=is_unit)

    if learn == "none":
        return at_weights(lambda w: psi.for_weight(w, learn, axes=())), None
    psis = at_weights(lambda _: jax.tree.map(lambda _: None, psi))
    if learn == "coarse":
        is_double = any(w.dtype == jnp.float64 for w in weights.values())
        return psis, _pair(psi, jnp.zeros((), jnp.float64 if is_double else jnp.float32), learn)
    return psis, at_weights(lambda w: _pair(psi, w, learn))


def _pair(psi, w, learn):
    """{'a', 'b'} of the weight w, or for learn='coarse' of all, if w is a scalar."""
    own = psi.for_weight(w, learn, axes={w.ndim - 1})
    return {name: getattr(own, name) for name in own.learned}


def _with_pairs(psis, pairs, learn):
    """psis of a `CompandState` with the learned pairs in them."""
    if learn == "none":
        return psis
    of_leaf = lambda psi, pair: dataclasses.replace(psi, **pair) if isinstance(psi, Psi) else psi
    pairs = jax.tree.map(lambda _: pairs, psis, is_leaf=_is_psi) if learn == "coarse" else pairs
    return jax.tree.map(of_leaf, psis, pairs, is_leaf=_is_psi_or_none)


def _pair_gradients(state, psis, weights, grads, learn):
    """dL/da and dL/db = Σ dL/dw·dw/da, dL/dw·dw/db at fixed v, in the structure of state.pairs."""

    def linear(psi, w, g, new):
        if not isinstance(psi, Psi) or g is None:
            return 0.0
        w, g = (jnp.asarray(x, wide_dtype(x.dtype)) for x in (unboxed(w), unboxed(g)))
        return jnp.sum(g * w * (1 / psi.a) * new.a + g * psi.derivative_b(w) * new.b)

    def total(pairs):  # automatic differentiation sums over the weights that share an a and b
        new_psis = _with_pairs(state.psis, pairs, learn)
        return sum(jax.tree.leaves(jax.tree.map(linear, psis, weights, grads, new_psis, is_leaf=_is_psi_or_none)), 0.0)

    return jax.grad(total)(state.pairs)


def _change_of_w(psi, u, w, start, new):
    """What takes start to new(Ψ⁻¹(w) + u), kept just inside the bound of new. w: start, kept inside that of psi."""
    dtype = jnp.asarray(start).dtype
    u, w, start = (jnp.asarray(x, wide_dtype(dtype)) for x in (u, w, start))
    limit = _limit(new, dtype)
    change = psi.change(w, jnp.clip(u, -LARGEST, LARGEST), None if new is psi else new)
    return (jnp.clip(change, -limit - w, limit - w) + (w - start)).astype(dtype)


def _inside(psi, w):
    """w, cut at the limit."""
    if isinstance(w, jax.ShapeDtypeStruct):
        return w
    w = jnp.asarray(w)
    limit = _limit(psi, w.dtype)
    return jnp.clip(w.astype(wide_dtype(w.dtype)), -limit, limit).astype(w.dtype)


def _limit(psi, dtype):
    """The largest |w| that a step may reach, inside the bound of psi by `checks.STEP_MARGIN` of dtype."""
    limit = jnp.asarray(psi.bound, wide_dtype(dtype)) * (1 - checks.STEP_MARGIN * float(jnp.finfo(dtype).eps))
    return jnp.minimum(limit, float(jnp.finfo(dtype).max) / 2)


def _map(f, psis, tree, *more):
    """tree with f(Ψ, x, ...) in the place of each leaf x that has a Ψ; a gradient of None stays."""

    def of_leaf(psi, x, *rest):
        if not isinstance(psi, Psi):
            return x
        rest = [unboxed(y) for y in rest]
        return jax.tree.map(lambda x: f(psi, x, *rest), x)  # x may be None, or in a box

    return jax.tree.map(of_leaf, psis, tree, *more, is_leaf=_is_psi_or_none)


def _is_psi(x):
    return isinstance(x, Psi)


def _is_psi_or_none(x):
    return x is None or isinstance(x, Psi)


def _nonzero(x):
    """x, or a small number in the place of an exact 0, at which w no longer determines v."""
    return jnp.where(x == 0, 1e-8, x).astype(x.dtype)
