"""The base classes of every Ψ, which is a frozen dataclass and a pytree.

The numbers in a Ψ are constants, part of the tree's structure. Its arrays are leaves, which an optimizer can learn.
Learned arrays broadcast against v and have its rank. A Ψ computes in float32, or in float64 if its argument does.
"""

import dataclasses
import functools
import numbers
import typing
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from wcjax.precision import LARGEST, wide_dtype

PyTree = Any  # a tree of arrays, of any framework
Where = Callable[[jax.tree_util.KeyPath, Any], bool]  # (key path, leaf) -> whether the leaf is companded

# Which a and b are learned: none; a pair for each kernel; for each output channel; or one for the whole network.
LEARN = ("none", "fine", "channel")
LEARN_NETWORK = (*LEARN, "coarse")

# The range of the numbers a, b and α. Beyond it, quotients and a step of `LARGEST`, divided by b, overflow in float32.
RANGE = (1e-8, 1e8)

# A subclass defines some of these. `__init_subclass__` wraps each, so that it computes in `wide_dtype` and returns the
# dtype of its argument.
WIDENED = {"__call__", "inverse", "derivative", "reciprocal_derivative", "slope", "slope_b", "change"}


def _widened(compute):
    """Makes compute(psi, x, ...) run in the `wide_dtype` of x and return the float dtype of x, or JAX's default one."""

    # Traced once per shape, although a tree has many weights, and one compiled program outside of jit.
    @functools.partial(jax.jit, inline=True)
    def compute_widened(psi, x, *args, **kwargs):
        to_wide = lambda leaf: jnp.asarray(leaf, wide_dtype(x.dtype))
        psi, wide_x, args, kwargs = jax.tree.map(to_wide, (psi, x, args, kwargs))
        return compute(psi, wide_x, *args, **kwargs).astype(x.dtype)

    @functools.wraps(compute)
    def wrapper(psi, x, *args, **kwargs):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.eval_shape(wrapper, psi, x, *args, **kwargs)
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError(f"{type(psi).__name__} is not defined for complex numbers, found {x.dtype}.")
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(0.0).dtype
        return compute_widened(psi, x.astype(dtype), *args, **kwargs)

    return wrapper


@typing.dataclass_transform(frozen_default=True)
class Psi:
    """Base of every Ψ: a frozen dataclass, and a pytree whose leaves are the fields that hold arrays.

    A subclass becomes a frozen dataclass by itself, and is not decorated as one.

    Attributes:
      learned: the names of the fields that hold arrays.
    """

    learned: tuple[str, ...]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)
        for name in WIDENED & vars(cls).keys():
            setattr(cls, name, _widened(getattr(cls, name)))
        names = [field.name for field in dataclasses.fields(cls)]

        # JAX calls these for each weight at each call of a jitted function.
        def flatten(psi):
            learned = psi.learned
            constants = tuple([(name, getattr(psi, name)) for name in names if name not in learned])
            return [getattr(psi, name) for name in learned], (learned, constants)

        def flatten_with_keys(psi):
            leaves, constants = flatten(psi)
            return list(zip(map(jax.tree_util.GetAttrKey, psi.learned), leaves, strict=True)), constants

        def rebuild(learned_and_constants, leaves):  # without checks: tree functions put anything where an array was
            psi, (learned, constants) = object.__new__(cls), learned_and_constants
            vars(psi).update(constants, learned=learned)
            vars(psi).update(zip(learned, leaves, strict=True))
            return psi

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, rebuild, flatten)

    def __post_init__(self) -> None:
        names = (field.name for field in dataclasses.fields(self))
        is_array = lambda x: isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
        object.__setattr__(self, "learned", tuple(name for name in names if is_array(getattr(self, name))))

    def __call__(self, v: jax.Array) -> jax.Array:
        """w = Ψ(v)."""
        raise NotImplementedError

    def inverse(self, w: jax.Array) -> jax.Array:
        """v with Ψ(v) = w."""
        raise NotImplementedError

    def for_weight(self, w: jax.Array, learn: str, axes: Collection[int]) -> Self:
        """self with the arrays that are learned for the weight w, whose output axes are `axes`."""
        raise NotImplementedError


def check_number(psi: Psi, field: str, lowest: float = RANGE[0]) -> None:
    """Converts a field that holds a number to float. ValueError unless it is an array, or from `lowest` to RANGE[1]."""
    x = getattr(psi, field)
    if field in psi.learned:
        return
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        raise ValueError(f"{type(psi).__name__}: {field} must be a number or an array, found {x!r}.")
    if not lowest <= float(x) <= RANGE[1]:  # nan, too
        raise ValueError(f"{type(psi).__name__}: {field} must be from {lowest:g} to {RANGE[1]:g}, found {field}={x}.")
    object.__setattr__(psi, field, float(x))


class Elementwise(Psi):
    """An odd, increasing Ψ that acts elementwise.

    A subclass defines psi(v), psi.inverse(w), psi.derivative(v) and psi.bound. The functions get float32 or float64.
    """

    @property
    def bound(self) -> float | jax.Array:
        """The supremum of |w|; math.inf if there is none."""
        raise NotImplementedError

    def derivative(self, v: jax.Array) -> jax.Array:
        """dw/dv = Ψ′(v)."""
        raise NotImplementedError

    def reciprocal_derivative(self, v: jax.Array) -> jax.Array:
        """dv/dw = 1 / Ψ′(v), and 0 where Ψ′(v) is nearly 0, so that no product with a finite gradient is nan."""
        slope = self.derivative(v)
        usable = jnp.abs(slope) > 1 / LARGEST
        return jnp.where(usable, 1 / jnp.where(usable, slope, 1), 0)

    def slope(self, w: jax.Array) -> jax.Array:
        """Ψ′(Ψ⁻¹(w)), the derivative as a function of w."""
        return self.derivative(self.inverse(w))

    def change(self, w: jax.Array, u: jax.Array, new: Self | None = None) -> jax.Array:
        """Ψ_new(Ψ⁻¹(w) + u) − w, the change of w when v changes by u.

        new: a Ψ of the same class with other a and b. Without it they stay, and the change is exactly 0 for u = 0.
        """
        v = self.inverse(w)
        new_v = v + jnp.clip(u, -LARGEST, LARGEST)
        if new is not None:
            return new(new_v) - self(v)
        # For u = 0 not a constant 0, which would have no derivatives with respect to u. This has the first two of them.
        return jnp.where(u == 0, self.derivative(v + u / 2) * u, self(new_v) - self(v))

    def for_weight(self, w: jax.Array, learn: str, axes: Collection[int]) -> Self:
        """self with an array in each learned field, which has the rank of w and is at least float32.

        learn: 'none', only the fields that hold an array already are learned; 'channel', a number for each index of
        the output axes; 'fine' or 'coarse', one number for w.
        """
        shape = [size if learn == "channel" and i in axes else 1 for i, size in enumerate(w.shape)]

        def learned_array(x):
            x = jnp.asarray(x, wide_dtype(w.dtype))
            sizes = (1,) * (w.ndim - x.ndim) + x.shape
            if len(sizes) > w.ndim or any(n not in (1, size) for n, size in zip(sizes, w.shape, strict=True)):
                raise ValueError(
                    f"{type(self).__name__} holds an array of shape {x.shape}, which does not fit {w.shape}."
                )
            return jnp.broadcast_to(jnp.reshape(x, sizes), np.broadcast_shapes(sizes, shape))

        names = self.learned if learn == "none" else [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{name: learned_array(getattr(self, name)) for name in names})
