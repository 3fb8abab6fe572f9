"""Weight reparameterizations w = Ψ(v), as functions of arrays.

Each Ψ is odd and increasing. The optimizer moves v, the network sees w = Ψ(v), and Ψ is folded away after training.
A Ψ is a frozen dataclass and a JAX pytree whose leaves are its parameters, so a and b can be learned.

Arithmetic runs in float32 at least (a bfloat16 v is computed in float32) and the result is cast once to the dtype
of the argument. a and b may be Python numbers or arrays that broadcast against it.

Sources: weight compander, Cakaj et al. 2023, arXiv 2306.16993; Powerpropagation, Schwarz et al. 2021,
arXiv 2110.00296; weight normalization, Salimans and Kingma 2016, arXiv 1602.07868.
"""

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import elementary


def _check(psi, field, lowest, inclusive):
    """Raises ValueError for a Python number out of range; arrays and tracers pass, as learned values may leave it."""
    x = getattr(psi, field)
    if isinstance(x, bool | str | list | dict | None):
        raise ValueError(f"{type(psi).__name__}: {field} must be a number, found {x!r}.")
    if isinstance(x, numbers.Real) and not (math.isfinite(x) and (x >= lowest if inclusive else x > lowest)):
        allowed = f"{'at least' if inclusive else 'greater than'} {lowest}"
        raise ValueError(f"{type(psi).__name__}: {field} must be finite and {allowed}, found {field}={x}.")


def _float32_at_least(compute):
    """Runs compute(psi, x, ...) on arrays of float32 or wider; the result gets x's own float dtype."""

    @functools.wraps(compute)
    def wrapper(psi, x, *more):
        x = jnp.asarray(x)
        out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
        wide = jnp.promote_types(out, jnp.float32)
        psi, x, more = jax.tree.map(lambda leaf: jnp.asarray(leaf, wide), (psi, x, more))
        return compute(psi, x, *more).astype(out)

    return wrapper


def _pytree(cls):
    """Registers a dataclass of leaves. Rebuilding skips its checks, because tree functions put anything there."""
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(psi):
        return [(jax.tree_util.GetAttrKey(name), getattr(psi, name)) for name in names], None

    def rebuild(_, leaves):
        psi = object.__new__(cls)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(psi, name, leaf)
        return psi

    jax.tree_util.register_pytree_with_keys(cls, flatten, rebuild)
    return cls


class _Elementwise:
    """What every elementwise Ψ can do, by way of v; a Ψ with a closed form in w has its own."""

    @_float32_at_least
    def reciprocal_derivative(self, v):
        """1 / Ψ′(v), and 0 where Ψ′(v) is 0."""
        slope = self.derivative(v)
        usable = jnp.abs(slope) > jnp.finfo(slope.dtype).tiny
        return jnp.where(usable, 1 / jnp.where(usable, slope, 1), 0)

    @_float32_at_least
    def slope(self, w):
        """Ψ′(Ψ⁻¹(w)), the derivative as a function of w."""
        return self.derivative(self.inverse(w))

    @_float32_at_least
    def increment(self, w, u):
        """Ψ(Ψ⁻¹(w) + u) − w: the change of w when v changes by u."""
        return self(self.inverse(w) + u) - w

    @_float32_at_least
    def change(self, w, new, u=0.0):
        """Ψ_new(Ψ⁻¹(w) + u) − w: the change of w when v changes by u, and a and b to those of new, of the same type."""
        v = self.inverse(w) + u
        return self.increment(w, u) + (new(v) - self(v))


@_pytree
@dataclasses.dataclass(frozen=True)
class _Sigmoid(_Elementwise):
    """w = a·s(v / b) for an odd increasing s, with a, b > 0."""

    a: float | jax.Array = 1.0
    b: float | jax.Array = 1.0

    def __post_init__(self):
        _check(self, "a", 0, inclusive=False)
        _check(self, "b", 0, inclusive=False)

    @_float32_at_least
    def derivative_a(self, w):
        """dw/da as a function of w: w / a."""
        return w * (1 / self.a)

    @_float32_at_least
    def derivative_b(self, w):
        """dw/db as a function of w: −(v / b)·Ψ′(v)."""
        return -self.inverse(w) / self.b * self.slope(w)


