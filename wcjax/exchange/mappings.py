"""Nested mappings of arrays, and names such as 'params/stem/kernel' for their leaves."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.errors import InputError, short_repr
from wcjax.params import Reparameterized

_SHOWN = 4  # names listed in an error
_DEEPEST = 100  # folders in a name; Python cannot recurse much further


def flatten(tree, at: str = "") -> dict:
    """{'params/stem/kernel': array} for nested mappings."""
    if isinstance(tree, Mapping):
        out = {}
        for name, x in tree.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise InputError(f"{at or 'the tree'} has the name {name!r}: names are strings without '/'.")
            out |= flatten(x, f"{at}/{name}" if at else name)
        return out
    if isinstance(tree, Reparameterized):
        raise InputError(f"{at} is Reparameterized: fold first, wcjax.fold(variables['params']).")
    if not at or not hasattr(tree, "dtype"):
        raise InputError(f"{at or 'the tree'} is a {type(tree).__name__}: expected nested mappings of arrays.")
    return {at: tree}


def unflatten(arrays: Mapping, source) -> dict:
    """Nested dicts for {'params/stem/kernel': array}. source: where the arrays are from, for errors."""
    out = {}
    for name, x in arrays.items():
        *folders, last = name.split("/")
        if len(folders) > _DEEPEST:
            raise InputError(f"{source}: {short_repr(name)} has more than {_DEEPEST} parts.")
        inside = out
        for folder in folders:
            inside = inside.setdefault(folder, {})
            if not isinstance(inside, dict):
                raise InputError(f"{source}: {name} is below the name of another array.")
        if last in inside:
            raise InputError(f"{source}: {name} is both an array and a folder of arrays.")
        inside[last] = x
    return out


def check_like(variables, like, source="the variables") -> None:
    """Raises InputError unless variables has exactly the names, shapes and dtypes of `like` and neither nan nor inf.

    like: arrays, or only shapes: jax.eval_shape(model.init, jax.random.key(0), images). variables may be shapes too.
    source: what the error calls the variables.
    """
    check_same(flatten(variables), flatten(like), f"{source} do not fit the network")


def check_same(arrays: Mapping, expected: Mapping, sentence: str) -> None:
    """Raises InputError, which begins with `sentence`, if arrays is not like expected. Both are {name: array}."""
    common = [name for name in expected if name in arrays]
    wrong = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in arrays if name not in expected],
        "different": [
            f"{name} is {_describe(arrays[name])}, expected {_describe(expected[name])}"
            for name in common
            if _describe(arrays[name]) != _describe(expected[name])
        ],
        "with nan or inf": [
            name
            for name in common
            if not isinstance(arrays[name], jax.ShapeDtypeStruct)
            and jnp.issubdtype(arrays[name].dtype, jnp.inexact)
            and not np.all(np.isfinite(np.asarray(arrays[name])))
        ],
    }
    if any(wrong.values()):
        parts = [
            f"{len(names)} {how}: {', '.join(map(_printable, names[:_SHOWN]))}{', …' * (len(names) > _SHOWN)}"
            for how, names in wrong.items()
            if names
        ]
        raise InputError(f"{sentence}. {'. '.join(parts)}.")


def _printable(name):
    return name if name.isprintable() else repr(name)


def _describe(x) -> str:
    return f"{x.dtype}{tuple(x.shape)}"
