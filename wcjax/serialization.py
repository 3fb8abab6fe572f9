"""Reparameterized weights and their Ψ in flax.serialization: to_bytes, from_bytes and state dicts."""

import dataclasses
import sys


def register(*classes: type) -> None:
    """Lets flax.serialization save and restore values of these dataclasses, if Flax is in use."""
    flax = sys.modules.get("flax.serialization")
    names = lambda x: getattr(x, "learned", ("v", "psi"))

    def to_state_dict(x):
        return {name: flax.to_state_dict(getattr(x, name)) for name in names(x)}

    def from_state_dict(x, state):
        restored = {name: flax.from_state_dict(getattr(x, name), state[name]) for name in names(x)}
        return dataclasses.replace(x, **restored)

    for cls in classes if flax else ():
        flax.register_serialization_state(cls, to_state_dict, from_state_dict, override=True)
