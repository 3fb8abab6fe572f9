"""What cannot be companded, and why: the errors that come before any work."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from wcjax.psi import Psi
from wcjax.reparam import Sigmoid, WeightNorm

LEARN = ("none", "fine", "channel")  # of one weight
LEARN_NETWORK = (*LEARN, "coarse")  # of a network
MARGIN = 4  # roundings below the bound: the float next to it can lie beyond the true one, where Ψ⁻¹ changes sign


def path_str(path) -> str:
    """A JAX key path as 'conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the tree itself)"


def check_psi(psi, kind: type[Psi] = Psi) -> None:
    """Raises ValueError if psi is not an instance of kind (a class itself is not)."""
    if isinstance(psi, kind):
        return
    if kind is Psi:
        raise ValueError(f"psi must be Arctan, Arsinh, Erf, PowerProp or WeightNorm, found {psi!r}.")
    raise ValueError(
        f"psi must be Arctan, Arsinh, Erf or PowerProp, found {psi!r}. A weight-normalized network takes optax's own "
        "optimizers. Under optax.inject_hyperparams pass static_args=('inner', 'psi', 'adaptive', 'where', 'learn')."
    )


def check_learn(psi, learn: str, allowed=LEARN) -> None:
    """Raises ValueError for an unknown way of learning, and for a Ψ without a and b that should learn them."""
    if learn not in allowed:
        raise ValueError(f"learn must be one of {', '.join(map(repr, allowed))}, found {learn!r}.")
    if learn != "none" and not hasattr(psi, "a"):
        name = "None" if psi is None else type(psi).__name__
        raise ValueError(f"{name} has no a and b to learn: use learn='none'.")


def check_selection(weights: dict, params) -> None:
    """Raises ValueError if no weight of params is selected, unless optax.masked or optax.partition hides some of it."""
    hides = lambda x: isinstance(x, optax.MaskedNode)
    if weights or any(map(hides, jax.tree.leaves(params, is_leaf=hides))):
        return
    names = [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    shown = ", ".join(names[:8]) + ", …" * (len(names) > 8)
    raise ValueError(f"`where` selects no leaf of the {len(names)} ({shown}): see wcjax.describe(params, where).")


def check_weights(weights: dict, psi: Psi) -> None:
    """Raises ValueError if a weight is not an array of floats, or is not one that psi reaches.

    weights: {key path: w}. The values of tracers, of shapes alone and of arrays that other processes hold are unknown,
    and pass.
    """
    for name in psi.learned:
        if has_values(x := getattr(psi, name)) and not np.all(np.isfinite(x) & (np.asarray(x) != 0)):
            raise ValueError(f"{type(psi).__name__}: a learned {name} must start finite and not at 0, found {x}.")
    for path, w in weights.items():
        check_float(path_str(path), w)
    sizes = {path: np.abs(np.asarray(w, np.float64)) for path, w in weights.items() if has_values(w)}
    bounded = isinstance(psi, Sigmoid) and psi.supremum < math.inf
    for path, size in sizes.items():
        if not np.all(np.isfinite(size)):
            raise ValueError(f"{path_str(path)}: the weight holds nan or inf.")
        if not bounded and not _starts_finite(weights[path], psi):
            raise ValueError(
                f"{path_str(path)}: Ψ⁻¹(w), or the norm of w, overflows for |w| = {np.max(size):.6g} under {psi!r}. "
                "Choose a larger a, or smaller weights."
            )
    if bounded and not isinstance(psi.a, jax.core.Tracer):
        _check_bound(sizes, weights, psi)


def _starts_finite(w, psi):
    """Whether v is finite, and for WeightNorm the norm of the whole weight."""
    start = psi.for_weight(w, "none", axes=()) if isinstance(psi, WeightNorm) else psi.inverse(w)
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(start))


def _check_bound(sizes, weights, psi):
    """Raises ValueError if the weight that is largest next to its bound is not inside it. sizes: {path: |w|}."""
    worst = {}
    for path, size in sizes.items():
        own = psi.for_weight(weights[path], "none", axes=())  # which raises if an array in psi does not fit to w
        margin = MARGIN * float(jnp.finfo(jax.dtypes.canonicalize_dtype(weights[path].dtype)).eps)
        a, b = (np.broadcast_to(np.abs(np.asarray(x, np.float64)), size.shape) for x in (own.a, own.b))
        reached = a * psi.supremum * (1 - margin)
        if size.size:
            at = np.argmax(size / reached)
            worst[path] = tuple(x.flat[at] for x in (size / reached, size, reached, a, b))
    path = max(worst, key=worst.get, default=None)
    if path is not None and worst[path][0] >= 1:
        share, size, reached, a, b = worst[path]
        unit = 10.0 ** (math.floor(math.log10(a * share)) - 1)
        fits = math.ceil(1.05 * a * share / unit) * unit
        raise ValueError(
            f"{path_str(path)}: largest |w| is {size:.6g}, but {type(psi).__name__}(a={a:g}, b={b:g}) only reaches "
            f"|w| < {reached:.6g} in {weights[path].dtype}. Choose a >= {fits:.3g}, or smaller weights."
        )


def check_float(name: str, w) -> None:
    """Raises ValueError if w, the weight of that name, is not an array of real floats."""
    if not (hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating)):
        found = f"has dtype {w.dtype}" if hasattr(w, "dtype") else f"is a {type(w).__name__}"
        raise ValueError(f"{name} {found}, but only arrays of real floats can be companded.")


def has_values(w) -> bool:
    """Whether this process can look at the values of w: an array, not a tracer, a shape or a part held elsewhere."""
    known = isinstance(w, np.ndarray | jax.Array) and not isinstance(w, jax.core.Tracer)
    return known and getattr(w, "is_fully_addressable", True)


def check_params(params) -> None:
    """Raises ValueError if update was called without params."""
    if params is None:
        raise ValueError("This transform needs the parameters: call update(grads, state, params).")


def check_no_function(extra_args: dict) -> None:
    """Raises ValueError for a function that an inner optimizer would call with v."""
    for name, x in extra_args.items():
        if any(map(callable, (x, *jax.tree.leaves(x)))):
            raise ValueError(
                f"{name} is a function, which the inner optimizer would call with v in place of w. Use an optimizer "
                "that takes none, or compand(..., adaptive=True, learn='none'), whose inner optimizer sees w."
            )


def check_inner(inner_state, adaptive: bool) -> None:
    """Raises ValueError for the state of an inner optimizer that would not do its work."""
    names = ("SAMState", "ScheduleFreeState", "MadgradState", "MechanicState", "COCOBState")
    keeping = tuple(getattr(optax.contrib, name) for name in names)
    known = (*keeping, optax.LookaheadState)
    for x in jax.tree.leaves(inner_state, is_leaf=lambda x: isinstance(x, known)):
        if isinstance(x, optax.LookaheadState):
            raise ValueError("lookahead goes outside: optax.lookahead(compand(...), ...).")
        is_opaque = isinstance(x, optax.contrib.SAMState) and x.cache is None  # it moves within one update only
        if adaptive and isinstance(x, keeping) and not is_opaque:
            raise ValueError(
                f"The inner optimizer keeps weights and returns to them ({type(x).__name__}), but an adaptive step is "
                "multiplied by Ψ′(v), so that it would miss them. Use compand(..., adaptive=False) around it."
            )
