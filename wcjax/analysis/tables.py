"""Tables II to VII of the paper next to the results of runs, as rows, a table and CSV. Accuracies: on test, in %."""

import csv
import itertools
import pathlib
import statistics
from typing import NamedTuple

from wcjax.analysis import paper
from wcjax.analysis.document import Table
from wcjax.analysis.runs import RunRecord, Setting, finished_and_repeats
from wcjax.analysis.significance import Comparison, compare, holm, mean_and_std
from wcjax.system.files import saving


class Row(NamedTuple):
    """One row of the report: the paper's number and ours for a method. None where there is no number."""

    setting: str  # `Setting.letter`
    dataset: str
    model: str
    method: str
    reparam: str | None  # Ψ with the a and b of the runs
    tuning: str | None  # learning rate, decay, and label smoothing if there is any
    n: int  # finished runs
    mean: float | None  # test accuracy, %
    std: float | None  # of the sample
    paper_mean: float | None
    paper_std: float | None
    difference: float | None  # to the baseline, percentage points
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # of the test against the baseline: a sign flip test if paired, else a permutation test
    paired: bool  # whether interval and p compare the runs seed by seed
    p_holm: float | None  # over all tests of this table


def chosen_runs(runs: list[RunRecord]) -> list[list[RunRecord]]:
    """The finished runs that a table has rows for, one list for each variant, in the order of `paper.METHODS`.

    A method may have been run with several (a, b), learning rates or decays. The variants with the most runs count. If
    that is one run each, as after a grid, only the best variant on val counts.
    """
    finished, _ = finished_and_repeats(runs)
    finished.sort(key=lambda run: (_method_order(run.method), run.variant))
    chosen = []
    for _, runs_of_method in itertools.groupby(finished, key=lambda run: run.method):
        variants = [list(variant) for _, variant in itertools.groupby(runs_of_method, key=lambda run: run.variant)]
        most = max(map(len, variants))
        chosen += [v for v in variants if len(v) == most] if most > 1 else [max(variants, key=val_accuracy)]
    return chosen


def _method_order(method):
    """The sort key of a method: those of the paper come first, in its order."""
    return paper.METHODS.index(method) if method in paper.METHODS else len(paper.METHODS), method


def val_accuracy(runs: list[RunRecord]) -> float:
    """The mean of the best accuracy on val of finished runs."""
    return statistics.mean(run.summary["best_val_accuracy"] for run in runs)


def test_accuracy(run: RunRecord) -> float:
    """Accuracy of a finished run on test, in %."""
    return 100 * run.summary["test_accuracy"]


def baseline_of(variants: list[list[RunRecord]]) -> list[RunRecord]:
    """The plain runs that all others are compared with: the best variant on val. Empty if there are none."""
    return max((runs for runs in variants if runs[0].method == "plain"), key=val_accuracy, default=[])


def labels(variants: list[list[RunRecord]]) -> list[str]:
    """A name for each variant: its method, and its Ψ and tuning if the method has several."""
    methods = [runs[0].method for runs in variants]
    return [
        m if methods.count(m) == 1 else f"{m}, {runs[0].reparam}, {runs[0].tuning}"
        for m, runs in zip(methods, variants, strict=True)
    ]


def result_rows(settings: list[Setting]) -> list[Row]:
    """The rows of the settings of one data set: each network and method that was run or that the paper has."""
    dataset = settings[0].dataset
    reported = paper.ACCURACY.get(settings[0].runs[0].config["dataset"], {})
    networks = [(s.letter, s.model, s.runs) for s in settings]
    networks += [("", model, []) for model in reported if model not in {s.model for s in settings}]
    rows = []
    for letter, model, runs in networks:
        variants, paper_numbers = chosen_runs(runs), reported.get(model, {})
        baseline = baseline_of(variants)
        for method in sorted({run.method for run in runs} | paper_numbers.keys(), key=_method_order):
            paper_number = paper_numbers.get(method, (None, None))
            place = {"setting": letter, "dataset": dataset, "model": model, "method": method}
            for variant in [v for v in variants if v[0].method == method] or [[]]:
                rows.append(_row(variant, baseline, paper_number, **place))
    corrected = holm([row.p for row in rows])
    return [row._replace(p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _row(runs, baseline, paper_number, **place):
    comparison = Comparison() if runs is baseline else compare(runs, baseline, test_accuracy)
    mean, std = mean_and_std([test_accuracy(run) for run in runs])
    paper_mean, paper_std = paper_number
    return Row(
        **place,
        reparam=runs[0].reparam if runs else None,
        tuning=runs[0].tuning if runs else None,
        n=len(runs),
        mean=mean,
        std=std,
        paper_mean=paper_mean,
        paper_std=paper_std,
        **comparison._asdict(),
        p_holm=None,
    )


def results_table(rows: list[Row]) -> Table:
    """The table of a report."""
    columns = ["network", "method", "Ψ", "learning rate, decay", "n", "accuracy (%)", "paper (%)"]
    columns += ["difference to plain (95 % interval)", "p", "p (Holm)"]
    lines = []
    for row in rows:
        line = [
            f"{row.model} ({row.setting})" if row.setting else row.model,
            row.method,
            row.reparam or "",
            row.tuning or "",
            str(row.n),
            _plus_minus(row.mean, row.std),
            _plus_minus(row.paper_mean, row.paper_std),
            format_difference(row),
            format_p(row.p),
            format_p(row.p_holm),
        ]
        lines.append(line)
    return Table(columns, lines)


def format_difference(comparison: Row | Comparison) -> str:
    """'+0.40 (+0.10 to +0.70, paired)'"""
    if comparison.difference is None:
        return ""
    text = f"{comparison.difference:+.2f}"
    if comparison.low is None:
        return text
    return f"{text} ({comparison.low:+.2f} to {comparison.high:+.2f}{', paired' if comparison.paired else ''})"


def format_p(p: float | None) -> str:
    return "" if p is None else f"{p:.3g}"


def _plus_minus(mean, std):
    if mean is None:
        return ""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def write_csv(path, names, rows) -> pathlib.Path:
    """Writes a CSV file with a line of names and one line for each row. None becomes an empty cell."""
    path = pathlib.Path(path)
    with saving(path), path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path
