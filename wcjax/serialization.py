"""Reparameterized weights and their Ψ in flax.serialization: to_bytes, from_bytes and state dicts."""

import dataclasses
import sys


def register(*classes: type) -> None:
    """Lets flax.serialization save and restore values of these dataclasses, if Flax has been imported.

    A restored Ψ must be of the class, with the constants, that the target has: ValueError if not.
    """
    flax = sys.modules.get("flax.serialization")
    names = lambda x: getattr(x, "learned", ("v", "psi"))

    def constants(x):
        fields = {field.name: getattr(x, field.name) for field in dataclasses.fields(x) if field.name not in names(x)}
        return f"{type(x).__name__} {fields}"

    def to_state_dict(x):
        return {"is": constants(x)} | {name: flax.to_state_dict(getattr(x, name)) for name in names(x)}

    def from_state_dict(x, state):
        if state["is"] != constants(x):
            raise ValueError(f"the state holds {state['is']}, but the target has {constants(x)}.")
        restored = {name: flax.from_state_dict(getattr(x, name), state[name]) for name in names(x)}
        return dataclasses.replace(x, **restored)

    for cls in classes if flax else ():
        flax.register_serialization_state(cls, to_state_dict, from_state_dict, override=True)
