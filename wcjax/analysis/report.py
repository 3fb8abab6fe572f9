"""Writes a report on runs: the paper's tables next to the results, and its figures, as Markdown, CSV and PNG.

python -m wcjax.analysis.report RUNS [RUNS ...] --out DIR
"""

import argparse
import itertools
import pathlib
import sys
from collections import Counter, defaultdict

import wcjax
from wcjax.analysis import course, paper, plots
from wcjax.analysis.runs import Setting, data_differences, differences, find_runs, search, settings, without_repeats
from wcjax.analysis.tables import Row, chosen_runs, markdown, setting_letters, table, write_csv
from wcjax.errors import command, program
from wcjax.files import check_writable, folder_path, saving, write_text
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp
from wcjax.training import mesh

EXPLANATION = """Accuracies are those of the test split, at the epoch that is best on val. n: the number of finished
runs, each with another seed, which mean ± standard deviation are taken over. Difference: in percentage points, with
Welch's 95 % interval. p: two-sided permutation test of that difference, exact if that is feasible. p (Holm): corrected
for all tests of the table. An empty cell: too few runs. Paper: tables II to VII of arXiv 2306.16993. If a method was
run with several Ψ, the one with the most runs is shown, and of equals the best on val. Plain tuned: the plain network
with another learning rate and decay than all other methods, chosen among several in the same way as a Ψ."""


@command
def main(argv=None):
    parser = argparse.ArgumentParser(program("wcjax.analysis.report"), description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain run folders")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the report, DIR/report.md, and its files"
    )
    args = parser.parse_args(argv)
    mesh.devices()  # the plots of Ψ need a device
    print(write_report(args.runs, args.out))


def write_report(folders, out) -> pathlib.Path:
    """Writes report.md, results.csv, runs.csv and the figures to the folder `out`; returns the path of report.md.

    folders: run folders, or folders that contain them. Raises InputError if there are no runs, or a file is damaged.
    """
    runs = find_runs(folders)
    groups = settings(runs)
    out = folder_path(out, "--out")
    check_writable(out, "--out")
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)

    parts, results = ["# Weight compander: a report", _header(groups)], []
    for dataset, members in itertools.groupby(groups, key=lambda s: s.dataset):
        members = list(members)
        rows = table(members)
        to_tuned = [row for row in table(members, baseline="plain tuned") if row.difference is not None]
        parts += [f"## Test accuracy on {dataset}", markdown(rows)]
        parts += ["The same runs against the tuned plain network:", markdown(to_tuned)] if to_tuned else []
        results += rows + to_tuned
    parts += [" ".join(EXPLANATION.split()), "Slips of the paper: " + " ".join(paper.SLIPS)]
    parts += _data_that_differ(groups) + _other_psis(groups) + _settings_that_differ(groups)
    parts += _unfinished(runs) + _repeats(groups) + _omitted(folders)
    parts += ["## Figures", _figure_2(out)]
    for letter, setting in zip(setting_letters(groups), groups, strict=True):
        parts += _figures(setting, letter, out)
    parts.append(
        "All numbers as CSV: [results.csv](results.csv) (the tables), [runs.csv](runs.csv) (one row for a run)."
    )

    write_csv(out / "results.csv", Row._fields, results)
    _write_runs(out / "runs.csv", groups)
    text = "\n\n".join(parts) + "\n"
    write_text(out / "report.md", text.encode(errors="backslashreplace").decode())  # of paths that are not UTF-8
    return out / "report.md"


def _header(groups):
    runs = [run for setting in groups for run in setting.runs]
    finished = [run for run in runs if run.summary]
    failed = sum(run.failure is not None for run in runs)
    counts = Counter((s.dataset, s.model, run.method) for s in groups for run in s.runs if run.summary)
    versions = sorted({f"jax {r.summary['jax_version']} on {r.summary['device']}" for r in finished})
    return "\n".join(
        [
            f"- runs: {len(runs)}, of them {len(finished)} finished, {failed} failed, "
            f"{len(runs) - len(finished) - failed} unfinished",
            *(f"- {', '.join(key)}: n = {n}" for key, n in sorted(counts.items())),
            f"- made by wcjax {wcjax.__version__}; trained with {'; '.join(versions) or 'nothing yet'}",
        ]
    )


def _data_that_differ(groups):
    runs = defaultdict(list)  # {'cifar10-data-1': runs}
    for setting in groups:
        runs[setting.dataset] += setting.runs
    tables = {}
    for name, datasets in itertools.groupby(sorted(runs), lambda dataset: runs[dataset][0].config["dataset"]):
        datasets = list(datasets)
        first = [next((run for run in runs[dataset] if run.data), runs[dataset][0]) for dataset in datasets]
        tables[name] = datasets, data_differences(first), [len(runs[dataset]) for dataset in datasets]
    explanation = "Runs on different data of one name are not compared. From the runs' `data.json`; '-' is not known."
    return _that_differ("## Data that differ", explanation, tables)


def _settings_that_differ(groups):
    tables = {}
    for (dataset, model), members in itertools.groupby(groups, key=lambda s: (s.dataset, s.model)):
        members = list(members)
        counts = [len(setting.runs) for setting in members]
        tables[f"{model} on {dataset}"] = setting_letters(members), differences(members), counts
    explanation = "Runs whose configs differ in more than Ψ and seed (and in plain tuned's two keys) are not compared."
    return _that_differ("## Settings that differ", explanation, tables)


