"""compand: WC for any model, as an optax optimizer around another one. The parameters stay plain w.

Under optax.inject_hyperparams every argument except weight_decay belongs in static_args (inner, psi, adaptive, mask,
where, learn), because a Ψ, a mask and a `where` may be callable and would be taken for schedules. A schedule of a or b
belongs to a function that makes Ψ: optax.inject_hyperparams(lambda a: compand(inner, Arctan(a, b)))(schedule).

docs/how_it_works.md derives the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from wcjax import checks, optimizer_checks, psi_trees, serialization
from wcjax.params import Reparameterized, is_reparameterized_or_box, selected_weights, unboxed
from wcjax.precision import wide_dtype, widen
from wcjax.psi import LEARN_NETWORK, RANGE, Elementwise, Psi, PyTree, Where
from wcjax.psi_trees import is_psi_or_none
from wcjax.reparam import Scaled
from wcjax.trees import instances


class CompandState(NamedTuple):
    """State of `compand`.

    Attributes:
      inner: the state of the inner optimizer.
      decay: the state of optax.add_decayed_weights.
      psis: in the structure of the params, the Ψ of each companded leaf and None elsewhere: which leaves `where`
        selected. It has no leaves, unless psi holds arrays.
      pairs: None if nothing is learned. With learn='coarse' the pair {'a': (), 'b': ()} of all weights. Otherwise, in
        the structure of the params, {'a', 'b'} of each companded leaf, arrays of its rank, and None elsewhere.
    """

    inner: optax.OptState
    decay: optax.OptState
    psis: PyTree
    pairs: PyTree


def compand(
    inner: optax.GradientTransformation,
    psi: Elementwise,
    *,
    adaptive: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    where: Where | None = None,
    learn: str = "none",
) -> optax.GradientTransformationExtraArgs:
    r"""Trains any model as if its weights were w = Ψ(v), while its parameters stay plain w.

    Each update takes the step u that inner would make on v = Ψ⁻¹(w), and returns the change of w:

    .. math::

      \Delta w = \Psi(v + u) - w, \qquad v = \Psi^{-1}(w)

    With g = dL/dw and the decay λ, the step is

    .. math::

      u = \text{inner}\left(\Psi'(v)\,(g + \lambda w),\; v\right)

    and for an adaptive optimizer, which would cancel a factor of its gradients,

    .. math::

      u = \Psi'(v)\;\text{inner}\left(g + \lambda w,\; w\right)

    For the arctan, Δw has a closed form without v. With x = w/a and z = u/b,

    .. math::

      \Delta w = a\,\text{atan2}\left(z\,\cos^2 x,\; 1 + z\,\sin x\,\cos x\right),
      \qquad \Psi'(v) = \frac{a}{b}\,\cos^2 x

    The model stays as it is, nothing is folded after training, and the forward and backward pass cost what they did
    before. v is not stored, so w may be loaded, averaged or clipped between updates. A weight that lies beyond the
    bound, for example because init ran under jit and could not check values, is first moved just inside.

    Args:
      inner: an optax optimizer with its learning rate. Its update is u, or u / Ψ′(v) if adaptive.
      psi: Arctan, Arsinh, Erf or PowerProp. With learn='none' its arrays are not learned, but may change between
        updates. w stays, unless it is beyond the new bound. An inner optimizer that keeps weights (schedule_free,
        madgrad, cocob) keeps v of the old Ψ, and would move w.
      adaptive: whether inner normalizes gradients (adam, lion, rmsprop, lamb, muon). If so, it sees dL/dw and w, and u
        is its step times Ψ′(v): see `wcjax.optim.scale_by_derivative`. If not, it sees dL/dv = Ψ′(v)·dL/dw and v.
      weight_decay: λ or a schedule of it. dL/dw gets λ·w before inner sees it, the gradient of any other leaf λ·p. If a
        and b are learned, dL/dv gets λ·v instead, and the gradients of a and b nothing.
      mask: bools in the structure of the params (or a prefix of it), or a function from params to them; True decays.
      where: (key path, leaf) -> bool, the leaves that are companded; None: `wcjax.is_kernel`. init asks it once for
        each leaf. The other leaves are left to inner.
      learn: 'fine', a learned (a, b) for each companded leaf; 'channel', one for each index of its last axis; 'coarse',
        one for all. They start at psi's a and b, are stored in the state and stepped by inner, which then sees the
        tuple (params, pairs); w follows them. Masks and labels of inner must have the structure of that tuple, and
        inner's own decay (as in adamw) acts on the pairs too, also under a mask by rank, because a and b have the rank
        of their weight.

    Returns:
      A transform with a `wcjax.companding.CompandState`. Updates of companded leaves have the dtype of their leaf. A
      step that would reach the bound stops a few roundings short of it.

    Raises:
      ValueError: an argument, the params, the state or the inner optimizer cannot be used. init checks |w| < psi.bound,
        and its message has an a that fits. Each message says what to do. docs/which_optimizers.md lists the inner
        optimizers that are refused.

    Warns:
      UserWarning: by init, if inner is adam or another optimizer that cancels Ψ′, and adaptive is False.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import wcjax
      >>> loss = lambda params: jnp.sum((params["kernel"] - 0.7) ** 2)
      >>> params = {"kernel": jnp.array([[0.5, -0.2]])}
      >>> tx = wcjax.compand(optax.sgd(0.1, momentum=0.9), wcjax.Arctan(a=0.6, b=0.6), weight_decay=1e-4)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     print(f"Loss: {loss(params):.3f}")
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      Loss: 0.850
      Loss: 0.595
      Loss: 0.249
      Loss: 0.080

      An adaptive optimizer needs another argument:

      >>> tx = wcjax.compand(optax.adam(1e-3), wcjax.Arctan(a=0.6, b=0.6), adaptive=True)

    References:
      Cakaj et al, `Weight Compander: A Simple Weight Reparameterization for Regularization
      <https://arxiv.org/abs/2306.16993>`_, 2023

      Schwarz et al, `Powerpropagation: A sparsity inducing weight reparameterisation
      <https://arxiv.org/abs/2110.00296>`_, 2021
    """
    optimizer_checks.check_optimizer(inner)
    checks.check_psi(psi, Elementwise)
    checks.check_learn(psi, learn, LEARN_NETWORK)
    optimizer_checks.check_decay(weight_decay, mask)
    if not isinstance(adaptive, bool):
        raise ValueError(f"adaptive must be True or False, found {adaptive!r}.")
    inner = optax.with_extra_args_support(inner)
    decay = optax.add_decayed_weights(weight_decay, mask)
    learned = learn != "none"

    def init_fn(params):
        psis, pairs = _initial_psis_and_pairs(params, psi, where, learn)
        start_psis = _current_psis(psis, pairs, learn)
        w = psi_trees.clip_weights(start_psis, params)
        inner_params = w if adaptive else psi_trees.inverse(start_psis, w)
        inner_state = inner.init((inner_params, pairs) if learned else inner_params)
        if instances(inner_state, CompandState):
            raise ValueError("inner is another compand, whose w would be taken for v: pass the optimizer inside it.")
        optimizer_checks.check_inner(inner_state, adaptive, learned)
        return CompandState(inner_state, decay.init(params), psis, pairs)

    def check_update(state, params):
        optimizer_checks.check_has_params(params)
        if not isinstance(state, CompandState):
            raise ValueError(
                f"state must be the CompandState that init returns, found {type(state).__name__}. Restore a checkpoint "
                "into the state of init."
            )
        optimizer_checks.check_state(state.psis, state.pairs, psi, learn)
        if learned:
            start_pairs = functools.partial(_initial_pairs, state.psis, psi=psi, learn=learn)
            optimizer_checks.check_pairs(state.pairs, jax.eval_shape(start_pairs, params))

    def inner_gradients(grads, decay_state, psis, w, v, slopes):
        """The decayed gradients that inner sees, dL/dw if adaptive and dL/dv if not, and the new state of the decay."""
        if not learned:
            grads, decay_state = decay.update(grads, decay_state, w)
            return (grads if adaptive else psi_trees.scale(psis, grads, slopes)), decay_state
        if not adaptive:
            return decay.update(psi_trees.scale(psis, grads, slopes), decay_state, v)
        # The penalty's gradient λ·v is part of dL/dv, so that dL/dw gets λ·v / Ψ′(v).
        penalty_grads = psi_trees.scale(psis, v, psi_trees.reciprocal_slopes(psis, v))
        return decay.update(grads, decay_state, penalty_grads)

    def update_fn(updates, state, params=None, **extra_args):
        check_update(state, params)
        if not adaptive or learned:
            extra_args = optimizer_checks.without_functions(extra_args, updates)
        if not learned:
            state = state._replace(psis=_with_arrays_of(psi, state.psis, params))
        psis = _current_psis(state.psis, state.pairs, learn)
        w = psi_trees.clip_weights(psis, params)
        v, slopes = psi_trees.inverse(psis, w), psi_trees.slopes(psis, w)
        grads, decay_state = inner_gradients(updates, state.decay, psis, w, v, slopes)
        inner_params = w if adaptive else v
        if learned:
            pair_grads = _pair_gradients(state, psis, w, updates, learn)
            (steps, pair_steps), inner_state = inner.update(
                (grads, pair_grads), state.inner, (inner_params, state.pairs), **extra_args
            )
            pairs = jax.tree.map(_nonzero, optax.apply_updates(state.pairs, pair_steps))
            new_psis = _current_psis(state.psis, pairs, learn)
        else:
            steps, inner_state = inner.update(grads, state.inner, inner_params, **extra_args)
            pairs, new_psis = None, psis
        if adaptive:
            steps = psi_trees.scale_steps(psis, steps, slopes)
        changes = psi_trees.changes(psis, steps, w, params, new_psis)
        return changes, CompandState(inner_state, decay_state, state.psis, pairs)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def schedule_free_eval_params(state: CompandState, params: PyTree) -> PyTree:
    """The w at which to evaluate a network that compand(optax.contrib.schedule_free(...), psi) trains.

    optax's function of this name averages the params that the inner optimizer sees, which are v.

    Args:
      state, params: as they are after any update.

    Returns:
      The weights in the structure of params. Keep training with params.

    Raises:
      ValueError: a and b are learned, or state is not the state of such an optimizer.
    """
    if not (isinstance(state, CompandState) and isinstance(state.inner, optax.contrib.ScheduleFreeState)):
        raise ValueError("this takes the CompandState of compand(schedule_free(...), psi) itself, not one around it.")
    if state.pairs is not None:
        raise ValueError("schedule_free has no evaluation weights with learned a and b: use learn='none'.")
    v = psi_trees.inverse(state.psis, params)
    eval_v = optax.contrib.schedule_free_eval_params(state.inner, v)
    return psi_trees.apply(state.psis, eval_v)


def _initial_psis_and_pairs(params, psi, where, learn):
    """(psis, pairs) of `CompandState` at the start."""
    serialization.register(type(psi))
    structure: Any = jax.tree.structure(params)
    if structure.num_nodes == 1 and structure.num_leaves == 0:
        # A tree without leaves, or the placeholder for any tree with which optax.tree.map_params calls init.
        psis = params if isinstance(params, Mapping | Sequence | None) else jnp.zeros(())
        if learn == "coarse":
            return psis, _pair(psi, jnp.zeros(()), learn)
        return psis, None if learn == "none" else psis
    if instances(params, Reparameterized):
        raise ValueError(
            "compand takes plain weights, but this tree has Reparameterized ones, which hold v: use "
            "wcjax.optim.add_decayed_weights and scale_by_derivative for it, or fold it first."
        )
    weights = selected_weights(params, where)
    checks.check_selection(weights, params)
    checks.check_weights(weights, psi)
    without_arrays = jax.tree.map(lambda _: None, psi)

    def psi_of(path, _):
        if path not in weights:
            return None
        return psi.for_weight(weights[path], learn, axes=()) if learn == "none" else without_arrays

    psis = jax.tree_util.tree_map_with_path(psi_of, params, is_leaf=is_reparameterized_or_box)
    return psis, None if learn == "none" else _initial_pairs(psis, params, psi, learn)


def _with_arrays_of(psi, psis, params):
    """psis of a `CompandState` with the arrays of psi, which may be others than at init."""
    if not psi.learned:
        return psis

    def renew(own_psi, w):
        if not isinstance(own_psi, Psi):
            return own_psi
        new_psi = psi.for_weight(unboxed(w), "none", axes=())
        # After jax.vmap(tx.init) the arrays have a leading axis.
        return jax.tree.map(lambda new, own: jnp.broadcast_to(new, own.shape), new_psi, own_psi)

    return jax.tree.map(renew, psis, params, is_leaf=is_psi_or_none)


def _initial_pairs(psis, params, psi, learn):
    """The learned pairs of `CompandState` at the start."""
    weights = jax.tree.map(
        lambda psi, w: unboxed(w) if isinstance(psi, Psi) else None, psis, params, is_leaf=is_psi_or_none
    )
    if learn == "coarse":
        is_double = any(wide_dtype(w.dtype) == jnp.float64 for w in jax.tree.leaves(weights))
        return _pair(psi, jnp.zeros((), jnp.float64 if is_double else jnp.float32), learn)
    return jax.tree.map(lambda w: _pair(psi, w, learn), weights)


def _pair(psi, w, learn):
    """{'a', 'b'} of the weight w. With learn='coarse' w is a scalar, and the pair is for all weights."""
    own_psi = psi.for_weight(w, learn, axes={w.ndim - 1})
    return {name: getattr(own_psi, name) for name in own_psi.learned}


def _current_psis(psis, pairs, learn):
    """psis of a `CompandState` with the learned pairs in them."""
    if learn == "none":
        return psis
    insert = lambda psi, pair: dataclasses.replace(psi, **pair) if isinstance(psi, Psi) else psi
    if learn == "coarse":
        return jax.tree.map(lambda psi: insert(psi, pairs), psis, is_leaf=is_psi_or_none)
    return jax.tree.map(insert, psis, pairs, is_leaf=is_psi_or_none)


def _pair_gradients(state, psis, w, grads, learn):
    """dL/da = Σ dL/dw·dw/da and dL/db = Σ dL/dw·dw/db at fixed v, in the structure of state.pairs."""

    def linear_loss(psi, w, g, new):  # its derivatives with respect to new.a and new.b are those of L
        if not isinstance(psi, Scaled) or g is None:
            return 0.0
        w, g = (widen(x) for x in (unboxed(w), unboxed(g)))
        return jnp.sum(g * w * (new.a / psi.a) + g * psi.slope_b(w) * new.b)

    def total_loss(pairs):  # automatic differentiation sums over the weights that share an a and b
        new_psis = _current_psis(state.psis, pairs, learn)
        losses = jax.tree.map(linear_loss, psis, w, grads, new_psis, is_leaf=is_psi_or_none)
        return sum(jax.tree.leaves(losses), 0.0)

    return jax.grad(total_loss)(state.pairs)


def _nonzero(x):
    """x, with a small number instead of an exact 0, because at a = 0 or b = 0 w does not determine v."""
    return jnp.where(x == 0, RANGE[0], x).astype(x.dtype)
