"""Tables II to VII of the paper next to the results of runs, as rows, a table and CSV. Accuracies: on test, in %."""

import collections
import csv
import pathlib
import statistics as python_statistics
from typing import NamedTuple

from wcjax.analysis import paper
from wcjax.analysis.document import Table
from wcjax.analysis.runs import Run, Setting, without_repeats
from wcjax.analysis.statistics import holm, mean_and_std, permutation_p, welch_interval
from wcjax.files import saving


class Row(NamedTuple):
    """One cell of the paper's tables and the result of runs for it. A number that is not known is None."""

    setting: str  # '' if it is the only one of this data set and network, else 'A', 'B', ...
    dataset: str
    model: str
    method: str
    reparam: str | None  # Ψ with the a and b of the runs
    n: int  # finished runs
    mean: float | None  # test accuracy, %
    std: float | None  # of the sample
    paper_mean: float | None
    paper_std: float | None
    baseline: str  # the method that this one is compared with
    difference: float | None  # to the baseline, percentage points
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # permutation test against the baseline
    p_holm: float | None  # over all tests of this table


def chosen_runs(runs: list[Run]) -> dict[str, list[Run]]:
    """{method: its finished runs} of one setting.

    If a method was run with several (a, b) or α, the one with the most runs counts, and of equals the best on val.
    After a grid every pair has one run, and the best pair has more.
    """
    by_method = collections.defaultdict(lambda: collections.defaultdict(list))
    for run in without_repeats([run for run in runs if run.summary])[0]:
        by_method[run.method][run.reparam].append(run)

    def merit(runs):
        return len(runs), python_statistics.mean(run.summary["best_val_accuracy"] for run in runs)

    return {method: max(by_reparam.values(), key=merit) for method, by_reparam in by_method.items()}


def accuracies(runs: list[Run]) -> list[float]:
    """Test accuracy in % of finished runs."""
    return [100 * run.summary["test_accuracy"] for run in runs]


def table(settings: list[Setting], baseline: str = "plain") -> list[Row]:
    """The rows of the settings of one data set: each network and method that was run or that the paper has."""
    dataset = settings[0].dataset
    reported = paper.ACCURACY.get(settings[0].runs[0].config["dataset"], {})
    networks = [(letter, s.model, s.runs) for letter, s in zip(setting_letters(settings), settings, strict=True)]
    networks += [("", model, []) for model in reported if model not in {s.model for s in settings}]
    rows = []
    for letter, model, runs in networks:
        chosen, tried = chosen_runs(runs), {run.method for run in runs}
        baseline_accuracies = accuracies(chosen.get(baseline, []))
        for method in (*paper.METHODS, *sorted(tried - set(paper.METHODS))):
            printed = reported.get(model, {}).get(method)
            if method in tried or printed:
                place, runs_of_method = (letter, dataset, model, method), chosen.get(method, [])
                rows.append(_row(place, runs_of_method, printed or (None, None), baseline, baseline_accuracies))
    corrected = holm([row.p for row in rows])
    return [row._replace(p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def setting_letters(settings: list[Setting]) -> list[str]:
    """For each setting 'A', 'B', ... if there are several of its data set and network, else ''."""
    places = [(s.dataset, s.model) for s in settings]
    return [_letter(places[:i].count(p)) if places.count(p) > 1 else "" for i, p in enumerate(places)]


def _letter(i):
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def _row(place, runs, printed, baseline, baseline_accuracies):
    x = accuracies(runs)
    mean, std = mean_and_std(x)
    difference = interval = p = None
    if place[-1] != baseline and x and baseline_accuracies:
        difference = mean - mean_and_std(baseline_accuracies)[0]
        interval, p = welch_interval(x, baseline_accuracies), permutation_p(x, baseline_accuracies)
    low, high = interval or (None, None)
    reparam = runs[0].reparam if runs else None
    return Row(*place, reparam, len(x), mean, std, *printed, baseline, difference, low, high, p, None)


def as_table(rows: list[Row]) -> Table:
    """The table of a report."""
    difference = f"difference to {rows[0].baseline} (95 % interval)"
    columns = ["network", "method", "Ψ", "n", "accuracy (%)", "paper (%)", difference, "p", "p (Holm)"]
    lines = []
    for row in rows:
        interval = "" if row.low is None else f" ({row.low:+.2f} to {row.high:+.2f})"
        line = [
            f"{row.model} ({row.setting})" if row.setting else row.model,
            row.method,
            row.reparam or "",
            str(row.n),
            _plus_minus(row.mean, row.std),
            _plus_minus(row.paper_mean, row.paper_std),
            "" if row.difference is None else f"{row.difference:+.2f}{interval}",
            *("" if p is None else f"{p:.3g}" for p in (row.p, row.p_holm)),
        ]
        lines.append(line)
    return Table(columns, lines)


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
