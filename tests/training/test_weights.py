"""The distribution of the weights in weights.jsonl, against NumPy and SciPy on the weights of the checkpoints."""

import jax
import numpy as np
import pytest
import scipy.stats

from tests.training import runs
from wcjax import training
from wcjax.run_folder import read_lines
from wcjax.training import weights


def numbers_of(w):
    """What weights.describe must find, in float64."""
    w = np.float64(w).ravel()
    edges = [-np.inf, *weights.EDGES, np.inf]
    return {
        "histogram": np.histogram(w, edges)[0],
        "mean": w.mean(),
        "std": w.std(),
        "max": abs(w).max(),
        "kurtosis": scipy.stats.kurtosis(w),
        "below_0.01": np.mean(abs(w) < 0.01),
        "below_tenth_of_std": np.mean(abs(w) < 0.1 * w.std()),
    }


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 30.0])
def test_the_numbers_of_a_layer_are_those_of_numpy_and_scipy(scale):
    w = np.float32(scale * np.random.default_rng(0).standard_t(5, size=(3, 3, 8, 32)))
    found, expected = weights.describe(w), numbers_of(w)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found.pop("histogram"), expected.pop("histogram"))
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6 * scale, err_msg=name)


def test_a_weight_on_an_edge_counts_above_it_and_no_weight_is_lost():
    w = np.float32([-9, weights.EDGES[0], 0, weights.EDGES[-1], 9, 9])
    counts = np.asarray(weights.describe(w)["histogram"])
    assert counts.sum() == 6
    assert (counts[0], counts[1], counts[-1]) == (1, 1, 3)
    assert counts[1 + weights.EDGES.index(0)] == 1


def test_the_edges_are_symmetric_fine_near_zero_and_reach_four():
    edges = np.float64(weights.EDGES)
    np.testing.assert_allclose(edges, -edges[::-1], rtol=1e-6)
    assert np.min(np.diff(edges)) < 1e-3
    np.testing.assert_allclose(edges[-1], 4, rtol=1e-6)


def test_weights_that_are_all_equal_have_numbers():
    found = weights.describe(np.full((3, 4), 0.5, np.float32))
    assert (found["std"], found["kurtosis"]) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "none"},
        {"a": 0.7, "b": 0.6},
        {"learn": "fine"},
        {"learn": "channel"},
        {"learn": "coarse"},
        {"name": "weightnorm"},
    ],
    ids=str,
)
def test_each_epoch_from_zero_on_describes_what_the_network_sees(tmp_path, changes):
    config = runs.tiny(epochs=1, reparam=changes)
    training.train(config, tmp_path)
    before, after = read_lines(tmp_path, "weights.jsonl")
    assert (before["epoch"], after["epoch"]) == (0, 1)
    assert before["layers"].keys() == after["layers"].keys() == {"stem", "head"}
    params = runs.checkpoint(tmp_path, 1)["params"]
    for layer, found in after["layers"].items():
        assert found["histogram"] != before["layers"][layer]["histogram"]
        kernel = jax.tree.map(np.float64, params[layer]["kernel"])
        if changes.get("name") == "none":
            w = kernel
        elif changes.get("name") == "weightnorm":
            v, axes = kernel["v"], tuple(range(kernel["v"].ndim - 1))
            w = kernel["psi"]["g"] * v / np.sqrt(np.sum(v**2, axes, keepdims=True))
        else:
            pair = {"a": changes.get("a", 1), "b": changes.get("b", 1)}
            if "learn" in changes:
                pair = params["pair"]["psi"] if changes["learn"] == "coarse" else kernel["psi"]
            w = pair["a"] * np.arctan(kernel["v"] / pair["b"])
        expected = numbers_of(w)
        # Counts may differ by a weight that lies on an edge within a rounding.
        moved = np.sum(np.abs(np.subtract(found.pop("histogram"), expected.pop("histogram"))))
        assert moved <= 4
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=f"{layer} {name}")
