"""Intervals and p-values against worked examples and a count by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from wcjax.analysis import significance

FEW, MANY = [93.1, 94.9, 92.2], [94.0, 94.1, 94.05, 93.98, 94.07, 94.02]  # they differ in size and spread


def test_the_interval_is_welchs():
    vx, vy = np.var(FEW, ddof=1) / 3, np.var(MANY, ddof=1) / 6
    freedom = (vx + vy) ** 2 / (vx**2 / 2 + vy**2 / 5)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(vx + vy)
    middle = np.mean(FEW) - np.mean(MANY)
    np.testing.assert_allclose(significance.welch_interval(FEW, MANY), [middle - half, middle + half])


def test_a_permutation_test_of_few_runs_counts_all_splits():
    x, y = [94.1, 94.6, 94.4, 94.9], [93.9, 94.0, 94.5, 94.2]
    differences = [2 * (np.mean(chosen) - np.mean(x + y)) for chosen in itertools.combinations(x + y, 4)]
    larger = np.mean(np.array(differences) >= np.mean(x) - np.mean(y) - 1e-9)
    np.testing.assert_allclose(significance.permutation_p(x, y), min(1, 2 * larger))
    np.testing.assert_allclose(significance.permutation_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]), 2 / 252)  # the smallest


def test_pairs_are_compared_by_their_differences():
    x, y = [54.1, 50.2, 52.9, 57.0], [53.0, 49.9, 52.4, 55.1]
    differences = np.subtract(x, y)
    half = scipy.stats.t.ppf(0.975, 3) * differences.std(ddof=1) / 2
    expected = [differences.mean() - half, differences.mean() + half]
    np.testing.assert_allclose(significance.paired_interval(x, y), expected)
    means = [np.dot(signs, differences) / 4 for signs in itertools.product([-1, 1], repeat=4)]
    np.testing.assert_allclose(significance.sign_flip_p(x, y), np.mean(np.abs(means) >= differences.mean() - 1e-9))
    np.testing.assert_allclose(significance.sign_flip_p(np.arange(10.0) + 1, np.zeros(10)), 2 / 1024)


def test_too_few_or_constant_accuracies_have_no_interval():
    for x, y in (([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([2.0, 2.0], [1.0, 1.0])):
        assert significance.welch_interval(x, y) is None
        assert (significance.permutation_p(x, y) is None) == (min(len(x), len(y)) < 2)
    assert significance.paired_interval([1.0], [2.0]) is None and significance.sign_flip_p([1.0], [2.0]) is None
    assert significance.paired_interval([1.0, 2.0], [0.0, 1.0]) is None


@pytest.mark.parametrize(
    "p, corrected",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 0.01·3, 0.04·1 raised to the next, 0.03·2, 0.005·4
        ([None, 0.02, None, 0.9], [None, 0.04, None, 0.9]),
        ([0.6, 0.7], [1.0, 1.0]),
    ],
)
def test_holm_steps_down_over_the_available_tests(p, corrected):
    assert significance.holm(p) == pytest.approx(corrected)
