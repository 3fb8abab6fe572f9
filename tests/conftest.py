"""Programs are compiled in a hurry, as in JAX's own tests: most of them run for less time than XLA would optimize them.

Tests of rounding errors compile as users do, with the fixture `optimized`.
"""

import os

import jax
import pytest

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimized():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