@_pytree
@dataclasses.dataclass(frozen=True)
class Arctan(_Sigmoid):
    """Weight compander: w = a·arctan(v / b), |w| < a·π/2. Raises ValueError for a <= 0 or b <= 0."""

    @property
    def bound(self):
        """a·π/2: |w| stays below it."""
        return self.a * (math.pi / 2)

    @_float32_at_least
    def __call__(self, v):
        """w = a·arctan(v / b)."""
        return self.a * elementary.arctan(v * (1 / self.b))

    @_float32_at_least
    def inverse(self, w):
        """v = b·tan(w / a); nan where |w| >= bound."""
        x = w * (1 / self.a)
        tan = elementary.sin_cos(x) / elementary.cos_squared(x)
        return jnp.where(jnp.abs(x) < jnp.asarray(math.pi / 2, x.dtype), self.b * tan, jnp.nan)

    @_float32_at_least
    def derivative(self, v):
        """dw/dv = a·b / (b² + v²), written so that v² cannot overflow into nan."""
        return (self.a / self.b) / (1 + jnp.square(v * (1 / self.b)))

    @_float32_at_least
    def reciprocal_derivative(self, v):
        """dv/dw = (b² + v²) / (a·b), cut where Ψ′ is 0 in float32, and 0 for a = 0: no product with Ψ′ is nan."""
        return jnp.where(self.a == 0, 0, self.b / self.a) * jnp.minimum(1 + jnp.square(v * (1 / self.b)), 1e36)

    # With x = w / a the addition theorem of tan gives everything from sin x and cos x, without v, which is large and
    # inaccurate near the bound: v / b = tan x, and arctan(t + z) − arctan(t) is the angle of (1 + z·t + t², z).

    def _angle(self, w):
        return jnp.clip(w * (1 / self.a), -math.pi / 2, math.pi / 2)

    @_float32_at_least
    def slope(self, w):
        """Ψ′(Ψ⁻¹(w)) = (a / b)·cos²(w / a)."""
        return self.a / self.b * elementary.cos_squared(self._angle(w))

    @_float32_at_least
    def increment(self, w, u):
        """Ψ(Ψ⁻¹(w) + u) − w, exactly 0 for u = 0 and finite for any finite u."""
        x, z = self._angle(w), u * (1 / self.b)
        return self.a * elementary.arctan2(z * elementary.cos_squared(x), 1 + z * elementary.sin_cos(x))

    @_float32_at_least
    def derivative_b(self, w):
        """dw/db as a function of w: −(a / b)·sin(w / a)·cos(w / a)."""
        return -self.a / self.b * elementary.sin_cos(self._angle(w))

    @_float32_at_least
    def change(self, w, new, u=0.0):
        """Ψ_new(Ψ⁻¹(w) + u) − w, exactly 0 for u = 0 and the same a and b."""
        x, z, ratio = self._angle(w), u * (1 / self.b), self.b / new.b
        cos_squared, sin_cos = elementary.cos_squared(x), elementary.sin_cos(x)
        across = (ratio - 1) * sin_cos + ratio * z * cos_squared
        along = cos_squared + ratio * (elementary.sin_squared(x) + z * sin_cos)
        return (new.a - self.a) / self.a * w + new.a * elementary.arctan2(across, along)


@_pytree
@dataclasses.dataclass(frozen=True)
class Arsinh(_Sigmoid):
    """w = a·arsinh(v / b), unbounded. Raises ValueError for a <= 0 or b <= 0."""

    @property
    def bound(self):
        """math.inf."""
        return math.inf

    @_float32_at_least
    def __call__(self, v):
        """w = a·arsinh(v / b)."""
        return self.a * jnp.arcsinh(v / self.b)

    @_float32_at_least
    def inverse(self, w):
        """v = b·sinh(w / a); overflows to inf in float32 where |w| > 88·a."""
        return self.b * jnp.sinh(w / self.a)

    @_float32_at_least
    def derivative(self, v):
        """dw/dv = a / sqrt(b² + v²)."""
        return (self.a / self.b) / _hypot1(v / self.b)

    @_float32_at_least
    def increment(self, w, u):
        """Ψ(Ψ⁻¹(w) + u) − w by log1p while v keeps its sign, where the difference of two arsinh would cancel."""
        angle = jnp.abs(w / self.a)  # a learned a may be negative
        sign = jnp.where(w / self.a < 0, -1, 1)
        y, z = jnp.sinh(angle), sign * u / self.b
        x = y + z
        root_x, root_y = _hypot1(x), _hypot1(y)
        near = jnp.log1p(z * (1 + (x + y) / (root_x + root_y)) / (y + root_y))
        far = jnp.arcsinh(x) - angle
        return sign * self.a * jnp.where(x < 0, far, near)


