"""Tables II to VII of the paper beside what runs found, as rows, Markdown and CSV. Accuracies are of test, in %."""

import collections
import csv
import pathlib
import statistics as python_statistics
from typing import NamedTuple

from wcjax.analysis import paper
from wcjax.analysis.runs import Run, Setting, without_repeats
from wcjax.analysis.statistics import holm, mean_and_std, permutation_p, welch_interval
from wcjax.files import saving


class Row(NamedTuple):
    """One cell of the paper's tables and what runs found for it; None where there is nothing to say."""

    setting: str  # '' where there is one for this data set and network, else 'A', 'B', ...
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

    Of several (a, b) or α of a method the one with the most runs counts, and of equals the best on val: a grid on one
    seed leaves all pairs with one run, and the best pair with more.
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


def table(of: list[Setting], baseline: str = "plain") -> list[Row]:
    """The rows of one data set: each network and method that was run or that the paper has. of: its settings."""
    dataset = of[0].dataset
    reported = paper.ACCURACY.get(of[0].runs[0].config["dataset"], {})
    letters = setting_letters(of)
    cells = [(letters[i], s.model, chosen_runs(s.runs), {run.method for run in s.runs}) for i, s in enumerate(of)]
    cells += [("", model, {}, set()) for model in reported if model not in {s.model for s in of}]
    rows = []
    for letter, model, chosen, tried in cells:
        against = accuracies(chosen.get(baseline, []))
        for method in (*paper.METHODS, *sorted(tried - set(paper.METHODS))):
            printed = reported.get(model, {}).get(method)
            if method in tried or printed:
                place, found = (letter, dataset, model, method), chosen.get(method, [])
                rows.append(_row(place, found, printed or (None, None), baseline, against))
    corrected = holm([row.p for row in rows])
    return [row._replace(p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def setting_letters(of: list[Setting]) -> list[str]:
    """For each setting 'A', 'B', ... where its data set and network occur in more than one, else ''."""
    places = [(s.dataset, s.model) for s in of]
    return [_letter(places[:i].count(p)) if places.count(p) > 1 else "" for i, p in enumerate(places)]


def _letter(i):
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def _row(place, runs, printed, baseline, against):
    found = accuracies(runs)
    mean, std = mean_and_std(found)
    difference = interval = p = None
    if place[-1] != baseline and found and against:
        difference = mean - mean_and_std(against)[0]
        interval, p = welch_interval(found, against), permutation_p(found, against)
    low, high = interval or (None, None)
    reparam = runs[0].reparam if runs else None
    return Row(*place, reparam, len(found), mean, std, *printed, baseline, difference, low, high, p, None)


def markdown(rows: list[Row]) -> str:
    """One table of a report."""
    difference = f"difference to {rows[0].baseline} (95 % interval)"
    lines = [
        f"| network | method | Ψ | n | accuracy (%) | paper (%) | {difference} | p | p (Holm) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        interval = "" if row.low is None else f" ({row.low:+.2f} to {row.high:+.2f})"
        cells = [
            f"{row.model} ({row.setting})" if row.setting else row.model,
            row.method,
            row.reparam or "",
            str(row.n),
            _plus_minus(row.mean, row.std),
            _plus_minus(row.paper_mean, row.paper_std),
            "" if row.difference is None else f"{row.difference:+.2f}{interval}",
            *("" if p is None else f"{p:.3g}" for p in (row.p, row.p_holm)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plus_minus(mean, std):
    if mean is None:
        return ""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def write_csv(path, names, rows) -> pathlib.Path:
    """A CSV file with a line of names and one for each row; None is an empty cell."""
    path = pathlib.Path(path)
    with saving(path), path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path
