"""What changes over the epochs of a run, from its metrics.jsonl and weights.jsonl: loss, weights, learned a and b."""

import math
import re
from typing import NamedTuple

import numpy as np

from wcjax import run_folder
from wcjax.analysis.runs import RunRecord
from wcjax.config import check_config
from wcjax.config.build import make_psi
from wcjax.errors import InputError
from wcjax.run_folder.schema import EDGES, LAYER_STATISTICS, NUMBER

CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate")  # fields of metrics.jsonl


class WeightHistory(NamedTuple):
    """The weights of one layer over the epochs of a run."""

    epochs: np.ndarray  # int (t,), 0 is before training
    counts: np.ndarray  # int (t, len(EDGES) + 1), as in weights.jsonl
    largest: np.ndarray  # |w|, (t,)
    bound: float  # of |w| under Ψ; inf if there is none or if it is learned

    def density(self, bins) -> np.ndarray:
        """Share of the weights per unit of w in bins (m + 1 rising edges), (t, m); uniform within a bin of EDGES."""
        below = np.cumsum(self.counts[:, :-1], axis=1) / self.counts.sum(axis=1, keepdims=True)
        return np.diff([np.interp(bins, EDGES, shares) for shares in below], axis=1) / np.diff(bins)


def first_layer_history(run: RunRecord) -> WeightHistory | None:
    """The weights of the first layer of a run; None if the run kept no weights."""
    lines = run_folder.read_lines(run.path, "weights.jsonl")
    if not lines:
        return None
    layer = layers_in_order(lines[0]["layers"])[0]
    psi = make_psi(check_config(run.config))
    fixed = run.config["reparam"]["learn"] == "none" and hasattr(psi, "bound")
    return WeightHistory(
        epochs=np.array([line["epoch"] for line in lines]),
        counts=np.array([line["layers"][layer]["histogram"] for line in lines]),
        largest=np.array([line["layers"][layer]["max"] for line in lines]),
        bound=float(psi.bound) if fixed else math.inf,
    )


def curves(runs: list[RunRecord]) -> dict[str, np.ndarray] | None:
    """{'epoch': (t,), 'train_loss': (runs, t), ... for all of CURVES} of several runs; None if there are no epochs.

    A number that a run lacks, or that is too large for a plot, is nan.
    """
    by_epoch = [{line["epoch"]: line for line in run_folder.read_lines(run.path)} for run in runs]
    epochs = sorted(set().union(*by_epoch))
    if not epochs:
        return None

    def number(line, name):
        return float(line[name]) if NUMBER.accepts(line.get(name)) else math.nan

    return {"epoch": np.array(epochs)} | {
        name: np.array([[number(lines.get(epoch, {}), name) for epoch in epochs] for lines in by_epoch])
        for name in CURVES
    }


def layers_in_order(names) -> list[str]:
    """Layers from input to output: 'stem' first, 'head' last, numbers in names by their value."""
    natural_order = lambda name: [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in re.split(r"(\d+)", name)]
    return sorted(names, key=lambda name: (name != "stem", name == "head", natural_order(name)))


def final_statistics(variants) -> dict[str, dict[str, dict]]:
    """{label: {layer: {statistic: mean over runs}}} after the last epoch, layers from input to output.

    variants: {label: runs}, all of one model. Those without a run that kept weights are omitted.
    """
    means, first = {}, None
    for label, runs in variants.items():
        lines = {run.path: run_folder.read_lines(run.path, "weights.jsonl") for run in runs}
        ends = {path: lines[-1]["layers"] for path, lines in lines.items() if lines}
        for path, layers in ends.items():
            first = first or (path, layers)
            if layers.keys() != first[1].keys():
                raise InputError(
                    f"{path} and {first[0]} have the same model, but other layers in weights.jsonl; remove one."
                )
        if ends:
            means[label] = {
                layer: {name: float(np.mean([end[layer][name] for end in ends.values()])) for name in LAYER_STATISTICS}
                for layer in layers_in_order(first[1])
            }
    return means


def pair_history(run: RunRecord) -> tuple[list[int], dict[str, dict[str, list]]] | None:
    """(epochs, {layer: {'a': [value after each epoch], 'b': ...}}) of a run that learned them, else None.

    The value of a layer that has a pair for each channel is a list of quantiles.
    """
    lines = [line for line in run_folder.read_lines(run.path) if "pairs" in line]
    if not lines:
        return None
    layers = layers_in_order(lines[0]["pairs"])
    pairs = {layer: {x: [line["pairs"][layer][x] for line in lines] for x in "ab"} for layer in layers}
    return [line["epoch"] for line in lines], pairs
