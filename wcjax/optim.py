"""optax transforms for trees of Reparameterized weights: decay on w = Ψ(v), and adaptive steps scaled by Ψ′(v).

    SGD    optax.chain(add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    Adam   optax.chain(add_decayed_weights(1e-4), scale_by_derivative(optax.adam(1e-3)))

Both recognize each weight and its Ψ by type, so one transform serves plain, companded and weight-normalized networks.
`wcjax.compand` does the same work for a network that holds plain w.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from wcjax import optimizer_checks
from wcjax.params import Reparameterized, is_reparameterized, lacks_pair, with_shared_pair
from wcjax.precision import scale, scale_step, widen
from wcjax.psi import Elementwise, Psi, PyTree
from wcjax.trees import instances


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, mask: PyTree | Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformation:
    r"""Adds the gradient of the penalty λ/2·‖w‖² to the gradients: decay acts on w = Ψ(v), not on v.

    The gradient g of a v with a constant Ψ becomes

    .. math::

      g + \lambda\,\Psi(v)\,\Psi'(v) = \frac{d}{dv}\left(L + \frac{\lambda}{2}\lVert\Psi(v)\rVert^2\right)

    If a and b are learned, the gradient of v gets λ·v, and the gradients of a and b nothing. The gradient of every
    other leaf p gets λ·p: biases, norms, and v and g of WeightNorm. The mask can exempt them.

    Args:
      weight_decay: λ, or a schedule of it over the count of updates.
      mask: bools in the structure of the params (or a prefix of it), or a function from params to them; True decays.

    Returns:
      A transform with the state of optax.add_decayed_weights.

    Raises:
      ValueError: an argument is a Ψ; weight_decay is not a number or a schedule; update gets no params.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import wcjax
      >>> params = wcjax.reparameterize({"kernel": jnp.array([[0.5, -0.2]])}, wcjax.Arctan(a=0.6, b=0.6))
      >>> tx = optax.chain(wcjax.optim.add_decayed_weights(0.1), optax.sgd(1.0))
      >>> zeros = optax.tree.zeros_like(params)
      >>> updates, _ = tx.update(zeros, tx.init(params), params)
      >>> updates["kernel"].v.round(4)  # -λ·w·Ψ′(v)
      Array([[-0.0226,  0.0179]], dtype=float32)

    References:
      Cakaj et al, `Weight Compander: A Simple Weight Reparameterization for Regularization
      <https://arxiv.org/abs/2306.16993>`_, 2023
    """
    optimizer_checks.check_decay(weight_decay, mask)
    inner = optax.add_decayed_weights(weight_decay, mask)

    def update_fn(updates, state, params=None):
        optimizer_checks.check_has_params(params)
        return inner.update(updates, state, _penalty_gradients(params))

    return optax.GradientTransformation(inner.init, update_fn)


def _penalty_gradients(params):
    """The gradient of the decay's penalty, without the factor λ, for each leaf of params: see `add_decayed_weights`."""

    def gradient(x):
        if isinstance(x, Psi):  # a pair that layers share
            return jax.tree.map(jnp.zeros_like, x)
        if not is_reparameterized(x) or not isinstance(x.psi, Elementwise | None):
            return x
        if x.psi is None or x.psi.learned:
            return dataclasses.replace(x, psi=jax.tree.map(jnp.zeros_like, x.psi))
        return dataclasses.replace(x, v=jax.tree.map(lambda v: x.psi(v) * x.psi.derivative(v), x.v))

    return jax.tree.map(gradient, params, is_leaf=_is_weight_or_pair)


