"""Writes a report on runs: the paper's tables next to the results, and its figures, as HTML, Markdown, CSV and PNG.

python -m wcjax.analysis.report RUNS [RUNS ...] --out DIR
"""

import argparse
import itertools
import pathlib
import re
import sys
from collections import Counter, defaultdict
from typing import NamedTuple

import wcjax
from wcjax.analysis import history, paper, plots, robustness
from wcjax.analysis.document import Bullets, Files, Heading, Paragraph, Picture, Table, as_html, as_markdown
from wcjax.analysis.runs import (
    Setting,
    data_differences,
    differences,
    find_runs,
    finished_and_repeats,
    group_by_setting,
)
from wcjax.analysis.significance import MIN_PAIRS
from wcjax.analysis.tables import (
    Row,
    baseline_of,
    chosen_runs,
    labels,
    result_rows,
    results_table,
    val_accuracy,
    write_csv,
)
from wcjax.commands import command, program
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp
from wcjax.system.devices import check_devices
from wcjax.system.files import saving, write_text
from wcjax.system.paths import check_writable, folder_path

EXPLANATION = f"""Accuracies are those of the test split, at the epoch that is best on val. n: the number of finished
runs, each with a different seed, over which mean ± standard deviation are taken. Difference: in percentage points,
with its 95 % interval. If both sides have the same {MIN_PAIRS} seeds or more, runs are compared seed by seed (paired;
Student's interval, sign flip test). Otherwise the interval is Welch's and p comes from a permutation test. Tests are
two-sided, and exact if that is feasible. p (Holm): corrected for all tests of the table. An empty cell: too few
runs. Paper: tables II to VII of arXiv 2306.16993. If a method was run with several Ψ, learning rates or decays,
those with the most runs are shown, or the best on val if each was run once. If there are several plain networks,
differences are to the one that is best on val."""


@command
def main(argv=None):
    parser = argparse.ArgumentParser(program("wcjax.analysis.report"), description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain run folders")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for report.html, report.md and their files")
    args = parser.parse_args(argv)
    check_devices()  # the plots of Ψ need a device
    print(write_report(args.runs, args.out).with_suffix(".html"))


def write_report(folders, out) -> pathlib.Path:
    """Writes report.html, report.md, two CSV files and the figures to the folder `out`; returns the path of report.md.

    folders: run folders, or folders that contain them. Raises InputError if there are no runs, or a file is damaged.
    """
    runs, omitted = find_runs(folders)
    settings = group_by_setting(runs)
    out = folder_path(out, "--out")
    check_writable(out, "--out")
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)

    parts, results = [Heading("Weight compander: a report", 1), _header(settings)], []
    for dataset, group in itertools.groupby(settings, key=lambda s: s.dataset):
        rows = result_rows(list(group))
        parts += [Heading(f"Test accuracy on {dataset}"), results_table(rows)]
        results += rows
    parts += [Paragraph(" ".join(EXPLANATION.split())), Paragraph("Errata in the paper: " + " ".join(paper.ERRATA))]
    parts += _data_that_differ(settings) + _other_variants(settings) + _settings_that_differ(settings)
    unfinished = [f"{run.path}: {run.failure or 'unfinished'}" for run in runs if not run.summary]
    parts += _bullets("Runs without a result", unfinished)
    repeats = [str(run.path) for setting in settings for run in finished_and_repeats(setting.runs)[1]]
    parts += _bullets("Omitted: the same config and seed as another run", repeats)
    reasons = [f"{path}: {why}" for path, why in sorted(omitted.items())]
    parts += _bullets("Omitted: links, and folders that cannot be read", reasons)
    parts += [Heading("Figures"), _figure_2(out)]
    for setting in settings:
        parts += _figures(setting, out)
    parts.append(Files("All numbers as CSV:", {"results.csv": "the tables", "runs.csv": "one row for a run"}))

    write_csv(out / "results.csv", Row._fields, results)
    _write_runs(out / "runs.csv", settings)
    for name, text in (("report.md", as_markdown(parts)), ("report.html", as_html(parts, out))):
        write_text(out / name, text.encode(errors="backslashreplace").decode())  # of paths that are not UTF-8
    return out / "report.md"


