"""Plots. Each function writes one PNG and returns its path."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping

import numpy as np
import scipy.stats
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wcjax.analysis.history import WeightHistory
from wcjax.reparam import Arctan, PowerProp, Scaled
from wcjax.system.files import saving

# Okabe and Ito's colours, which people with red-green colour blindness can tell apart.
# 9 colours with 4 lines or 8 markers: no pair occurs twice in the first 36.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#7F7F7F")
LINES = ("-", "--", "-.", ":")


def _styled(items):
    """Pairs of an item and the colour and line style that matplotlib draws it with."""
    for item, colour, line in zip(items, itertools.cycle(COLOURS), itertools.cycle(LINES)):
        yield item, {"color": colour, "linestyle": line}


def plot_psi(path, *psis) -> pathlib.Path:
    """Ψ and Ψ′ over v in (−5, 5), next to the identity: figure 2 of the paper, and docs/psi.png.

    psis: by default Arctan(). The bounds of the first one are drawn too.
    """
    psis = psis or (Arctan(),)
    v = np.linspace(-5, 5, 501, dtype=np.float32)
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for psi, style in _styled(psis):
        left.plot(v, psi(v), label=f"Ψ(v) = {_formula(psi)}", **style)
        right.plot(v, psi.derivative(v), label=f"Ψ′(v) of {type(psi).__name__}", **style)
    left.plot(v, v, color="0.6", linewidth=1, label="plain: w = v")
    for sign in (-1, 1):
        left.axhline(sign * psis[0].bound, color="0.6", linestyle=":", linewidth=1)
    left.set(xlabel="v (what the optimizer moves)", ylabel="w (what the network sees)", ylim=(-2, 2))
    left.legend(loc="upper left", fontsize=8 if len(psis) == 1 else 6)
    right.plot(v, np.ones_like(v), color="0.6", linewidth=1, label="plain: 1")
    highest = max(float(np.max(psi.derivative(v[abs(v) < 1]))) for psi in psis)
    right.set(xlabel="v", ylabel="dw/dv", ylim=(0, 1.2 * highest))
    right.legend(loc="upper right", fontsize=8 if len(psis) == 1 else 6)
    return _save(figure, path)


def plot_step_size(path, *psis) -> pathlib.Path:
    """How far a small step moves each weight compared with the plain network, Ψ′(v)² over w: docs/step_size.png."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for psi, style in _styled(psis):
        reach = min(psi.bound, 1.6)
        w = np.linspace(-reach, reach, 501, dtype=np.float32)
        label = ", ".join(f"{field.name} = {getattr(psi, field.name):g}" for field in dataclasses.fields(psi))
        axes.plot(w, np.square(psi.slope(w)), label=label, **style)
    axes.axhline(1, color="0.6", linewidth=1, label="plain")
    axes.set(xlabel="w", ylabel="step of w / plain step", yscale="log", ylim=(1e-3, 10))
    axes.legend(loc="lower center", fontsize=8)
    return _save(figure, path)


def _formula(psi):
    if isinstance(psi, PowerProp):
        return f"v·|v|^{psi.alpha - 1:g}"
    if isinstance(psi, Scaled):
        return f"{psi.a:g}·{type(psi).__name__.lower()}(v / {psi.b:g})"
    return repr(psi)


def plot_curves(path, curves: Mapping[str, Mapping[str, np.ndarray]], title: str) -> pathlib.Path:
    """Loss, accuracy and learning rate over the epochs. curves: {label: from `history.curves`}.

    The thick line of a label is the mean of its runs, which are thin lines.
    """
    panels = {
        "train_loss": "loss on training images",
        "val_loss": "loss on val",
        "train_accuracy": "accuracy on training images (%)",
        "val_accuracy": "accuracy on val (%)",
        "learning_rate": "learning rate",
    }
    figure = Figure(figsize=(8, 9), layout="constrained")
    all_axes = figure.subplots(3, 2, sharex=True, sharey="row").ravel()
    for axes, (name, text) in zip(all_axes, panels.items(), strict=False):
        axes.set_yscale("linear" if "accuracy" in name else "log")
        for numbers, style in _styled(curves.values()):
            # In float32 the mean of equal numbers is that number. A panel that is 1e-16 high would be a warning.
            y = np.float32([*numbers[name], numbers[name].mean(axis=0)])
            *runs, mean = y * 100 if "accuracy" in name else np.where(y > 0, y, np.nan)
            if len(runs) > 1:
                axes.plot(numbers["epoch"], np.transpose(runs), color=style["color"], linewidth=0.5, alpha=0.5)
            axes.plot(numbers["epoch"], mean, **style, linewidth=1.5)
        axes.set_title(text, fontsize=9)
        axes.grid(color="0.9")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=True)
        axes.set(xlabel="epoch")
    all_axes[-1].axis("off")
    handles = [Line2D([], [], label=label, **style) for label, style in _styled(curves)]
    all_axes[-1].legend(handles=handles, loc="center", fontsize=8)
    return _save(figure, path, title)


