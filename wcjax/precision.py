"""Arithmetic that neither overflows nor rounds in 16 bits: the dtype to compute in, and products kept finite."""

import jax
import jax.numpy as jnp

LARGEST = 1e30  # a larger step is as good as infinite, and its products would overflow in float32


def wide_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The dtype to compute in: float64 for float64, if JAX has it enabled, and float32 for any other dtype."""
    return jnp.float64 if jax.dtypes.canonicalize_dtype(dtype) == jnp.float64 else jnp.float32


def widen(x: jax.Array) -> jax.Array:
    """x in its `wide_dtype`. Ψ′ and 1 / Ψ′ may overflow in float16."""
    return jnp.asarray(x, wide_dtype(x.dtype))


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x·factor in the dtype of x. Finite for a finite x and a finite factor."""
    x = jnp.asarray(x)
    wide, limit = wide_dtype(x.dtype), _limit(x.dtype)
    scaled = x.astype(wide) * factor.astype(wide)
    return jnp.where(jnp.isfinite(x), jnp.clip(scaled, -limit, limit), scaled).astype(x.dtype)


def scale_step(step: jax.Array, factor: jax.Array) -> jax.Array:
    """step·factor, with the step first clipped to ±LARGEST, or to the largest number of its dtype if it is smaller."""
    limit = _limit(step.dtype)
    return scale(jnp.clip(step, -limit, limit), factor)


def _limit(dtype):
    return min(LARGEST, float(jnp.finfo(dtype).max))
