"""Prints a Markdown table of finished runs, and with --png plots their weights.

python -m wcjax.analysis.compare RUN [RUN ...] [--png FILE]
"""

import argparse
import collections
import json
import pathlib
import sys

import numpy as np

from wcjax.analysis.document import Table
from wcjax.analysis.runs import RunRecord, data_differences, read_run
from wcjax.commands import command, program
from wcjax.errors import InputError
from wcjax.system.devices import check_devices
from wcjax.system.paths import check_writable, local_path


@command
def main(argv=None):
    parser = argparse.ArgumentParser(program("wcjax.analysis.compare"), description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--png", metavar="FILE.png", help="draw the weights of all layers in this file")
    args = parser.parse_args(argv)
    folders = [local_path(run, "RUN") for run in args.runs]
    png = None if args.png is None else picture_path(args.png)
    print(comparison_markdown(folders))
    if png:
        from wcjax.analysis.plots import plot_weights

        weights = {f"{folder}: {finished_run(folder).reparam}": all_weights(folder) for folder in folders}
        path = plot_weights(png, weights, "Weights of all layers after training")
        print(f"\nWeights of all layers: {path}")


def picture_path(path) -> pathlib.Path:
    """The path of --png. Raises InputError if no PNG can be written there."""
    path = local_path(path, "--png")
    if path.is_dir() or path.suffix.lower() != ".png":
        kind = "a folder" if path.is_dir() else f"a file with the ending {path.suffix!r}"
        raise InputError(f"--png {path} is {kind}; the picture is a PNG: give a FILE.png.")
    check_writable(path.parent, "--png")
    return path


def comparison_markdown(folders) -> str:
    """Markdown table of the accuracy and time of finished runs, one row for each folder.

    Runs on different data get a table each, under a line that says how the data differ.
    """
    by_data = collections.defaultdict(list)
    for run in map(finished_run, folders):
        by_data[run.config["dataset"], json.dumps(run.data)].append(run)
    if len(by_data) == 1:
        (runs,) = by_data.values()
        return _table(runs).markdown()
    differing = data_differences([runs[0] for runs in by_data.values()])
    parts = []
    for i, ((dataset, _), runs) in enumerate(by_data.items()):
        heading = ", ".join([dataset, *(f"{key} {values[i]}" for key, values in differing.items())])
        parts += [f"{heading}:", _table(runs).markdown()]
    return "\n\n".join(parts)


def finished_run(folder) -> RunRecord:
    """The run in a folder. Raises InputError if it is not finished."""
    run = read_run(folder)
    if run.summary is None:
        raise InputError(f"{folder} holds no summary.json: give the folder of a finished run.")
    return run


def _table(runs):
    columns = ["run", "model", "Ψ", "val accuracy", "test accuracy", "best epoch", "training", "images/s"]
    rows = [
        [
            str(run.path),
            run.config["model"],
            run.reparam,
            f"{run.summary['best_val_accuracy']:.2%}",
            f"{run.summary['test_accuracy']:.2%}",
            f"{run.summary['best_epoch']} of {run.summary['epochs']}",
            f"{run.summary['train_seconds']:.0f} s",
            f"{run.summary['images_per_second']:,.0f}",
        ]
        for run in runs
    ]
    return Table(columns, rows)


def all_weights(folder) -> np.ndarray:
    """The weights of all layers of the folded network of a run, in one row: (n,)."""
    from wcjax.training import load_folded, weights  # here, because Orbax takes seconds

    check_devices()
    layers = weights.layer_weights(load_folded(folder)[1]["params"], plain=True)
    return np.concatenate([np.ravel(w) for w in layers.values()])


if __name__ == "__main__":
    sys.exit(main())