def plot_robustness(path, curves: Mapping[str, Mapping[str, tuple[list, np.ndarray]]], title: str) -> pathlib.Path:
    """Accuracy over the level of each change. curves: {label: from `robustness.curves`}.

    A line is the mean of its runs, and the band its 95 % interval by Student's t.
    """
    names = list(dict.fromkeys(name for changes in curves.values() for name in changes))
    figure = Figure(figsize=(9, 3 * math.ceil(len(names) / 3) + 0.6), layout="constrained")
    all_axes = figure.subplots(math.ceil(len(names) / 3), 3, sharey=True, squeeze=False).ravel()
    for axes in all_axes[len(names) :]:
        axes.axis("off")
    for axes, name in zip(all_axes, names, strict=False):
        for (label, changes), style in _styled(curves.items()):
            if name not in changes:
                continue
            levels, accuracies = changes[name]
            place, mean = np.arange(1 + len(levels)), accuracies.mean(axis=0)
            axes.plot(place, mean, **style, label=f"{label} (n = {len(accuracies)})")
            if len(accuracies) > 1:
                half = scipy.stats.t.ppf(0.975, len(accuracies) - 1) * scipy.stats.sem(accuracies, axis=0)
                axes.fill_between(place, mean - half, mean + half, color=style["color"], alpha=0.2, linewidth=0)
            axes.set_xticks(place, ["none", *(f"{level:g}" for level in levels)])
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.grid(color="0.9")
    lines = {line.get_label(): line for axes in all_axes for line in axes.get_lines()}  # a run may lack some changes
    figure.legend(handles=lines.values(), loc="outside lower center", ncols=min(3, len(lines)), fontsize=8)
    return _save(figure, path, title)