def scale_by_derivative(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Lets an adaptive optimizer step on dL/dw and multiplies its step by Ψ′(v).

    An adaptive optimizer divides each entry of the gradient by its magnitude, so in dL/dv = Ψ′(v)·dL/dw it would cancel
    Ψ′. Therefore the inner optimizer sees dL/dw, and w instead of v as its params at init and at update. With the
    gradient g = dL/dv, the update of v is

    .. math::

      \Delta v = \Psi'(v)\,\text{inner}\left(\frac{g}{\Psi'(v)},\; \Psi(v)\right)

    Where Ψ′(v) = 0 (PowerProp at 0), dL/dw is taken as 0 and v does not move. Every other leaf is left to the inner
    optimizer: learned a and b, v and g of WeightNorm, biases.

    Args:
      inner: optax.adam(...) or another optimizer that normalizes gradients. It must not keep weights and return to them
        (sam, schedule_free, madgrad, mechanic, cocob), because its way back would be multiplied by Ψ′ too. L2 decay
        belongs before its step: optax.chain(optax.add_decayed_weights(λ), adam) inside this, or
        optax.chain(add_decayed_weights(λ), this), which costs more.

    Returns:
      A transform whose state is the state of inner.

    Raises:
      ValueError: inner is not an optimizer, or it keeps weights and returns to them; the params, the gradients or the
        extra arguments cannot be used. Each message says what to do.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import wcjax
      >>> params = wcjax.reparameterize({"kernel": jnp.array([[0.5, -0.2]])}, wcjax.Arctan(a=0.6, b=0.6))
      >>> tx = wcjax.optim.scale_by_derivative(optax.adam(0.1))
      >>> ones = optax.tree.ones_like(params)
      >>> updates, _ = tx.update(ones, tx.init(params), params)
      >>> updates["kernel"].v.round(4)  # -0.1·Ψ′(v): the first step of adam has the magnitude 0.1
      Array([[-0.0452, -0.0893]], dtype=float32)

    References:
      Schwarz et al, `Powerpropagation: A sparsity inducing weight reparameterisation
      <https://arxiv.org/abs/2110.00296>`_, 2021
    """
    optimizer_checks.check_optimizer(inner)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        state = inner.init(_with_w(_with_psis(params), params))
        optimizer_checks.check_inner(state, adaptive=True)
        return state

    def update_fn(updates, state, params=None, **extra_args):
        optimizer_checks.check_has_params(params)
        extra_args = optimizer_checks.without_functions(extra_args, updates)
        params_with_psis = _with_psis(params)
        grads = _divide_by_derivative(params_with_psis, updates)
        w = _with_w(params_with_psis, params)
        steps, state = inner.update(grads, state, w, **extra_args)
        return _multiply_by_derivative(params_with_psis, steps), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _with_psis(params):
    """params in which every weight holds its Ψ, also a shared one. ValueError if a mask hides a pair from its v."""
    params = with_shared_pair(params)
    for x in instances(params, Reparameterized):
        if lacks_pair(x):
            raise ValueError("A mask hides the learned a and b from their v: give all three to the same optimizer.")
    return params


def _with_w(params_with_psis, params):
    """params with w = Ψ(v) instead of each v of an elementwise Ψ. A pair that layers share stays where it is."""
    return _map_v(lambda psi, v, _: psi(v), params_with_psis, params)


def _divide_by_derivative(params_with_psis, grads):
    """dL/dw = dL/dv / Ψ′(v) for each v of an elementwise Ψ."""
    return _map_v(lambda psi, v, g: scale(g, psi.reciprocal_derivative(widen(v))), params_with_psis, grads)


def _multiply_by_derivative(params_with_psis, steps):
    """The step of v, Ψ′(v) times the step of w, for each v of an elementwise Ψ."""
    return _map_v(lambda psi, v, step: scale_step(step, psi.derivative(widen(v))), params_with_psis, steps)


def _map_v(f, params_with_psis, tree):
    """Replaces each x of tree that corresponds to a v of an elementwise Ψ in params_with_psis by f(Ψ, v, x)."""

    def replace_v(weight, x):
        if not is_reparameterized(weight) or not isinstance(weight.psi, Elementwise) or x is None:
            return x
        if not is_reparameterized(x):
            raise ValueError("params are Reparameterized, but updates are plain: differentiate with respect to params.")
        f_of_v = lambda v, x: None if x is None else f(weight.psi, v, x)
        return dataclasses.replace(x, v=jax.tree.map(f_of_v, weight.v, x.v))  # v may be in a box

    return jax.tree.map(replace_v, params_with_psis, tree, is_leaf=_is_weight_or_pair)


def _is_weight_or_pair(x):
    """Whether x is a Reparameterized weight, or the pair that layers share."""
    return isinstance(x, Reparameterized | Psi)
