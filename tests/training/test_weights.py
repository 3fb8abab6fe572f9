"""What the network sees: in weights.jsonl, in the metrics and in the folded network, against NumPy and SciPy."""

import jax
import numpy as np
import pytest
import scipy.stats

from tests import truth
from tests.training import runs
from wcjax import training
from wcjax.config import check_config, with_variant
from wcjax.run_folder import read_lines
from wcjax.run_folder.checkpoints import load_tree
from wcjax.run_folder.schema import EDGES
from wcjax.training import weights


def described(w):
    """What `weights.weight_statistics` must give, in float64."""
    w = np.float64(w).ravel()
    return {
        "histogram": np.histogram(w, [-np.inf, *EDGES, np.inf])[0],
        "mean": w.mean(),
        "std": w.std(),
        "max": abs(w).max(),
        "kurtosis": scipy.stats.kurtosis(w) if w.std() else 0,
        "below_0.01": np.mean(abs(w) < 0.01),
        "below_tenth_of_std": np.mean(abs(w) < 0.1 * w.std()),
    }


RANDOM = np.random.default_rng(0).standard_t(5, size=(3, 3, 8, 32))
WEIGHTS = {"small": 1e-3 * RANDOM, "usual": 0.05 * RANDOM, "beyond the edges": 30 * RANDOM}
WEIGHTS |= {"on edges": np.array([-9, EDGES[0], 0, EDGES[-1], 9, 9]), "without spread": np.full((3, 4), 0.5)}


@pytest.mark.parametrize("w", WEIGHTS.values(), ids=WEIGHTS)
def test_layer_statistics_are_those_of_numpy_and_scipy(w):
    numbers, expected = weights.weight_statistics(np.float32(w)), described(np.float32(w))
    assert numbers.keys() == expected.keys()
    np.testing.assert_array_equal(numbers.pop("histogram"), expected["histogram"])
    for name, value in numbers.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6 * np.median(abs(w)), err_msg=name)


def test_the_edges_are_symmetric_and_fine_near_zero():
    np.testing.assert_allclose(EDGES, -np.flip(EDGES), rtol=1e-6)
    np.testing.assert_allclose(EDGES[-1], 4, rtol=1e-6)
    assert np.min(np.diff(EDGES)) < 1e-3


LONG = [pytest.param(variant, marks=pytest.mark.long) for variant in ("wc", "coarse", "wn", "plain")]


@pytest.fixture(scope="module", params=["channel", *LONG])
def variant(request, tmp_path_factory):
    """(folder, learn, {layer: (w, its learned numbers)}) of a run of one epoch, by NumPy."""
    config = with_variant(check_config(runs.tiny(epochs=1)), f"tiny,{request.param}")
    config.reparam.update(a=1.2, b=0.9)  # the initial weights do not fit into the a of the learned variants
    training.train(config, folder := tmp_path_factory.mktemp("variant"))
    params = jax.tree.map(np.float64, runs.checkpoint(folder, 1)["params"])
    layers = {}
    for layer in ("stem", "head"):
        kernel = w = params[layer]["kernel"]
        learned = params.get("pair", kernel if isinstance(kernel, dict) else {}).get("psi")
        if config.reparam.name == "weightnorm":
            w = truth.WeightNorm()(kernel["v"], learned["g"])
        elif config.reparam.name == "arctan":
            w = truth.Psi("arctan", *map((learned or config.reparam).get, "ab"))(kernel["v"])
        layers[layer] = w, learned
    return folder, config.reparam.learn, layers


def test_each_epoch_describes_the_w_that_the_network_sees(variant):
    folder, _, layers = variant
    before, after = read_lines(folder, "weights.jsonl")
    assert (before["epoch"], after["epoch"]) == (0, 1)
    assert before["layers"].keys() == after["layers"].keys() == layers.keys()
    for layer, (w, _) in layers.items():
        numbers, expected = after["layers"][layer], described(w)
        assert numbers["histogram"] != before["layers"][layer]["histogram"]
        # Counts may differ by a weight that is on an edge within a rounding.
        assert np.sum(np.abs(np.subtract(numbers.pop("histogram"), expected.pop("histogram")))) <= 4
        for name, value in numbers.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=f"{layer} {name}")


def test_the_folded_network_has_w_and_all_else_unchanged(variant):
    folder, _, layers = variant
    folded, trained = load_tree(folder / "folded"), runs.checkpoint(folder, 1)
    for layer, (w, _) in layers.items():
        np.testing.assert_allclose(folded["params"][layer]["kernel"], w, rtol=1e-6, atol=1e-9)
        trained["params"][layer]["kernel"] = folded["params"][layer]["kernel"]
    trained["params"].pop("pair", None)
    runs.assert_same_bits(folded, {name: trained[name] for name in ("params", "batch_stats")})


def test_the_metrics_have_the_learned_pairs(variant):
    folder, learn, layers = variant
    (line,) = read_lines(folder)
    assert ("pairs" in line) == (learn != "none")
    for layer, (_, numbers) in layers.items() if learn != "none" else ():
        pair = line["pairs"]["pair" if learn == "coarse" else layer]
        assert pair.keys() == {"a", "b"}
        for letter, start in (("a", 1.2), ("b", 0.9)):
            x = numbers[letter].ravel()
            quartiles = scipy.stats.mstats.mquantiles(x, [0, 0.25, 0.5, 0.75, 1], alphap=1, betap=1)
            np.testing.assert_allclose(pair[letter], quartiles if learn == "channel" else x[0], rtol=1e-12)
            assert np.any(np.abs(x - start) > 1e-6), "it did not move"