def plot_weight_history(path, histories: Mapping[str, WeightHistory], title: str) -> pathlib.Path:
    """Distribution of the weights of one layer over the epochs, a heat map for each run: figure 3 of the paper."""
    bounds = [history.bound for history in histories.values() if math.isfinite(history.bound)]
    reach = 1.1 * max([*bounds, *(np.max(history.largest) for history in histories.values())]) or 1
    bins = np.linspace(-reach, reach, 41)
    densities = {label: history.density(bins) for label, history in histories.items()}
    highest = max(density.max() for density in densities.values()) or 1
    columns = min(4, len(histories))
    rows = math.ceil(len(histories) / columns)
    figure = Figure(figsize=(max(7, 1.5 + 3 * columns), 0.5 + 3 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (label, history) in zip(all_axes, histories.items(), strict=False):
        density = np.where(densities[label] > 0, densities[label], np.nan)  # empty bins stay white
        sides = np.append(history.epochs - 0.5, history.epochs[-1] + 0.5)
        norm = LogNorm(vmin=highest / 1e3, vmax=highest)
        mesh = axes.pcolormesh(sides, bins, density.T, norm=norm, cmap="viridis")
        if math.isfinite(history.bound):
            for sign in (-1, 1):
                axes.axhline(sign * history.bound, color=COLOURS[1], linestyle="--", linewidth=1)
        axes.set(xlabel="epoch (0: before training)", ylabel="w", ylim=(-reach, reach))
        axes.set_title(label, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in all_axes[len(histories) :]:
        axes.remove()
    figure.colorbar(mesh, ax=list(all_axes[: len(histories)]), label="density (1 / unit of w)")
    return _save(figure, path, title)


def plot_near_zero(path, histories: Mapping[str, WeightHistory], title: str) -> pathlib.Path:
    """Distribution after the last epoch for |w| < 0.1: figure 4 of the paper."""
    bins = np.linspace(-0.1, 0.1, 21)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for (label, history), style in _styled(histories.items()):
        axes.stairs(history.density(bins)[-1], bins, label=label, **style, linewidth=1.5)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set(xlabel="w", ylabel="density (1 / unit of w)")
    figure.legend(fontsize=7, loc="outside right center")
    return _save(figure, path, title)


def plot_layers(path, layers: Mapping[str, Mapping[str, Mapping]], title: str) -> pathlib.Path:
    """Share of near-zero weights and kurtosis of each layer. layers: from `history.final_statistics`."""
    panels = {
        "below_0.01": "share of |w| < 0.01",
        "below_tenth_of_std": "share of |w| < 0.1·std",
        "kurtosis": "excess kurtosis (normal: 0)",
    }
    names = list(next(iter(layers.values())))
    figure = Figure(figsize=(max(7, 1.5 + 0.25 * len(names)), 7), layout="constrained")
    for axes, (statistic, text) in zip(figure.subplots(3, 1, sharex=True), panels.items(), strict=True):
        for (label, by_layer), colour, marker in zip(
            layers.items(), itertools.cycle(COLOURS), itertools.cycle("os^vDPX*")
        ):
            y = [by_layer[name][statistic] for name in names]
            axes.plot(range(len(names)), y, label=label, color=colour, marker=marker, markersize=4, linewidth=1)
        axes.set(ylabel=text)
        axes.yaxis.label.set_fontsize(8)
        axes.grid(axis="y", color="0.9")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set(xlabel="layer, from the input to the output")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return _save(figure, path, title)


def plot_pairs(path, epochs, pairs: Mapping[str, Mapping[str, list[float]]], title: str) -> pathlib.Path:
    """Learned a and b of each layer after each epoch. pairs: from `history.pair_history`.

    If a value is a list of quantiles over channels, the line is at their median and the band between their quartiles.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(pairs)))
    for axes, letter in zip(figure.subplots(1, 2), "ab", strict=True):
        for i, (layer, pair) in enumerate(pairs.items()):
            line = LINES[i % len(LINES)]
            low, middle, high = np.transpose([np.quantile(x, (0.25, 0.5, 0.75)) for x in pair[letter]])
            axes.plot(epochs, middle, label=layer, color=colours[i], linestyle=line, marker=".", linewidth=1)
            axes.fill_between(epochs, low, high, color=colours[i], alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", ylabel=letter)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=6, ncols=1 + len(pairs) // 25)
    return _save(figure, path, title)


def plot_weights(path, weights: Mapping[str, np.ndarray], title: str) -> pathlib.Path:
    """Distribution of the weights of several networks: of all weights, and of the third that is nearest to zero.

    weights: {label: array of any shape}. The density of all weights is on a logarithmic scale.
    """
    flat = {}
    for label, w in weights.items():
        w = np.ravel(np.asarray(w, np.float64))
        flat[f"{label}, largest |w| {np.max(np.abs(w)):.2f}".replace("$", r"\$")] = w  # a $ would begin a formula
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    whole, near = figure.subplots(1, 2)
    for axes, share, heading in ((whole, 1, "all weights"), (near, 1 / 3, "near zero")):
        edge = 1.05 * max(np.quantile(np.abs(w), share) for w in flat.values()) or 1
        bins = np.linspace(-edge, edge, 41)
        for (label, w), style in _styled(flat.items()):
            density = np.histogram(w, bins)[0] / (w.size * np.diff(bins))
            axes.stairs(density, bins, baseline=None, label=label, **style, linewidth=1.5)
        axes.set(xlabel="w", ylabel="density (1 / unit of w)")
        axes.set_title(heading, fontsize=9)
    whole.set_yscale("log")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _save(figure, path, title)


def _save(figure, path, title=None) -> pathlib.Path:
    if title is not None:
        figure.suptitle(title, fontsize=10)
    path = pathlib.Path(path)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, format="png")
    return path