@_pytree
@dataclasses.dataclass(frozen=True)
class Erf(_Sigmoid):
    """w = a·erf(v / b), |w| <= a in floating point. Raises ValueError for a <= 0 or b <= 0."""

    @property
    def bound(self):
        """a: |w| stays below it, and reaches it by rounding where |v / b| is about 4 (float32)."""
        return self.a

    @_float32_at_least
    def __call__(self, v):
        """w = a·erf(v / b)."""
        return self.a * jax.lax.erf(v / self.b)

    @_float32_at_least
    def inverse(self, w):
        """v = b·erf⁻¹(w / a); nan where |w| >= bound."""
        x = w / self.a
        return jnp.where(jnp.abs(x) < 1, self.b * jax.lax.erf_inv(x), jnp.nan)

    @_float32_at_least
    def derivative(self, v):
        """dw/dv = (2 / √π)·(a / b)·exp(−(v / b)²); 0 in float32 where |v / b| > 10."""
        return (2 / math.sqrt(math.pi)) * (self.a / self.b) * jnp.exp(-jnp.square(v / self.b))

    @_float32_at_least
    def increment(self, w, u):
        """Ψ(Ψ⁻¹(w) + u) − w; where |u / b| < 1/2 by Gauss's rule for the integral of Ψ′, which does not cancel."""
        y, z = self.inverse(w) / self.b, u / self.b
        nodes, weights = np.polynomial.legendre.leggauss(5)
        steps = [0.5 * (1 + node) * z for node in nodes]
        mean = sum(0.5 * weight * jnp.exp(-s * (2 * y + s)) for weight, s in zip(weights, steps, strict=True))
        near = self.derivative(self.b * y) * u * mean
        return jnp.where(jnp.abs(z) < 0.5, near, self.a * jax.lax.erf(y + z) - w)


@_pytree
@dataclasses.dataclass(frozen=True)
class PowerProp(_Elementwise):
    """Powerpropagation: w = v·|v|^(α−1), unbounded. Raises ValueError for α < 1; α = 1 is the identity."""

    alpha: float | jax.Array = 2.0

    def __post_init__(self):
        _check(self, "alpha", 1, inclusive=True)

    @property
    def bound(self):
        """math.inf."""
        return math.inf

    @_float32_at_least
    def __call__(self, v):
        """w = v·|v|^(α−1)."""
        return _signed_power(v, self.alpha)

    @_float32_at_least
    def inverse(self, w):
        """v = sign(w)·|w|^(1/α)."""
        return _signed_power(w, 1 / self.alpha)

    @_float32_at_least
    def derivative(self, v):
        """dw/dv = α·|v|^(α−1); 0 at v = 0 where α > 1."""
        return self.alpha * jnp.abs(v) ** (self.alpha - 1)

    @_float32_at_least
    def increment(self, w, u):
        """Ψ(Ψ⁻¹(w) + u) − w; where |u| < |v| / 2 by expm1 and log1p, which do not cancel."""
        v = self.inverse(w)
        near = jnp.abs(u) < 0.5 * jnp.abs(v)
        relative = jnp.where(near, u / jnp.where(near, v, 1), 0)
        return jnp.where(near, w * jnp.expm1(self.alpha * jnp.log1p(relative)), self(v + u) - w)


def _hypot1(x):
    """√(1 + x²) without overflow."""
    return jnp.where(jnp.abs(x) < 1e9, jnp.sqrt(1 + jnp.square(x)), jnp.abs(x))


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
    return w, p * jnp.abs(x) ** (p - 1) * dx + w * log * dp


@_pytree
@dataclasses.dataclass(frozen=True)
class WeightNorm:
    """Weight normalization: w = g·v / ‖v‖ for each output channel (the last axis). Not elementwise."""

    def __call__(self, v, g):
        """w = g·v / ‖v‖, shape and dtype of v; 0 where ‖v‖ = 0.

        v: (..., features), g: (features,); both may have the same leading axes, of layers stacked by nn.scan.
        """
        wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        square = jnp.sum(jnp.square(wide), axis=tuple(range(g.ndim - 1, v.ndim - 1)), keepdims=True)
        g = jnp.reshape(g, square.shape)
        scale = jnp.where(square == 0, 0, g * jax.lax.rsqrt(jnp.where(square == 0, 1, square)))
        return (wide * scale).astype(v.dtype)

    def inverse(self, w):
        """(v, g) = (w, ‖w‖ of each output channel), so that the initial w is kept."""
        wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
        return w, jnp.sqrt(jnp.sum(jnp.square(wide), axis=tuple(range(w.ndim - 1)))).astype(w.dtype)
