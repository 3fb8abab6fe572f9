"""Plots. Each function writes one PNG and returns its path."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure

from wcjax.reparam import Arctan


def plot_psi(path, psi: Arctan | None = None) -> pathlib.Path:
    """Ψ and Ψ′ over v in (−5, 5) beside the identity: figure 2 of the paper, and docs/psi.png.

    psi: Arctan() where left out.
    """
    psi = psi or Arctan()
    v = np.linspace(-5, 5, 501, dtype=np.float32)
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(v, psi(v), label=f"Ψ(v) = {psi.a:g}·arctan(v / {psi.b:g})")
    left.plot(v, v, color="0.6", linewidth=1, label="plain: w = v")
    for sign in (-1, 1):
        left.axhline(sign * psi.bound, color="0.6", linestyle=":", linewidth=1)
    left.set(xlabel="v (what the optimizer moves)", ylabel="w (what the network sees)", ylim=(-2, 2))
    left.legend(loc="upper left", fontsize=8)
    right.plot(v, psi.derivative(v), label="Ψ′(v)")
    right.plot(v, np.ones_like(v), color="0.6", linewidth=1, label="plain: 1")
    right.set(xlabel="v", ylabel="dw/dv", ylim=(0, 1.2 * psi.a / psi.b))
    right.legend(loc="upper right", fontsize=8)
    return _save(figure, path)


def plot_weights(path, weights: Mapping[str, jax.Array], title: str) -> pathlib.Path:
    """Distribution of the weights of one layer in several networks. weights: {label: array of any shape}."""
    flat = {label: np.ravel(np.asarray(w, np.float64)) for label, w in weights.items()}
    edge = 1.05 * max(np.max(np.abs(w)) for w in flat.values())
    bins = np.linspace(-edge, edge, 61)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, w in flat.items():
        label = f"{label}, largest |w| {np.max(np.abs(w)):.2f}"
        axes.hist(w, bins, density=True, histtype="step", linewidth=1.5, label=label)
    axes.set(xlabel="w", ylabel="density", title=title)
    axes.legend(fontsize=8)
    return _save(figure, path)


def _save(figure, path) -> pathlib.Path:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    return path
