"""Reparameterized weights and their Ψ in flax.serialization: to_bytes, from_bytes and state dicts."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any


def register(*classes: type) -> None:
    """Lets flax.serialization save and restore values of these dataclasses, if Flax is installed.

    A restored Ψ must be of the class, with the constants, that the target has: ValueError if not, or if the
    state has a plain array in its place.
    """
    try:
        from flax import serialization  # here, so that `import wcjax` does not import Flax
    except ImportError:
        return

    def to_state_dict(x: Any) -> dict[str, Any]:
        arrays = {name: serialization.to_state_dict(getattr(x, name)) for name in _array_fields(x)}
        return {"is": _constants(x)} | arrays

    def from_state_dict(x: Any, state: dict[str, Any]) -> Any:
        if not (isinstance(state, Mapping) and "is" in state):
            raise ValueError(f"the state holds a plain array or None where the target has {_constants(x)}.")
        if state["is"] != _constants(x):
            raise ValueError(f"the state holds {state['is']}, but the target has {_constants(x)}.")
        leaves = {name: serialization.from_state_dict(getattr(x, name), state[name]) for name in _array_fields(x)}
        # Not dataclasses.replace, which checks numbers and refuses the None of a mask instead of an array.
        restored = copy.copy(x)
        vars(restored).update(leaves)
        return restored

    for cls in classes:
        serialization.register_serialization_state(cls, to_state_dict, from_state_dict, override=True)


def _array_fields(x: Any) -> tuple[str, ...]:
    """The names of the fields that hold arrays: those of a Ψ, or of a Reparameterized."""
    return getattr(x, "learned", ("v", "psi"))


def _constants(x: Any) -> str:
    """The class and the fields that hold no arrays, for example `Arctan {'a': 0.6, 'b': 0.6}`."""
    names = [field.name for field in dataclasses.fields(x)]
    constants = {name: getattr(x, name) for name in names if name not in _array_fields(x)}
    return f"{type(x).__name__} {constants}"
