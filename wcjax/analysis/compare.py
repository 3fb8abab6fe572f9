"""Finished runs side by side: a Markdown table, and a plot of the weights of their first layer.

python -m wcjax.analysis.compare RUN [RUN ...] [--png FILE]
"""

import argparse
import json
import pathlib
import sys

from wcjax.errors import InputError
from wcjax.training.checkpoint import load_tree


def read_summary(run) -> dict:
    """config.json and summary.json of a finished run, as {'config': ..., 'summary': ...}."""
    found = {}
    for name in ("config", "summary"):
        path = pathlib.Path(run, f"{name}.json")
        if not path.exists():
            raise InputError(f"{run} holds no {name}.json: give the folder of a finished run.")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table(runs) -> str:
    """Markdown table of the accuracy and time of finished runs, one row for each folder."""
    lines = [
        "| run | model | Ψ | val accuracy | test accuracy | best epoch | training | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        config, summary = read_summary(run).values()
        lines.append(
            f"| {run} | {config['model']} | {describe_reparam(config['reparam'])} "
            f"| {summary['best_val_accuracy']:.2%} | {summary['test_accuracy']:.2%} "
            f"| {summary['best_epoch']} of {summary['epochs']} | {summary['train_seconds']:.0f} s "
            f"| {summary['images_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def describe_reparam(reparam: dict) -> str:
    """'arctan(a=1, b=0.6)' for the reparam of a config."""
    name = reparam["name"]
    if name in ("arctan", "arsinh", "erf"):
        learned = "" if reparam["learn"] == "none" else f", learned {reparam['learn']}"
        return f"{name}(a={reparam['a']:g}, b={reparam['b']:g}{learned})"
    return f"powerprop(α={reparam['alpha']:g})" if name == "powerprop" else name


def _psi_of(run) -> str:
    return describe_reparam(read_summary(run)["config"]["reparam"])


def first_layer(run):
    """Kernel of the first layer of the folded network of a run: (height, width, channels, features)."""
    return load_tree(pathlib.Path(run, "folded"))["params"]["stem"]["kernel"]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--png", help="where to plot the weights of the first layer")
    args = parser.parse_args(argv)
    try:
        print(table(args.runs))
        if args.png:
            from wcjax.analysis.plots import plot_weights

            weights = {f"{run}: {_psi_of(run)}": first_layer(run) for run in args.runs}
            path = plot_weights(args.png, weights, "Weights of the first layer after training")
            print(f"\nWeights of the first layer: {path}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
