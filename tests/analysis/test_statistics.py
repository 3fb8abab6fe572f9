"""Intervals and p-values against worked examples and a count by hand."""

import itertools

import numpy as np
import pytest

from wcjax.analysis import statistics

# Welch's test as in the literature's example 1: t = −2.46, ν = 25.0, p = 0.021.
A = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
B = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 24.4]  # has another spread


def test_the_interval_is_welchs():
    na, nb, va, vb = len(A), len(B), np.var(A, ddof=1), np.var(B, ddof=1)
    freedom = (va / na + vb / nb) ** 2 / ((va / na) ** 2 / (na - 1) + (vb / nb) ** 2 / (nb - 1))
    assert 27.5 < freedom < 28
    t = 2.04904  # 97.5 % quantile of t at 27.77 degrees of freedom, between the 2.0518 of 27 and the 2.0484 of 28
    half = t * np.sqrt(va / na + vb / nb)
    found = statistics.welch_interval(A, B)
    np.testing.assert_allclose(found, [np.mean(A) - np.mean(B) - half, np.mean(A) - np.mean(B) + half], atol=2e-3)


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