def _that_differ(heading, explanation, tables):
    """A section with those of tables, {name: (columns, {key: values}, numbers of runs)}, that have several columns."""
    parts = []
    for name, (columns, rows, counts) in tables.items():
        if len(columns) > 1:
            lines = [f"| key | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
            lines += [f"| {key} | {' | '.join(values)} |" for key, values in rows.items()]
            lines.append(f"| runs | {' | '.join(map(str, counts))} |")
            parts += [f"{name}:", "\n".join(lines)]
    return [heading, explanation, *parts] if parts else []


def _other_psis(groups):
    lines = []
    for letter, setting in zip(setting_letters(groups), groups, strict=True):
        runs = [run for run in setting.runs if run.summary]
        in_table = {chosen[0].reparam for chosen in chosen_runs(runs).values()}
        for reparam in sorted({run.reparam for run in runs} - in_table):
            val = [run.summary["best_val_accuracy"] for run in runs if run.reparam == reparam]
            lines.append(f"| {_name(setting, letter)} | {reparam} | {len(val)} | {100 * sum(val) / len(val):.2f} |")
    head = ["| network | Ψ | n | val accuracy (%) |", "| --- | --- | --- | --- |"]
    return ["## Other Ψ, and other tunings of plain, that were run", "\n".join(head + lines)] if lines else []


def _unfinished(runs):
    lines = [f"- {run.path}: {run.failure or 'unfinished'}" for run in runs if not run.summary]
    return ["## Runs without a result", "\n".join(lines)] if lines else []


def _repeats(groups):
    repeats = [run for setting in groups for run in without_repeats([r for r in setting.runs if r.summary])[1]]
    lines = [f"- {run.path}" for run in repeats]
    return ["## Omitted: the same config and seed as another run", "\n".join(lines)] if lines else []


def _omitted(folders):
    lines = [f"- {path}: {why}" for path, why in sorted(search(folders)[1].items())]
    return ["## Omitted: links and unreadable folders", "\n".join(lines)] if lines else []


def _figure_2(out):
    plots.plot_psi(out / "psi.png", Arctan(), Arsinh(), Erf(), PowerProp())
    return _image("psi.png", "Ψ and Ψ′ for a = b = 1 and α = 2 (the paper's figure 2). Dotted: the bound of arctan.")


def _figures(setting: Setting, letter: str, out) -> list[str]:
    """Writes the figures of one setting and returns their Markdown. They show the runs that the table shows."""
    name = _name(setting, letter)
    stem = "_".join(x for x in (setting.dataset, setting.model, letter) if x)
    order = {method: i for i, method in enumerate(paper.METHODS)}
    chosen = dict(sorted(chosen_runs(setting.runs).items(), key=lambda item: order.get(item[0], len(order))))
    one_seed = {method: min(runs, key=lambda run: run.config["seed"]) for method, runs in chosen.items()}
    parts = []

    courses = {
        f"{method}\n{run.reparam}, seed {run.config['seed']}": weights
        for method, run in one_seed.items()
        if (weights := course.first_layer_course(run))
    }
    if courses:
        title = f"{name}: weights of the first layer, one run each (n = 1)"
        plots.plot_course(out / f"{stem}_course.png", courses, title)
        caption = "Distribution of the first layer's weights over the epochs (figure 3). Dashed: the bound of Ψ."
        parts.append(_image(f"{stem}_course.png", caption))
        plots.plot_near_zero(out / f"{stem}_near_zero.png", courses, title + ", after the last epoch")
        caption = "The first layer's weights around zero after training (figure 4)."
        parts.append(_image(f"{stem}_near_zero.png", caption))

    layers = {
        f"{method} (n = {len(runs)})": numbers
        for method, runs in chosen.items()
        if (numbers := course.last_layers(runs))
    }
    if layers:
        plots.plot_layers(out / f"{stem}_layers.png", layers, f"{name}: weights after the last epoch, mean over n runs")
        caption = "Share of near-zero weights, by two measures, and kurtosis of each layer's w after training."
        parts.append(_image(f"{stem}_layers.png", caption))

    for method, run in one_seed.items():
        if pairs := course.learned_pairs(run):
            file = f"{stem}_{run.config['reparam']['name']}_{run.config['reparam']['learn']}_pairs.png"
            title = f"{name}: a and b of {method}, seed {run.config['seed']} (n = 1)"
            plots.plot_pairs(out / file, *pairs, title)
            parts.append(_image(file, f"The learned a and b after each epoch, {method}, from input to output."))
    return [f"### {name}", *parts] if parts else []


def _name(setting, letter):
    return f"{setting.model} on {setting.dataset}" + (f" ({letter})" if letter else "")


def _image(file, caption):
    return f"![{caption}]({file})\n\n{caption}"


def _write_runs(path, groups):
    names = ("best_epoch", "best_val_accuracy", "test_accuracy", "test_loss", "epochs", "images_per_second")
    names += ("train_seconds", "num_parameters", "device", "jax_version")
    rows = []
    for letter, setting in zip(setting_letters(groups), groups, strict=True):
        for run in setting.runs:
            place = (run.path, setting.dataset, setting.model, letter, run.method, run.reparam, run.config["seed"])
            state = "finished" if run.summary else run.failure or "unfinished"
            rows.append((*place, state, *((run.summary or {}).get(name) for name in names)))
    write_csv(path, ("run", "dataset", "model", "setting", "method", "psi", "seed", "state", *names), rows)


if __name__ == "__main__":
    sys.exit(main())
