"""Checks of inner optimizers, and of the arguments and states of the transforms. Each raises a ValueError."""

import functools
import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from wcjax.psi import Elementwise, Psi, PyTree
from wcjax.trees import instances, path_str

# States of optimizers that keep weights and return to them.
KEEPS_WEIGHTS = (
    optax.contrib.COCOBState,
    optax.contrib.MadgradState,
    optax.contrib.MechanicState,
    optax.contrib.SAMState,
    optax.contrib.ScheduleFreeState,
)
# States of line searches.
LINE_SEARCHES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)
# States of optimizers that divide each entry of a gradient by its magnitude.
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


def check_optimizer(inner: Any) -> None:
    """Raises ValueError if inner is not an optax optimizer, for example if it is the function that makes one."""
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise ValueError(f"inner must be an optax optimizer, for example optax.sgd(0.1), found {inner!r}.")


def check_decay(weight_decay: Any, mask: Any) -> None:
    """Raises ValueError if weight_decay is neither a number >= 0 nor a schedule, or if mask is a Ψ.

    A Ψ is callable, and would pass for a schedule or for a function that makes a mask.
    """
    if isinstance(mask, Psi):
        raise ValueError(f"mask must be bools or a function of the params, found {mask!r}.")
    if isinstance(weight_decay, jax.core.Tracer) or (callable(weight_decay) and not isinstance(weight_decay, Psi)):
        return
    is_number = isinstance(weight_decay, numbers.Real | np.ndarray | jax.Array) and not isinstance(weight_decay, bool)
    if not (is_number and np.ndim(weight_decay) == 0 and 0 <= weight_decay < math.inf):
        raise ValueError(f"weight_decay must be a number of at least 0, or a schedule of it, found {weight_decay!r}.")


def check_has_params(params: PyTree) -> None:
    """Raises ValueError for an update without params."""
    if params is None:
        raise ValueError("This transform needs the parameters: call update(grads, state, params).")


def without_functions(extra_args: Mapping[str, Any], updates: PyTree) -> dict[str, Any]:
    """extra_args in which each function raises ValueError if the inner optimizer calls it.

    optax.chain gives all extra arguments to each of its members, most of which call none.
    """
    structure: Any = jax.tree.structure(updates)

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
        if callable(x) and not jax.tree_util.all_leaves([x]) and jax.tree.structure(x) == structure:
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
    ranks_and_last_sizes = lambda shapes: {path: (len(shape), *shape[-1:]) for path, shape in shapes.items()}
    if ranks_and_last_sizes(shapes) != ranks_and_last_sizes(expected_shapes):
        raise ValueError(
            f"this state was made with another learn, or for other weights: its a and b have the shapes {shapes}, but "
            f"this compand learns {expected_shapes}. Make a new state with init."
        )


def check_inner(inner_state: optax.OptState, adaptive: bool, learned: bool = False) -> None:
    """Raises ValueError for an inner optimizer whose results would be wrong, which its state tells.

    Warns if it divides each entry of its gradient by its magnitude, and so cancels Ψ′, but adaptive is False.
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
        is_opaque = isinstance(x, optax.contrib.SAMState) and x.cache is None  # moves weights within one update only
        if adaptive and isinstance(x, KEEPS_WEIGHTS) and not is_opaque:
            raise ValueError(
                f"The inner optimizer keeps weights and returns to them ({type(x).__name__}), but an adaptive step is "
                "multiplied by Ψ′(v), so that it would miss them. Use compand(..., adaptive=False) around it."
            )
    has_parts = instances(inner_state, optax.MaskedNode)  # optimizers of parts of the tree, perhaps not of weights
    if states and not adaptive and not has_parts and all(isinstance(x, CANCELS_SLOPE) for x in states):
        warnings.warn(
            f"The inner optimizer divides each entry of its gradient by its magnitude ({type(states[0]).__name__}), "
            "which cancels Ψ′(v): pass compand(..., adaptive=True).",
            stacklevel=3,  # the line that calls init
        )
