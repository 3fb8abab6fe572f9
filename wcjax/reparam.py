"""Weight reparameterizations w = Ψ(v), as functions of arrays.

The optimizer moves v, the network sees w = Ψ(v), and Ψ is folded away after training. Arithmetic runs at least in
float32 (also for a bfloat16 v), and the result is cast once to the dtype of the argument.

Sources: weight compander, Cakaj et al. 2023, arXiv 2306.16993; Powerpropagation, Schwarz et al. 2021,
arXiv 2110.00296; weight normalization, Salimans and Kingma 2016, arXiv 1602.07868.

To add an elementwise Ψ, write a subclass of `Elementwise`, or of `Scaled` if it is a·s(v / b), and give it a name in
`BY_NAME`.
"""

import dataclasses
import math
import numbers
from collections.abc import Collection
from typing import Any, ClassVar, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import elementary
from wcjax.precision import LARGEST, widen
from wcjax.psi import Elementwise, Psi, check_number

# Limits z = u / b, a step in units of b. Such a step is as good as infinite, even if a learned b changes by a factor of
# 1e20, and its products stay below 1e37, the limit of `elementary.arctan2`.
LARGEST_Z = 1e36

_Function: TypeAlias = "staticmethod[[jax.Array], jax.Array]"


class Scaled(Elementwise):
    """w = a·s(v / b) for an odd increasing s, with a, b > 0. Raises ValueError for a number a or b out of range."""

    a: float | jax.Array = 1.0
    b: float | jax.Array = 1.0

    supremum: ClassVar[float]  # of s
    s: ClassVar[_Function]
    s_inverse: ClassVar[_Function]
    s_derivative: ClassVar[_Function]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "a")
        check_number(self, "b")

    @property
    def bound(self) -> float | jax.Array:
        """|w| < |a|·sup s; math.inf for an unbounded s."""
        a: Any = self.a
        return math.inf if self.supremum == math.inf else abs(a) * self.supremum

    # These are products with 1 / a and 1 / b, because XLA does not turn quotients into products.

    def __call__(self, v: jax.Array) -> jax.Array:
        """w = a·s(v / b)."""
        return self.a * self.s(v * (1 / self.b))

    def inverse(self, w: jax.Array) -> jax.Array:
        """v = b·s⁻¹(w / a); nan where |w| >= bound."""
        x = w * (1 / self.a)
        return jnp.where(jnp.abs(x) < self.supremum, self.b * self.s_inverse(x), jnp.nan)

    def derivative(self, v: jax.Array) -> jax.Array:
        """dw/dv = (a / b)·s′(v / b)."""
        return (self.a / self.b) * self.s_derivative(v * (1 / self.b))

    def slope_b(self, w: jax.Array) -> jax.Array:
        """dw/db at fixed v, as a function of w: −(v / b)·Ψ′(v). dw/da is w / a."""
        return -self.inverse(w) * (1 / self.b) * self.slope(w)


class Arctan(Scaled):
    """Weight compander: w = a·arctan(v / b), |w| < a·π/2, Ψ′(v) = a·b / (b² + v²).

    Args:
      a: a number > 0, which is a constant, or an array, which is learned and may leave that range.
      b: the same.

    Raises:
      ValueError: a or b is a number outside 1e-8 to 1e8, or neither a number nor an array.

    Examples:
      >>> import wcjax
      >>> psi = wcjax.Arctan(a=1.0, b=0.5)
      >>> print(f"{psi(0.5):.4f} {psi.derivative(0.0):.4f}")  # π/4 and a / b
      0.7854 2.0000
    """

    supremum = math.pi / 2
    s = staticmethod(elementary.arctan)
    s_inverse = staticmethod(lambda x: elementary.sin(x) / elementary.cos(x))
    s_derivative = staticmethod(lambda x: 1 / (1 + jnp.square(x)))

    def reciprocal_derivative(self, v: jax.Array) -> jax.Array:
        """(b² + v²) / (a·b), limited where Ψ′ is nearly 0, and 0 if a learned a is 0."""
        return jnp.where(self.a == 0, 0, self.b / self.a) * jnp.minimum(1 + jnp.square(v * (1 / self.b)), LARGEST)

    # v is large and inaccurate near the bound, so these functions of w do not compute it. If x = w / a, then v / b is
    # tan x, and the addition theorem of tan needs only sin x and cos x: arctan(t + z) − arctan(t) is the angle of
    # (1 + z·t + t², z).

    def _angle(self, w: jax.Array) -> jax.Array:
        """x = w / a = arctan(v / b), clipped to [−π/2, π/2]."""
        return jnp.clip(w * (1 / self.a), -math.pi / 2, math.pi / 2)

    def slope(self, w: jax.Array) -> jax.Array:
        """(a / b)·cos²(w / a)."""
        return self.a / self.b * jnp.square(elementary.cos(self._angle(w)))

    def slope_b(self, w: jax.Array) -> jax.Array:
        """−(a / b)·sin(w / a)·cos(w / a)."""
        x = self._angle(w)
        return -self.a / self.b * (elementary.sin(x) * elementary.cos(x))

    def change(self, w: jax.Array, u: jax.Array, new: Self | None = None) -> jax.Array:
        """Ψ_new(Ψ⁻¹(w) + u) − w. Finite for any u but nan, and exactly 0 for u = 0 without new."""
        x = self._angle(w)
        sin, cos = elementary.sin(x), elementary.cos(x)
        if new is None:
            z = elementary.clip(u * (1 / self.b), -LARGEST_Z, LARGEST_Z)
            return self.a * elementary.arctan2(z * jnp.square(cos), 1 + z * (sin * cos))
        z, ratio = elementary.clip(u * (1 / new.b), -LARGEST_Z, LARGEST_Z), self.b / new.b
        across = (ratio - 1) * (sin * cos) + z * jnp.square(cos)
        along = jnp.square(cos) + ratio * jnp.square(sin) + z * (sin * cos)
        return (new.a - self.a) / self.a * w + new.a * elementary.arctan2(across, along)


