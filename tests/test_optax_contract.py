"""What optax asks of its optimizers (contrib/_common_test.py), for each of them inside compand.

docs/which_optimizers.md says which optimizers go inside, and in which mode. Here its table is the list of cases.
"""

import inspect
import math
import re

import chex
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from optax._src import alias

import wcjax
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "which_optimizers.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`.*?) \| (True|False|either) \|", PAGE, re.MULTILINE)
TABLE = {name: mode != "False" for cell, mode in ROWS for name in re.findall(r"`([\w.]+)(?:\(.*?\))?`", cell)}
KEEPS_WEIGHTS = ("sam", "mechanize", "schedule_free_sgd", "schedule_free_adamw", "madgrad", "cocob")
ADAPTIVE = TABLE | {f"contrib.{name}": False for name in KEEPS_WEIGHTS}
SETTINGS = {"lbfgs": {"linesearch": None}, "noisy_sgd": {"key": 0}, "contrib.galore": {"rank": 2}}
SETTINGS |= {"contrib.sam": {"optimizer": optax.sgd(0.1), "adv_optimizer": optax.sgd(0.5)}}
SETTINGS |= {"contrib.mechanize": {"base_optimizer": optax.sgd(0.1)}}


def factory(name):
    return getattr(optax.contrib if name.startswith("contrib.") else optax, name.removeprefix("contrib."))


def loss(params):
    return sum(jnp.sum(jnp.square(p - 0.3)) for p in jax.tree.leaves(params))


def companded(name, learning_rate=0.1):
    make = factory(name)
    rate = {"learning_rate": learning_rate} if "learning_rate" in inspect.signature(make).parameters else {}
    return wcjax.compand(make(**rate, **SETTINGS.get(name, {})), wcjax.Arctan(0.9, 0.6), adaptive=ADAPTIVE[name])


def test_the_optimizer_page_lists_every_optax_optimizer():
    public = {name for name in dir(optax) if inspect.isfunction(getattr(alias, name, None))}
    makes_optimizer = lambda x: inspect.isfunction(x) and "GradientTransformation" in str(inspect.signature(x))
    public |= {name for name in dir(optax.contrib) if makes_optimizer(getattr(optax.contrib, name))}
    public -= {"optimistic_adam"}  # deprecated
    missing = {name for name in public if "scale_by" not in name and not re.search(rf"\b{name}\b", PAGE)}
    assert not missing


@pytest.mark.parametrize("name", ADAPTIVE)
def test_each_optimizer_keeps_the_contract_of_optax(name):
    # Gradients accumulated, an argument that nobody expects, state and updates of stable shapes and dtypes.
    tx = optax.MultiSteps(companded(name), every_k_schedule=4)
    extra = {"an_argument_that_nobody_expects": 1.0} if name != "contrib.sam" else {}  # which refuses any
    if name in ("polyak_sgd", "contrib.momo", "contrib.momo_adam"):
        extra["value"] = jnp.float32(1.0)
    if name == "contrib.sophia":
        extra["obj_fn"] = loss
    draw = lambda *shape: jnp.linspace(-0.6, 0.7, math.prod(shape), dtype=jnp.bfloat16).reshape(shape)
    params = {"kernel": draw(2, 3), "bias": draw(3)}
    state = jax.eval_shape(tx.init, params)
    step = lambda state, params: tx.update(jax.grad(loss)(params), state, params, **extra)
    updates, new_state = jax.eval_shape(step, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    mapped = jax.eval_shape(lambda state: optax.tree.map_params(tx.init, lambda x: x, state), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(mapped, state)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "rmsprop", "contrib.muon"])
def test_an_optimizer_finds_the_minimum(name):
    params = {"kernel": jnp.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]]), "bias": jnp.array([-0.5, 0.7, 0.3])}
    tx = companded(name, optax.linear_schedule(0.1, 0.0, 300))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))((params, tx.init(params)))
    chex.assert_trees_all_close(params, jax.tree.map(lambda p: jnp.full_like(p, 0.3), params), atol=3e-2)
