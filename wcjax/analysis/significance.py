"""Whether the runs of a method differ from plain runs: intervals of the difference of means, and p-values."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from wcjax.analysis.runs import RunRecord

# Seven runs a side have 3,432 permutations; up to RESAMPLES the p-value is exact.
RESAMPLES = 9_999
DECIMALS = 9  # Accuracies take few values, and equal differences must not differ in their last bits.
MIN_PAIRS = 8  # With fewer seeds no sign flip test gives a p below 0.01, and a paired interval is wide.


class Comparison(NamedTuple):
    """The difference of some runs to baseline runs. None if there are too few runs."""

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    paired: bool = False


def compare(runs: list[RunRecord], baseline: list[RunRecord], value: Callable[[RunRecord], float]) -> Comparison:
    """The difference of the means of value(run), its 95 % interval and its p.

    If both have the same seeds, at least MIN_PAIRS of them, runs are compared seed by seed. Otherwise the interval is
    Welch's.
    """
    if not runs or not baseline:
        return Comparison()
    by_seed, baseline_by_seed = ({run.config["seed"]: value(run) for run in side} for side in (runs, baseline))
    paired = by_seed.keys() == baseline_by_seed.keys() and len(by_seed) >= MIN_PAIRS
    x, y = ([values[seed] for seed in sorted(values)] for values in (by_seed, baseline_by_seed))
    if paired:
        interval, p = paired_interval(x, y), sign_flip_p(x, y)
    else:
        interval, p = welch_interval(x, y), permutation_p(x, y)
    low, high = interval or (None, None)
    return Comparison(statistics.mean(x) - statistics.mean(y), low, high, p, paired)


def mean_and_std(x: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of a sample (/ (n − 1)); None with too few runs."""
    return (float(np.mean(x)) if len(x) else None, float(np.std(x, ddof=1)) if len(x) > 1 else None)


def welch_interval(x: Sequence[float], plain: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of mean(x) − mean(plain) by Welch's t; None with fewer than 2 runs on a side, or if none varies."""
    if min(len(x), len(plain)) < 2 or np.ptp(x) == np.ptp(plain) == 0:
        return None
    interval = scipy.stats.ttest_ind(x, plain, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def paired_interval(x: Sequence[float], plain: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of mean(x − plain) by Student's t; None with fewer than 2 pairs, or if no difference varies.

    A pair of runs has the same seed, so it starts from the same w and sees the same images in the same order.
    """
    if len(x) < 2 or np.ptp(np.subtract(x, plain)) == 0:
        return None
    interval = scipy.stats.ttest_rel(x, plain).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def sign_flip_p(x: Sequence[float], plain: Sequence[float]) -> float | None:
    """Two-sided p-value of the mean difference under the null hypothesis that labels are exchangeable within pairs.

    Exact if there are at most RESAMPLES sign flips, else from that many random ones (seed 0). None with fewer than 2
    pairs.
    """
    return _permutation_p(x, plain, permutation_type="samples") if len(x) > 1 else None


def permutation_p(x: Sequence[float], plain: Sequence[float]) -> float | None:
    """Two-sided p-value of the difference of means under the null hypothesis that labels are exchangeable.

    Exact if there are at most RESAMPLES permutations, else from that many random ones (seed 0). None with fewer than 2
    runs on a side.
    """
    return _permutation_p(x, plain, permutation_type="independent") if min(len(x), len(plain)) > 1 else None


def _permutation_p(x, plain, permutation_type):
    difference_of_means = lambda x, y, axis: np.round(np.mean(x, axis=axis) - np.mean(y, axis=axis), DECIMALS)
    test = scipy.stats.permutation_test(
        (x, plain),
        difference_of_means,
        permutation_type=permutation_type,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for multiple tests by Holm's step-down method; None stays None and is not counted."""
    tested = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected, largest = [None] * len(p), 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        corrected[i] = largest
    return corrected