class Arsinh(Scaled):
    """w = a·arsinh(v / b), unbounded. Ψ⁻¹ overflows in float32 for |w| > 88·a. Arguments and errors as in `Arctan`."""

    supremum = math.inf
    s = staticmethod(jnp.arcsinh)
    s_inverse = staticmethod(jnp.sinh)
    s_derivative = staticmethod(lambda x: 1 / jnp.hypot(1, x))  # in which no square overflows


class Erf(Scaled):
    """w = a·erf(v / b), |w| < a, which rounds to a from |v / b| of about 4 on. Arguments and errors as in `Arctan`."""

    supremum = 1.0
    s = staticmethod(jax.lax.erf)
    s_inverse = staticmethod(jax.lax.erf_inv)
    s_derivative = staticmethod(lambda x: (2 / math.sqrt(math.pi)) * jnp.exp(-jnp.square(x)))


class PowerProp(Elementwise):
    """Powerpropagation: w = v·|v|^(α−1), unbounded. Raises ValueError unless 1 <= α <= 1e8.

    Ψ′(0) = 0 for α > 1, so a weight that is 0 stays 0.
    """

    alpha: float | jax.Array = 2.0
    bound = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "alpha", lowest=1)

    def __call__(self, v: jax.Array) -> jax.Array:
        """w = v·|v|^(α−1)."""
        return _signed_power(v, self.alpha)

    def inverse(self, w: jax.Array) -> jax.Array:
        """v = sign(w)·|w|^(1/α)."""
        return _signed_power(w, 1 / self.alpha)

    def derivative(self, v: jax.Array) -> jax.Array:
        """dw/dv = α·|v|^(α−1); 0 at v = 0 for α > 1."""
        return self.alpha * _power(v, self.alpha - 1)


@jax.custom_jvp
def _signed_power(x, p):
    return jnp.sign(x) * jnp.abs(x) ** p


@_signed_power.defjvp
def _signed_power_jvp(primals, tangents):
    # Automatic differentiation gives 0 instead of 1 at x = 0 with p = 1, through sign(x).
    x, p = primals
    dx, dp = tangents
    w = _signed_power(x, p)
    log = jnp.log(jnp.where(x == 0, 1, jnp.abs(x)))
    return w, p * _power(x, p - 1) * dx + w * log * dp


def _power(x, p):
    """|x|^p; at x = 0 it is 1 for p = 0 and 0 for any other p, with a derivative of 0."""
    return jnp.where(x == 0, jnp.where(p == 0, 1.0, 0.0), jnp.abs(jnp.where(x == 0, 1, x)) ** p)


class WeightNorm(Psi):
    """Weight normalization: w = g·v / ‖v‖ for each output channel, which has its own norm g. It is not elementwise.

    A channel whose weights are all 0, as in a head that starts at zero, stays 0: the gradients of its v and g are 0.

    Args:
      g: the learned norms, an array of the rank of v and of size 1 along every axis that the norm sums over. None until
        `reparameterize` or a layer sets it from the first weight.
      axis: the output axis or axes of a weight, each index of which has its own g. If it is None, a layer of
        `wcjax.linen` chooses its output axes, and `reparameterize` the last axis.
    """

    g: jax.Array | None = None
    axis: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis is not None:
            axes = tuple(self.axis) if isinstance(self.axis, tuple | list) else (self.axis,)
            if not all(isinstance(axis, numbers.Integral) for axis in axes):
                raise ValueError(f"WeightNorm: axis must be an int or several of them, found {self.axis!r}.")
            object.__setattr__(self, "axis", tuple(map(int, axes)))
        if self.g is not None and not self.learned:
            raise ValueError(f"WeightNorm: g must be an array, or None before there is a weight, found {self.g!r}.")

    def __call__(self, v: jax.Array) -> jax.Array:
        """w = g·v / ‖v‖, shape and dtype of v; 0 where ‖v‖ = 0."""
        if self.g is None:
            raise ValueError("WeightNorm has no norms g yet: wcjax.reparameterize and wcjax.linen set them.")
        summed = [axis for axis, size in enumerate(self.g.shape) if size == 1]
        square = jnp.sum(jnp.square(v), axis=summed, keepdims=True)
        return v * jnp.where(square == 0, 0, self.g * jax.lax.rsqrt(jnp.where(square == 0, 1, square)))

    def inverse(self, w: jax.Array) -> jax.Array:
        """v = w. Its norms are the first g, which `for_weight` computes."""
        return w

    def for_weight(self, w: jax.Array, learn: str, axes: Collection[int]) -> Self:
        """self with g = the norm of each output channel of w. There is no choice of `learn`.

        ValueError: w does not have an axis that `axis` names.
        """
        if self.axis is not None and w.ndim:
            axes = np.lib.array_utils.normalize_axis_tuple(self.axis, w.ndim)
        summed = [axis for axis in range(w.ndim) if axis not in axes]
        return dataclasses.replace(self, g=jnp.sqrt(jnp.sum(jnp.square(widen(w)), axis=summed, keepdims=True)))


BY_NAME = {"arctan": Arctan, "arsinh": Arsinh, "erf": Erf, "powerprop": PowerProp, "weightnorm": WeightNorm}
