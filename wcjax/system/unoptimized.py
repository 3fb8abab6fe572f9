"""`jax.jit` for functions that a run calls at most once an epoch and that take longer to compile than to run."""

import functools

import jax


def jit_unoptimized(function, **settings):
    """`jax.jit(function, **settings)`. On a CPU, XLA compiles it with fewer optimizations.

    The platform is looked up at the first call, so that decorating a function does not make JAX take its devices.
    """

    @functools.cache
    def jitted():
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=options, **settings)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return jitted()(*args, **kwargs)

    return call
