"""What cannot be companded, and why: the errors that come before any work."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from wcjax.psi import Elementwise, Psi
from wcjax.reparam import Sigmoid

LEARN = ("none", "fine", "channel")  # of one weight
LEARN_NETWORK = (*LEARN, "coarse")  # of a network
# How far inside the bound w must be, in machine epsilons: the float nearest to a·π/2 may exceed it, and tan changes
# sign there. A step stops a little earlier, so that the weights it leaves are accepted as a start.
START_MARGIN, STEP_MARGIN = 4, 6


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
    if learn != "none" and not isinstance(psi, Sigmoid):
        name = "None" if psi is None else type(psi).__name__
        raise ValueError(f"{name} has no a and b to learn: use learn='none'.")


def check_where(where) -> None:
    """Raises ValueError if `where` is not a function; a Ψ, which is callable, is a slip in the order of arguments."""
    if not callable(where) or isinstance(where, Psi):
        raise ValueError(f"`where` must be a function (key path, leaf) -> bool, found {where!r}.")


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
    for path, w in weights.items():
        check_float(path_str(path), w)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(psi)):
        return
    for name in psi.learned:
        if not np.all(np.isfinite(x := np.asarray(getattr(psi, name))) & (x != 0)):
            raise ValueError(f"{type(psi).__name__}: a learned {name} must start finite and not at 0, found {x}.")
    known = {path: w for path, w in weights.items() if has_values(w)}
    for path, w in known.items():
        if not np.all(np.isfinite(np.asarray(w, np.float64))):
            raise ValueError(f"{path_str(path)}: the weight holds nan or inf.")
    if isinstance(psi, Elementwise) and np.all(np.isfinite(psi.bound)):
        _check_bound(known, psi)
    else:
        _check_start(known, psi)


def _check_start(weights, psi):
    """Raises ValueError if v, or for WeightNorm the norm of the whole weight, overflows."""
    for path, w in weights.items():
        own = _for_weight(path, w, psi)
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves((own, own.inverse(w)))):
            raise ValueError(
                f"{path_str(path)}: Ψ⁻¹(w), or the norm of w, overflows for |w| = {np.max(np.abs(w)):.6g} under "
                f"{psi!r}. Choose a larger a, or smaller weights."
            )


def _check_bound(weights, psi):
    """Raises ValueError if the largest |w| relative to its bound is not inside it."""
    worst = {}
    for path, w in weights.items():
        own = _for_weight(path, w, psi)
        dtype = jax.dtypes.canonicalize_dtype(w.dtype)
        size = np.abs(np.asarray(w, np.float64))
        reached = np.broadcast_to(own.bound, size.shape).astype(np.float64)
        reached = reached * (1 - START_MARGIN * float(jnp.finfo(dtype).eps))
        if size.size:
            at = np.argmax(size / reached)
            a, b = (np.broadcast_to(getattr(own, name, 1.0), size.shape).flat[at] for name in "ab")
            worst[path] = (size / reached).flat[at], size.flat[at], reached.flat[at], abs(a), abs(b), dtype
    path = max(worst, key=lambda path: worst[path][0], default=None)
    if path is None or worst[path][0] < 1:
        return
    ratio, size, reached, a, b, dtype = worst[path]
    name, cure = repr(psi), "Choose smaller weights."
    if isinstance(psi, Sigmoid):
        digit = 10.0 ** (math.floor(math.log10(a * ratio)) - 1)
        sufficient_a = math.ceil(1.05 * a * ratio / digit) * digit
        name, cure = f"{type(psi).__name__}(a={a:g}, b={b:g})", f"Choose a >= {sufficient_a:.3g}, or smaller weights."
    raise ValueError(
        f"{path_str(path)}: largest |w| is {size:.6g}, but {name} only reaches |w| < {reached:.6g} in {dtype}. {cure}"
    )


def _for_weight(path, w, psi):
    try:
        return psi.for_weight(w, "none", axes=())
    except ValueError as error:
        raise ValueError(f"{path_str(path)}: {error}") from error


def check_float(name: str, w) -> None:
    """Raises ValueError if w, the weight of that name, is not an array of real floats."""
    if not (hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating)):
        found = f"has dtype {w.dtype}" if hasattr(w, "dtype") else f"is a {type(w).__name__}"
        raise ValueError(f"{name} {found}, but only arrays of real floats can be companded.")


def has_values(w) -> bool:
    """Whether this process can look at the values of w: an array, not a tracer, a shape or a part held elsewhere."""
    known = isinstance(w, np.ndarray | np.generic | jax.Array) and not isinstance(w, jax.core.Tracer)
    return known and getattr(w, "is_fully_addressable", True)


def check_update(params, extra_args: dict) -> None:
    """Raises ValueError for an update without params, or with a function that an inner optimizer would call with v."""
    if params is None:
        raise ValueError("This transform needs the parameters: call update(grads, state, params).")
    for name, x in extra_args.items():
        if any(map(callable, (x, *jax.tree.leaves(x)))):
            raise ValueError(
                f"{name} is a function, which the inner optimizer would call with v in place of w. Use an optimizer "
                "that takes none, or compand(..., adaptive=True, learn='none'), whose inner optimizer sees w."
            )


def check_inner(inner_state, adaptive: bool) -> None:
    """Raises ValueError for an inner optimizer that cannot work inside: its state tells what it is."""
    names = ("SAMState", "ScheduleFreeState", "MadgradState", "MechanicState", "COCOBState")
    keeping = tuple(getattr(optax.contrib, name) for name in names)
    known = (*keeping, optax.LookaheadState)
    for x in jax.tree.leaves(inner_state, is_leaf=lambda x: isinstance(x, known)):
        if isinstance(x, optax.LookaheadState):
            raise ValueError("wrap compand in lookahead, not lookahead in compand: optax.lookahead(compand(...), ...).")
        is_opaque = isinstance(x, optax.contrib.SAMState) and x.cache is None  # it moves within one update only
        if adaptive and isinstance(x, keeping) and not is_opaque:
            raise ValueError(
                f"The inner optimizer keeps weights and returns to them ({type(x).__name__}), but an adaptive step is "
                "multiplied by Ψ′(v), so that it would miss them. Use compand(..., adaptive=False) around it."
            )
