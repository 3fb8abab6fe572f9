"""Intervals and p-values against worked examples and a count by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from wcjax.analysis import statistics

FEW, MANY = [93.1, 94.9, 92.2], [94.0, 94.1, 94.05, 93.98, 94.07, 94.02]  # of another size and spread


def test_the_interval_is_welchs():
    vx, vy = np.var(FEW, ddof=1) / 3, np.var(MANY, ddof=1) / 6
    freedom = (vx + vy) ** 2 / (vx**2 / 2 + vy**2 / 5)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(vx + vy)
    middle = np.mean(FEW) - np.mean(MANY)
    np.testing.assert_allclose(statistics.welch_interval(FEW, MANY), [middle - half, middle + half])


@pytest.mark.parametrize("x, y", [([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([2.0, 2.0], [1.0, 1.0])])
def test_too_few_runs_or_none_that_varies_have_no_interval(x, y):
    assert statistics.welch_interval(x, y) is None


def test_few_runs_have_an_exact_permutation_p():
    x, y = [94.1, 94.6, 94.4, 94.9], [93.9, 94.0, 94.5, 94.2]
    both = np.array(x + y)
    observed, extreme = np.mean(x) - np.mean(y), []
    for chosen in itertools.combinations(range(8), 4):
        rest = sorted(set(range(8)) - set(chosen))
        extreme.append(both[list(chosen)].mean() - both[rest].mean())
    larger = np.mean(np.array(extreme) >= observed - 1e-9)
    np.testing.assert_allclose(statistics.permutation_p(x, y), min(1, 2 * larger))


def test_five_against_five_apart_have_the_smallest_p_there_is():
    np.testing.assert_allclose(statistics.permutation_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]), 2 / 252)


def test_a_permutation_p_needs_two_runs_on_both_sides():
    assert statistics.permutation_p([1.0], [1.0, 2.0]) is None


def test_holm_is_the_step_down_of_its_definition():
    # 4 tests: 0.005·4, 0.01·3, 0.03·2, 0.04·1 raised to the one before.
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_empty_cells_empty_and_does_not_count_them():
    assert statistics.holm([None, 0.02, None, 0.9]) == [None, 0.04, None, 0.9]
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]


def test_one_run_has_a_mean_and_no_spread():
    assert statistics.mean_and_std([95.0]) == (95.0, None)
    assert statistics.mean_and_std([]) == (None, None)
    np.testing.assert_allclose(statistics.mean_and_std([1.0, 3.0]), (2, np.sqrt(2)))
