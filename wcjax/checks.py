"""Checks of what is to be companded. Each raises a ValueError that says what is wrong, before any work."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wcjax.precision import widen
from wcjax.psi import LEARN, Elementwise, Psi, PyTree
from wcjax.reparam import BY_NAME, Scaled, WeightNorm
from wcjax.trees import instances, path_str

Weights = Mapping[jax.tree_util.KeyPath, Any]  # {key path: w}

# How far inside the bound w must be, in machine epsilons: the float nearest to a·π/2 may exceed it, and tan changes
# sign there. A step stops a little earlier, so that the weights after it are accepted as initial weights.
START_MARGIN, STEP_MARGIN = 4, 6


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


def check_learn(psi: Psi | None, learn: str, choices: tuple[str, ...] = LEARN) -> None:
    """Raises ValueError for an unknown way of learning, and for a Ψ without a and b that should learn them."""
    if learn not in choices:
        raise ValueError(f"learn must be one of {', '.join(map(repr, choices))}, found {learn!r}.")
    if learn != "none" and not isinstance(psi, Scaled):
        name = "None" if psi is None else type(psi).__name__
        raise ValueError(f"{name} has no a and b to learn: use learn='none'.")


def check_where(where: Any) -> None:
    """Raises ValueError if `where` is not a function, or is a Ψ, which is callable but no selection."""
    if not callable(where) or isinstance(where, Psi):
        raise ValueError(f"`where` must be a function (key path, leaf) -> bool, found {where!r}.")


def checked_answer(answer: Any, path: jax.tree_util.KeyPath) -> bool:
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
    keys = (key for path, _ in jax.tree_util.tree_leaves_with_path(params) for key in path)
    if any(isinstance(key, jax.tree_util.FlattenedIndexKey) for key in keys):
        message += " It has containers that do not name their entries: convert them to dicts."
    if num_reparameterized:
        message += f" Weights that are Reparameterized already: {num_reparameterized}; fold the tree to change their Ψ."
    raise ValueError(message)


def check_weights(weights: Weights, psi: Psi, stores_v: bool = False) -> None:
    """Raises ValueError if a weight is not an array of floats, or is not one that psi reaches.

    stores_v: whether v has the dtype of w, in which it may overflow; `compand` computes it at least in float32.

    The values of tracers, of shapes alone and of arrays that other processes hold are unknown. They are not checked.
    """
    for path, w in weights.items():
        check_float(path_str(path), w)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(psi)):
        return
    for name in psi.learned:
        if not np.all(np.isfinite(x := np.asarray(getattr(psi, name))) & (x != 0)):
            raise ValueError(f"{type(psi).__name__}: a learned {name} must start finite and not at 0, found {x}.")
    with jax.ensure_compile_time_eval():  # a trace around this would make tracers of the known values
        arrays = {path: w for path, w in weights.items() if has_values(w)}
        doubtful = {path: w for path, w in arrays.items() if not _is_far_inside(_for_weight(path, w, psi), w)}
        for path, w in doubtful.items():
            if not np.all(np.isfinite(np.asarray(w, np.float64))):
                raise ValueError(f"{path_str(path)}: the weight holds nan or inf.")
        if isinstance(psi, Elementwise) and np.all(np.isfinite(psi.bound)):
            _check_bound(doubtful, psi)
            if not stores_v:
                return
        _check_start(doubtful, psi)


@jax.jit
def _is_far_inside(psi, w):
    """Whether w and v are finite, and |w| is below 0.99 of the bound.

    One program, on the devices of w. The checks that can name an entry are slower, and copy w to the host.
    """
    conditions = [jnp.isfinite(x).all() for x in jax.tree.leaves((psi, psi.inverse(w), w))]
    if isinstance(psi, Elementwise):
        conditions.append((jnp.abs(widen(w)) < 0.99 * psi.bound).all())
    return jnp.stack(conditions).all()


def _check_start(weights: Weights, psi: Psi) -> None:
    """Raises ValueError if v, or for WeightNorm the norm of the whole weight, overflows."""
    for path, w in weights.items():
        own_psi = _for_weight(path, w, psi)
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves((own_psi, own_psi.inverse(w)))):
            raise ValueError(
                f"{path_str(path)}: Ψ⁻¹(w), or the norm of w, overflows for |w| = {np.max(np.abs(w)):.6g} under "
                f"{psi!r} in {jax.dtypes.canonicalize_dtype(w.dtype)}. Choose a larger a, a smaller b, or smaller "
                "weights."
            )


class _BoundUse(NamedTuple):
    """The entry of a weight that is nearest to its bound."""

    share: float  # of the limit
    path: jax.tree_util.KeyPath
    magnitude: float  # |w|
    limit: float
    a_and_b: tuple[float, ...]  # of a `Scaled` Ψ


def _bound_use(path: jax.tree_util.KeyPath, w: Any, psi: Elementwise) -> _BoundUse:
    own_psi = _for_weight(path, w, psi)
    magnitude = np.abs(np.asarray(w, np.float64))
    limit = np.broadcast_to(own_psi.bound, magnitude.shape).astype(np.float64)
    limit = limit * (1 - START_MARGIN * float(jnp.finfo(jax.dtypes.canonicalize_dtype(w.dtype)).eps))
    index = np.argmax(magnitude / limit)
    at_index = lambda x: np.broadcast_to(x, magnitude.shape).flat[index]
    a_and_b = (abs(at_index(own_psi.a)), abs(at_index(own_psi.b))) if isinstance(own_psi, Scaled) else ()
    return _BoundUse((magnitude / limit).flat[index], path, magnitude.flat[index], limit.flat[index], a_and_b)


def _check_bound(weights: Weights, psi: Elementwise) -> None:
    """Raises ValueError if the largest |w| relative to its bound is not inside it."""
    uses = [_bound_use(path, w, psi) for path, w in weights.items()]
    worst = max(uses, key=lambda use: use.share, default=None)
    if worst is None or worst.share < 1:
        return
    name, hint = repr(psi), "Choose smaller weights."
    if isinstance(psi, Scaled):
        a, b = worst.a_and_b
        needed = a * worst.share
        digit = 10.0 ** (math.floor(math.log10(needed)) - 1)
        sufficient = math.ceil(1.05 * needed / digit) * digit
        name = f"{type(psi).__name__}(a={a:g}, b={b:g})"
        hint = f"Choose a >= {sufficient:.3g}, or smaller weights."
    dtype = jax.dtypes.canonicalize_dtype(weights[worst.path].dtype)
    raise ValueError(
        f"{path_str(worst.path)}: largest |w| is {worst.magnitude:.6g}, but {name} only reaches "
        f"|w| < {worst.limit:.6g} in {dtype}. {hint}"
    )


def _for_weight(path, w, psi):
    """psi.for_weight, whose error names the weight."""
    try:
        return psi.for_weight(w, "none", axes=())
    except ValueError as error:
        raise ValueError(f"{path_str(path)}: {error}") from error


def _is_jax_float(dtype):
    """Whether a float dtype has 16 bits or more, and JAX has it. NumPy has longer ones, and other byte orders."""
    return 16 <= jnp.finfo(dtype).bits <= 64 and np.dtype(dtype).isnative


def check_float(name: str, w: Any) -> None:
    """Raises ValueError if w, the weight of that name, is not an array of real floats of 16 to 64 bits."""
    # A variable that holds an array, as in Keras, has a dtype too, but its values would not be checked.
    is_variable = hasattr(w, "__jax_array__") and not isinstance(w, jax.Array)
    has_dtype = hasattr(w, "dtype") and not is_variable
    if not (has_dtype and jnp.issubdtype(w.dtype, jnp.floating) and _is_jax_float(w.dtype)):
        fault = f"has dtype {w.dtype}" if has_dtype else f"is a {type(w).__name__}"
        raise ValueError(
            f"{name} {fault}, but only arrays of real floats of 16 to 64 bits, in the byte order of this machine, can "
            "be companded."
        )


def has_values(w: Any) -> bool:
    """Whether w is an array all of whose values this process has, not a tracer or a shape."""
    is_array = isinstance(w, np.ndarray | np.generic | jax.Array) and not isinstance(w, jax.core.Tracer)
    return is_array and getattr(w, "is_fully_addressable", True)
