"""The errors for what cannot be companded, raised before any work. Each says why."""

import functools
import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from wcjax.psi import LEARN, Elementwise, Psi, PyTree
from wcjax.reparam import BY_NAME, Sigmoid, WeightNorm

Weights = Mapping[jax.tree_util.KeyPath, Any]  # {key path: w}

# How far inside the bound w must be, in machine epsilons: the float nearest to a·π/2 may exceed it, and tan changes
# sign there. A step stops a little earlier, so that the weights after it are accepted as initial weights.
START_MARGIN, STEP_MARGIN = 4, 6

# States of optimizers that keep weights and return to them, of line searches, and of optimizers that divide a gradient
# by its size.
KEEPS_WEIGHTS = (
    optax.contrib.COCOBState,
    optax.contrib.MadgradState,
    optax.contrib.MechanicState,
    optax.contrib.SAMState,
    optax.contrib.ScheduleFreeState,
)
LINE_SEARCHES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)
CANCELS_SLOPE = (
    optax.ScaleByAdaDeltaState,
    optax.ScaleByAdamState,
    optax.ScaleByAdanState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
    optax.ScaleByRStdDevState,
    optax.ScaleByRmsState,
    optax.ScaleByRpropState,
    optax.ScaleByRssState,
)


def path_str(path: jax.tree_util.KeyPath) -> str:
    """A JAX key path as 'conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the tree itself)"


def instances(tree: PyTree, kinds: type | tuple[type, ...]) -> list[Any]:
    """The nodes and leaves of a tree that are of one of these classes. Those inside another are omitted."""
    is_one = lambda x: isinstance(x, kinds)
    return list(filter(is_one, jax.tree.leaves(tree, is_leaf=is_one)))


def check_psi(psi: Any, kind: type[Psi] = Psi) -> None:
    """Raises ValueError if psi is not an instance of kind, for example if it is a class."""
    if isinstance(psi, kind):
        return
    *names, last = (cls.__name__ for cls in BY_NAME.values() if issubclass(cls, kind))
    message = f"psi must be {', '.join(names)} or {last}, found {psi!r}."
    if isinstance(psi, WeightNorm):
        message += " A weight-normalized network takes optax's own optimizers."
    elif isinstance(psi, jax.Array):  # optax.inject_hyperparams calls every callable as a schedule
        arguments = "'inner', 'psi', 'adaptive', 'mask', 'where', 'learn'"
        message += f" Under optax.inject_hyperparams pass static_args=({arguments})."
    raise ValueError(message)


def check_optimizer(inner: Any) -> None:
    """Raises ValueError if inner is not an optax optimizer, for example if it is the function that makes one."""
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise ValueError(f"inner must be an optax optimizer, for example optax.sgd(0.1), found {inner!r}.")


def check_weight_decay(weight_decay: Any) -> None:
    """Raises ValueError if weight_decay is neither a number >= 0 nor a schedule. A Ψ is callable, but no schedule."""
    if isinstance(weight_decay, jax.core.Tracer) or (callable(weight_decay) and not isinstance(weight_decay, Psi)):
        return
    is_number = isinstance(weight_decay, numbers.Real | np.ndarray | jax.Array) and not isinstance(weight_decay, bool)
    if not (is_number and np.ndim(weight_decay) == 0 and 0 <= weight_decay < math.inf):
        raise ValueError(f"weight_decay must be a number of at least 0, or a schedule of it, found {weight_decay!r}.")


def check_learn(psi: Psi | None, learn: str, choices: tuple[str, ...] = LEARN) -> None:
    """Raises ValueError for an unknown way of learning, and for a Ψ without a and b that should learn them."""
    if learn not in choices:
        raise ValueError(f"learn must be one of {', '.join(map(repr, choices))}, found {learn!r}.")
    if learn != "none" and not isinstance(psi, Sigmoid):
        name = "None" if psi is None else type(psi).__name__
        raise ValueError(f"{name} has no a and b to learn: use learn='none'.")


def check_where(where: Any) -> None:
    """Raises ValueError if `where` is not a function. A Ψ, although callable, is one in the wrong place."""
    if not callable(where) or isinstance(where, Psi):
        raise ValueError(f"`where` must be a function (key path, leaf) -> bool, found {where!r}.")


def is_selected(answer: Any, path: jax.tree_util.KeyPath) -> bool:
    """The answer of `where` about the leaf at path. Raises ValueError if it is not a bool."""
    if np.ndim(answer) or np.asarray(answer).dtype != bool:
        returned = f"{type(answer).__name__} for {path_str(path)}"
        raise ValueError(f"`where` must return True or False for each leaf, but returned a value of type {returned}.")
    return bool(answer)


def check_selection(weights: Weights, params: PyTree, num_reparameterized: int = 0) -> None:
    """Raises ValueError if no weight of params is selected, unless optax.masked or optax.partition hides some of it."""
    if weights or instances(params, optax.MaskedNode):
        return
    names = [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    shown = ", ".join(names[:8]) + ", …" * (len(names) > 8)
    message = f"`where` selects no leaf of the {len(names)} ({shown}): see wcjax.describe(params, where)."
    if num_reparameterized:
        message += f" Weights that are Reparameterized already: {num_reparameterized}; fold the tree to change their Ψ."
    raise ValueError(message)


def check_weights(weights: Weights, psi: Psi) -> None:
    """Raises ValueError if a weight is not an array of floats, or is not one that psi reaches.

    The values of tracers, of shapes alone and of arrays that other processes hold are unknown. They are not checked.
    """
    for path, w in weights.items():
        check_float(path_str(path), w)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(psi)):
        return
    for name in psi.learned:
        if not np.all(np.isfinite(x := np.asarray(getattr(psi, name))) & (x != 0)):
            raise ValueError(f"{type(psi).__name__}: a learned {name} must start finite and not at 0, found {x}.")
    arrays = {path: w for path, w in weights.items() if has_values(w)}
    for path, w in arrays.items():
        if not np.all(np.isfinite(np.asarray(w, np.float64))):
            raise ValueError(f"{path_str(path)}: the weight holds nan or inf.")
    with jax.ensure_compile_time_eval():  # a trace around this would make tracers of the known values
        if isinstance(psi, Elementwise) and np.all(np.isfinite(psi.bound)):
            _check_bound(arrays, psi)
        else:
            _check_start(arrays, psi)


def _check_start(weights: Weights, psi: Psi) -> None:
    """Raises ValueError if v, or for WeightNorm the norm of the whole weight, overflows."""
    for path, w in weights.items():
        own_psi = _for_weight(path, w, psi)
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves((own_psi, own_psi.inverse(w)))):
            raise ValueError(
                f"{path_str(path)}: Ψ⁻¹(w), or the norm of w, overflows for |w| = {np.max(np.abs(w)):.6g} under "
                f"{psi!r}. Choose a larger a, or smaller weights."
            )


class _BoundUse(NamedTuple):
    """The entry of a weight that is nearest to its bound."""

    share: float  # of the limit
    path: jax.tree_util.KeyPath
    size: float  # |w|
    limit: float
    a: float
    b: float


def _check_bound(weights: Weights, psi: Elementwise) -> None:
    """Raises ValueError if the largest |w| relative to its bound is not inside it."""
    worst = None
    for path, w in weights.items():
        own_psi = _for_weight(path, w, psi)
        size = np.abs(np.asarray(w, np.float64))
        limit = np.broadcast_to(own_psi.bound, size.shape).astype(np.float64)
        limit = limit * (1 - START_MARGIN * float(jnp.finfo(jax.dtypes.canonicalize_dtype(w.dtype)).eps))
        if size.size:
            index = np.argmax(size / limit)
            a, b = (np.abs(np.broadcast_to(getattr(own_psi, name, 1.0), size.shape).flat[index]) for name in "ab")
            use = _BoundUse((size / limit).flat[index], path, size.flat[index], limit.flat[index], a, b)
            worst = use if worst is None or use.share > worst.share else worst
    if worst is None or worst.share < 1:
        return
    name, cure = repr(psi), "Choose smaller weights."
    if isinstance(psi, Sigmoid):
        needed = worst.a * worst.share
        digit = 10.0 ** (math.floor(math.log10(needed)) - 1)
        sufficient = math.ceil(1.05 * needed / digit) * digit
        name = f"{type(psi).__name__}(a={worst.a:g}, b={worst.b:g})"
        cure = f"Choose a >= {sufficient:.3g}, or smaller weights."
    dtype = jax.dtypes.canonicalize_dtype(weights[worst.path].dtype)
    raise ValueError(
        f"{path_str(worst.path)}: largest |w| is {worst.size:.6g}, but {name} only reaches |w| < {worst.limit:.6g} in "
        f"{dtype}. {cure}"
    )


def _for_weight(path, w, psi):
    try:
        return psi.for_weight(w, "none", axes=())
    except ValueError as error:
        raise ValueError(f"{path_str(path)}: {error}") from error


def check_float(name: str, w: Any) -> None:
    """Raises ValueError if w, the weight of that name, is not an array of real floats of 16 bits or more."""
    if not (hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating) and jnp.finfo(w.dtype).bits >= 16):
        fault = f"has dtype {w.dtype}" if hasattr(w, "dtype") else f"is a {type(w).__name__}"
        raise ValueError(f"{name} {fault}, but only arrays of real floats of 16 bits or more can be companded.")


def has_values(w: Any) -> bool:
    """Whether w is an array all of whose values this process has, not a tracer or a shape."""
    is_array = isinstance(w, np.ndarray | np.generic | jax.Array) and not isinstance(w, jax.core.Tracer)
    return is_array and getattr(w, "is_fully_addressable", True)


def check_update(params: PyTree) -> None:
    """Raises ValueError for an update without params."""
    if params is None:
        raise ValueError("This transform needs the parameters: call update(grads, state, params).")


def without_functions(extra_args: Mapping[str, Any], updates: PyTree) -> dict[str, Any]:
    """extra_args in which each function raises ValueError if the inner optimizer calls it.

    optax.chain gives all extra arguments to each of its members, most of which call none.
    """
    gradients: Any = jax.tree.structure(updates)

    def refuse(name, x):
        def call(*_args, **_kwargs):
            raise ValueError(
                f"The inner optimizer calls {name}, but not with the params that {name} takes: compand gives it v "
                "instead of w, and learned a and b as well; scale_by_derivative gives it w instead of v. Use an inner "
                "optimizer that calls no function, or compand(..., adaptive=True, learn='none'), whose inner optimizer "
                "sees w."
            )

        return call if callable(x) else x

    def replace(name, x):
        if callable(x) and not jax.tree_util.all_leaves([x]) and jax.tree.structure(x) == gradients:
            return x  # the gradients of a module that can be called
        is_function = lambda y: callable(y) and (y is x or isinstance(y, jax.tree_util.Partial))
        return jax.tree.map(functools.partial(refuse, name), x, is_leaf=is_function)

    return {name: replace(name, x) for name, x in extra_args.items()}


def check_state(psis: PyTree, pairs: PyTree, psi: Elementwise, learn: str) -> None:
    """Raises ValueError if psis and pairs, of a state of `compand`, were made with other constants or another learn."""

    def constants(psi: Psi) -> Any:  # the class, and the fields that are not learned
        return jax.tree.structure(jax.tree.map(lambda _: None, psi))

    is_psi = lambda x: isinstance(x, Psi)
    for own in jax.tree.leaves(psis, is_leaf=is_psi):
        if not is_psi(own):
            raise ValueError(
                f"this state has {own!r} instead of a Ψ: it was restored into the state of a compand with another "
                "`where`. Restore it with the same one."
            )
        if constants(own) != constants(psi) or (pairs is None) != (learn == "none"):
            raise ValueError(
                f"this state was made with {own!r} {'without' if pairs is None else 'with'} learned a and b, but this "
                f"compand has {psi!r} and learn={learn!r}: make a new state with init."
            )


def check_pairs(pairs: PyTree, expected: PyTree) -> None:
    """Raises ValueError if the learned pairs in a state of `compand` do not have the expected shapes.

    A leading axis may be longer, as jax.vmap(tx.init) makes it for stacked layers.
    """
    shapes, expected_shapes = (
        {path_str(path): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (pairs, expected)
    )
    last = lambda shapes: {path: (len(shape), *shape[-1:]) for path, shape in shapes.items()}
    if last(shapes) != last(expected_shapes):
        raise ValueError(
            f"this state was made with another learn, or for other weights: its a and b have the shapes {shapes}, but "
            f"this compand learns {expected_shapes}. Make a new state with init."
        )


def check_inner(inner_state: optax.OptState, adaptive: bool, learned: bool = False) -> None:
    """Raises ValueError for an inner optimizer that gives wrong results inside, which is recognized by its state.

    Warns if it divides each entry of its gradient by its size, and so cancels Ψ′, but adaptive is False.
    """
    if learned and instances(inner_state, LINE_SEARCHES):
        raise ValueError(
            "The inner optimizer is a line search, which cannot step learned a and b: use learn='none', or put the "
            "search after compand: optax.chain(compand(...), search)."
        )
    states = instances(inner_state, (*KEEPS_WEIGHTS, *CANCELS_SLOPE, optax.LookaheadState))
    for x in states:
        if isinstance(x, optax.LookaheadState):
            raise ValueError("wrap compand in lookahead, not lookahead in compand: optax.lookahead(compand(...), ...).")
        is_opaque = isinstance(x, optax.contrib.SAMState) and x.cache is None  # it moves within one update only
        if adaptive and isinstance(x, KEEPS_WEIGHTS) and not is_opaque:
            raise ValueError(
                f"The inner optimizer keeps weights and returns to them ({type(x).__name__}), but an adaptive step is "
                "multiplied by Ψ′(v), so that it would miss them. Use compand(..., adaptive=False) around it."
            )
    has_parts = instances(inner_state, optax.MaskedNode)  # optimizers of parts of the tree, perhaps not of weights
    if states and not adaptive and not has_parts and all(isinstance(x, CANCELS_SLOPE) for x in states):
        warnings.warn(
            f"The inner optimizer divides each entry of its gradient by its size ({type(states[0]).__name__}), which "
            "cancels Ψ′(v): pass compand(..., adaptive=True).",
            stacklevel=4,
        )
