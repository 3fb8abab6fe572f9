"""The optimizer and the schedule that a config asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wcjax
from tests.truth import Psi
from wcjax.config import check_config
from wcjax.config.build import learning_rate_schedule, make_optimizer, make_psi


def test_a_milestone_takes_effect_right_after_its_epoch():
    milestones = (2, 5, 10**9)  # the last step of the run is far below int32, and the last milestone above it
    config = check_config({"learning_rate": 0.4, "schedule": {"milestones": milestones, "factor": 0.1}})
    schedule = learning_rate_schedule(config, steps_per_epoch=10)
    rates = {0: 0.4, 19: 0.4, 20: 0.04, 49: 0.04, 50: 0.004, 1000: 0.004}
    np.testing.assert_allclose([schedule(step) for step in rates], list(rates.values()), rtol=1e-6)


@pytest.mark.parametrize(
    "reparam, optimizer",
    [("arctan", "sgd"), ("arctan", "adam"), ("arctan, fine", "adam"), ("weightnorm", "sgd"), ("none", "sgd")],
)
def test_the_config_decides_what_decays(reparam, optimizer):
    name, _, learn = reparam.partition(", ")
    reparam, moved = {"name": name, "learn": learn or "none"}, {}
    for decays in (True, False):
        config = {"optimizer": optimizer, "weight_decay": 0.1, "decay_norm_and_bias": decays, "reparam": reparam}
        config = check_config(config)
        params = {
            "conv": {"kernel": jnp.full((3, 3, 1, 2), 0.5)},
            "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 0.3)},
            "head": {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.3)},
        }
        if name != "none":
            params = wcjax.reparameterize(params, make_psi(config), learn=reparam["learn"])
        tx = make_optimizer(config, steps_per_epoch=1)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        updates = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(updates)}
        assert all(np.all(np.asarray(x) <= 0) for x in updates.values()), "decay is towards zero"
        moved[decays] = {path for path, x in updates.items() if np.any(x)}
    assert moved[True] == {path for path in updates if "psi" not in path or path.endswith(".g")}, "a, b never decay"
    assert moved[False] == {path for path in updates if path.endswith((".v", "['kernel']"))}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_config_decides_rate_momentum_and_scaling(optimizer):
    config = {"optimizer": optimizer, "learning_rate": 0.2, "momentum": 0.5, "weight_decay": 0.1}
    tx = make_optimizer(check_config(config | {"reparam": {"a": 0.7, "b": 0.6}}), steps_per_epoch=1)
    psi, v, bias, g = Psi("arctan", 0.7, 0.6), np.float64([[0.4, -0.2]]), np.float64([0.3, 0.1]), 0.05
    kernel = wcjax.Reparameterized(jnp.asarray(v, jnp.float32), psi.ours())
    params = {"kernel": kernel, "bias": jnp.asarray(bias, jnp.float32)}
    grads, state = jax.tree.map(lambda p: jnp.full_like(p, g), params), tx.init(params)
    w, slope = psi(v), psi.derivative(v)
    for momentum in (1, 1.5):
        updates, state = tx.update(grads, state, params)
        if optimizer == "sgd":
            expected = momentum * (g + 0.1 * w * slope), momentum * (g + 0.1 * bias)
        else:  # equal gradients divided by the root of their squares, and Ψ′ times that for v
            expected = slope * np.sign(g / slope + 0.1 * w), np.ones(2)
        np.testing.assert_allclose(updates["kernel"].v, -0.2 * expected[0], rtol=3e-5)
        np.testing.assert_allclose(updates["bias"], -0.2 * expected[1], rtol=3e-5)
