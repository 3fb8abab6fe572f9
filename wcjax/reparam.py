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


def _check(psi, field, lowest, inclusive):
    """Raises ValueError where a Python number is out of range; arrays and tracers pass (learned values may leave it)."""
    x = getattr(psi, field)
    if isinstance(x, bool | str) or x is None:
        raise ValueError(f"{type(psi).__name__}: {field} must be a number, found {x!r}.")
    if isinstance(x, numbers.Real) and not (math.isfinite(x) and (x >= lowest if inclusive else x > lowest)):
        allowed = f"{'at least' if inclusive else 'greater than'} {lowest}"
        raise ValueError(f"{type(psi).__name__}: {field} must be finite and {allowed}, found {field}={x}.")


def _float32_at_least(compute):
    """Runs compute(psi, x) with x and psi's parameters in float32 or wider; the result gets x's own float dtype."""

    @functools.wraps(compute)
    def wrapper(psi, x):
        x = jnp.asarray(x)
        out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
        wide = jnp.promote_types(out, jnp.float32)
        psi = jax.tree.map(lambda p: jnp.asarray(p, wide), psi)
        return compute(psi, x.astype(wide)).astype(out)

    return wrapper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sigmoid:
    """w = a·s(v / b) for an odd increasing s, with a, b > 0."""

    a: float | jax.Array = 1.0
    b: float | jax.Array = 1.0

    def __post_init__(self):
        _check(self, "a", 0, inclusive=False)
        _check(self, "b", 0, inclusive=False)


@jax.tree_util.register_dataclass
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
        return self.a * jnp.arctan(v / self.b)

    @_float32_at_least
    def inverse(self, w):
        """v = b·tan(w / a); nan where |w| >= bound."""
        x = w / self.a
        return jnp.where(jnp.abs(x) < jnp.asarray(math.pi / 2, x.dtype), self.b * jnp.tan(x), jnp.nan)

    @_float32_at_least
    def derivative(self, v):
        """dw/dv = a·b / (b² + v²), written so that v² cannot overflow into nan."""
        return (self.a / self.b) / (1 + jnp.square(v / self.b))


@jax.tree_util.register_dataclass
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
        return (self.a / self.b) * jax.lax.rsqrt(1 + jnp.square(v / self.b))


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PowerProp:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightNorm:
    """Weight normalization: w = g·v / ‖v‖ for each output channel (the last axis). Not elementwise."""

    def __call__(self, v, g):
        """w = g·v / ‖v‖, shape and dtype of v; 0 where ‖v‖ = 0. v: (..., features), g: (features,)."""
        wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        square = jnp.sum(jnp.square(wide), axis=tuple(range(v.ndim - 1)))
        scale = jnp.where(square == 0, 0, g * jax.lax.rsqrt(jnp.where(square == 0, 1, square)))
        return (wide * scale).astype(v.dtype)

    def inverse(self, w):
        """(v, g) = (w, ‖w‖ of each output channel), so that the initial w is kept."""
        wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
        return w, jnp.sqrt(jnp.sum(jnp.square(wide), axis=tuple(range(w.ndim - 1)))).astype(w.dtype)