def _header(settings):
    runs = [run for setting in settings for run in setting.runs]
    finished = [run for run in runs if run.summary]
    failed = sum(run.failure is not None for run in runs)
    counts = Counter((s.dataset, s.model, r.method) for s in settings for r in finished_and_repeats(s.runs)[0])
    versions = sorted({f"jax {r.summary['jax_version']} on {r.summary['device']}" for r in finished})
    return Bullets(
        [
            f"runs: {len(runs)}, of them {len(finished)} finished, {failed} failed, "
            f"{len(runs) - len(finished) - failed} unfinished",
            *(f"{', '.join(key)}: n = {n}" for key, n in sorted(counts.items())),
            f"made by wcjax {wcjax.__version__}; trained with {'; '.join(versions) or 'nothing yet'}",
        ]
    )


def _data_that_differ(settings):
    runs = defaultdict(list)  # {'cifar10-data-1': runs}
    for setting in settings:
        runs[setting.dataset] += setting.runs
    tables = {}
    for name, datasets in itertools.groupby(sorted(runs), lambda dataset: runs[dataset][0].config["dataset"]):
        datasets = list(datasets)
        examples = [next((run for run in runs[dataset] if run.data), runs[dataset][0]) for dataset in datasets]
        tables[name] = datasets, data_differences(examples), [len(runs[dataset]) for dataset in datasets]
    explanation = "Runs on different data of one name are not compared. From the runs' `data.json`; '-' is not known."
    return _that_differ("Data that differ", explanation, tables)


def _settings_that_differ(settings):
    tables = {}
    for (dataset, model), group in itertools.groupby(settings, key=lambda s: (s.dataset, s.model)):
        group = list(group)
        counts = [len(setting.runs) for setting in group]
        tables[f"{model} on {dataset}"] = [setting.letter for setting in group], differences(group), counts
    explanation = (
        "Runs whose configs differ in more than Ψ, learning rate, decay, label smoothing and seed are not compared."
    )
    return _that_differ("Settings that differ", explanation, tables)


def _that_differ(heading, explanation, tables):
    """A section with those tables that have several columns: {name: (columns, {key: values}, numbers of runs)}."""
    parts = []
    for name, (columns, rows, counts) in tables.items():
        if len(columns) > 1:
            lines = [*([key, *values] for key, values in rows.items()), ["runs", *map(str, counts)]]
            parts += [Paragraph(f"{name}:"), Table(["key", *columns], lines)]
    return [Heading(heading), Paragraph(explanation), *parts] if parts else []


def _other_variants(settings):
    lines = []
    for setting in settings:
        runs, _ = finished_and_repeats(setting.runs)
        in_table = {chosen[0].variant for chosen in chosen_runs(runs)}
        for variant in sorted({run.variant for run in runs} - in_table):
            members = [run for run in runs if run.variant == variant]
            lines.append([setting.name, *variant, str(len(members)), f"{100 * val_accuracy(members):.2f}"])
    table = Table(["network", "method", "Ψ", "learning rate, decay", "n", "val accuracy (%)"], lines)
    return [Heading("Other variants that were run"), table] if lines else []


def _bullets(heading, items):
    return [Heading(heading), Bullets(items)] if items else []


def _figure_2(out):
    plots.plot_psi(out / "psi.png", Arctan(), Arsinh(), Erf(), PowerProp())
    return Picture("psi.png", "Ψ and Ψ′ for a = b = 1 and α = 2 (the paper's figure 2). Dotted: the bound of arctan.")


def _figures(setting: Setting, out) -> list:
    """Writes the figures of one setting and returns their parts. They show the runs that the table shows."""
    variants = chosen_runs(setting.runs)
    runs = dict(zip(labels(variants), variants, strict=True))
    stem = "_".join(x for x in (setting.dataset, setting.model, setting.letter) if x)
    figures = FigureFiles(setting.name, out / stem)
    kinds = (_curves, _weight_history, _robustness, _layers, _pairs)
    parts = [part for write in kinds for part in write(figures, runs)]
    return [Heading(figures.title, 3), *parts] if parts else []


class FigureFiles(NamedTuple):
    """Where the figures of a setting are, and what they are called."""

    title: str  # of the setting
    stem: pathlib.Path  # what the paths of the files begin with

    def file(self, kind: str) -> pathlib.Path:
        return self.stem.with_name(f"{self.stem.name}_{kind}.png")


def _curves(figures, runs):
    curves = {
        f"{label} (n = {len(members)})": numbers
        for label, members in runs.items()
        if (numbers := history.curves(members))
    }
    if not curves:
        return []
    title = f"{figures.title}: mean over n runs; thin lines: single runs"
    path = plots.plot_curves(figures.file("curves"), curves, title)
    caption = "Loss and accuracy on the training images (while the weights change) and on val; learning rate."
    return [Picture(path.name, caption)]


def _weight_history(figures, runs):
    histories = {
        f"{run.method}\n{run.reparam}, {run.tuning}, seed {run.config['seed']}": weights
        for run in map(_first_seed, runs.values())
        if (weights := history.first_layer_history(run))
    }
    if not histories:
        return []
    title = f"{figures.title}: weights of the first layer, one run each (n = 1)"
    over_epochs = plots.plot_weight_history(figures.file("history"), histories, title)
    caption = "Distribution of the first layer's weights over the epochs (figure 3). Dashed: the bound of Ψ."
    near_zero = plots.plot_near_zero(figures.file("near_zero"), histories, title + ", after the last epoch")
    caption_near_zero = "The first layer's weights around zero after training (figure 4)."
    return [Picture(over_epochs.name, caption), Picture(near_zero.name, caption_near_zero)]


def _robustness(figures, runs):
    measurements = robustness.read_measurements([run for members in runs.values() for run in members])
    if not measurements:
        return []
    curves = {label: x for label, members in runs.items() if (x := robustness.curves(members, measurements))}
    title = f"{figures.title}: test accuracy after a change (%)"
    path = plots.plot_robustness(figures.file("robustness"), curves, title)
    caption = (
        "Test accuracy after changes of the weights and of the images, which `wcjax.analysis.robustness` measures. "
        "Lines: means over runs. Bands: 95 % intervals of the mean."
    )
    text = "Means over the levels of a change. Lost: compared with the accuracy without a change."
    table_of_changes = robustness.change_table(runs, baseline_of([*runs.values()]), measurements)
    return [Picture(path.name, caption), Paragraph(text), table_of_changes]


def _layers(figures, runs):
    layers = history.final_statistics({f"{label} (n = {len(members)})": members for label, members in runs.items()})
    if not layers:
        return []
    title = f"{figures.title}: weights after the last epoch, mean over n runs"
    path = plots.plot_layers(figures.file("layers"), layers, title)
    caption = "Share of near-zero weights, by two measures, and kurtosis of each layer's w after training."
    return [Picture(path.name, caption)]


def _pairs(figures, runs):
    parts = []
    for label, run in zip(runs, map(_first_seed, runs.values()), strict=True):
        if pair_history := history.pair_history(run):
            file = figures.file("_".join([*re.findall(r"[\w.]+", label), "pairs"]))
            title = f"{figures.title}: a and b of {label}, seed {run.config['seed']} (n = 1)"
            plots.plot_pairs(file, *pair_history, title)
            parts.append(Picture(file.name, f"The learned a and b after each epoch, {label}, from input to output."))
    return parts


def _first_seed(runs):
    return min(runs, key=lambda run: run.config["seed"])


def _write_runs(path, settings):
    names = ("best_epoch", "best_val_accuracy", "test_accuracy", "test_loss", "epochs", "images_per_second")
    names += ("train_seconds", "num_parameters", "device", "jax_version")
    rows = []
    for setting in settings:
        for run in setting.runs:
            place = (run.path, setting.dataset, setting.model, setting.letter, *run.variant, run.config["seed"])
            state = "finished" if run.summary else run.failure or "unfinished"
            rows.append((*place, state, *((run.summary or {}).get(name) for name in names)))
    write_csv(path, ("run", "dataset", "model", "setting", "method", "psi", "tuning", "seed", "state", *names), rows)


if __name__ == "__main__":
    sys.exit(main())
