"""A small network and the training rules of the paper in NumPy float64: no JAX, no autodiff, every derivative by hand.

    conv 3x3 SAME → tanh → batch norm (training mode) → flatten → dense → mean softmax cross-entropy

tanh, not ReLU: finite differences and runs that agree to rounding need a loss without kinks. It stands between conv and
batch norm because a bias or scale right before batch norm has gradient zero, and Adam would step along its rounding.

Parameters are flat: {'conv/v', 'conv/bias', 'norm/scale', 'norm/bias', 'dense/v', 'dense/bias'}. Learned a and b add
'<layer>/a' and '<layer>/b', of the rank of v with size 1 along every axis (fine) or along every axis but the last
(channel), or 'pair/a' and 'pair/b', which are scalars (coarse). Weight normalization adds '<layer>/g', which has the
shape of a channel's a. The plain network (psi=None) has '<layer>/kernel' instead of '<layer>/v'.
"""

import dataclasses
import math

import numpy as np
from scipy import special

LAYERS = ("conv", "dense")
EPSILON = 1e-5  # of batch norm, flax's default


@dataclasses.dataclass(frozen=True)
class Arctan:
    a: np.ndarray | float
    b: np.ndarray | float

    def __call__(self, v):
        return self.a * np.arctan(v / self.b)

    def slope(self, v):
        return self.a * self.b / (self.b**2 + v**2)

    def by_a(self, v):
        return np.arctan(v / self.b)

    def by_b(self, v):
        return -self.a * v / (self.b**2 + v**2)


@dataclasses.dataclass(frozen=True)
class Arsinh:
    a: np.ndarray | float
    b: np.ndarray | float

    def __call__(self, v):
        return self.a * np.arcsinh(v / self.b)

    def slope(self, v):
        return self.a / np.sqrt(self.b**2 + v**2)

    def by_a(self, v):
        return np.arcsinh(v / self.b)

    def by_b(self, v):
        return -self.a * v / (self.b * np.sqrt(self.b**2 + v**2))


@dataclasses.dataclass(frozen=True)
class Erf:
    a: np.ndarray | float
    b: np.ndarray | float

    def __call__(self, v):
        return self.a * special.erf(v / self.b)

    def slope(self, v):
        return 2 * self.a / (self.b * math.sqrt(math.pi)) * np.exp(-((v / self.b) ** 2))

    def by_a(self, v):
        return special.erf(v / self.b)

    def by_b(self, v):
        return -2 * self.a * v / (self.b**2 * math.sqrt(math.pi)) * np.exp(-((v / self.b) ** 2))


@dataclasses.dataclass(frozen=True)
class PowerProp:
    alpha: float

    def __call__(self, v):
        return v * np.abs(v) ** (self.alpha - 1)

    def slope(self, v):
        return self.alpha * np.abs(v) ** (self.alpha - 1)


class WeightNorm:
    """w = g·v/‖v‖ for each output channel, the last axis."""

    def __call__(self, v, g):
        return g * v / _norm(v)

    def backward(self, v, g, dw):
        """(dL/dv, dL/dg): dL/dv is g/‖v‖ times the part of dL/dw orthogonal to v."""
        along = np.sum(dw * v, axis=_inputs(v), keepdims=True) / _norm(v)
        return g / _norm(v) * (dw - along * v / _norm(v)), along


def _inputs(v):
    return tuple(range(v.ndim - 1))


def _norm(v):
    return np.sqrt(np.sum(v**2, axis=_inputs(v), keepdims=True))


def owner_of_pair(params, layer):
    """The module that holds the learned a and b of a layer, or None."""
    return next((owner for owner in (layer, "pair") if f"{owner}/a" in params), None)


def psi_of(params, layer, psi):
    owner = owner_of_pair(params, layer)
    return dataclasses.replace(psi, a=params[f"{owner}/a"], b=params[f"{owner}/b"]) if owner else psi


def weight(params, layer, psi):
    if psi is None:
        return params[f"{layer}/kernel"]
    if isinstance(psi, WeightNorm):
        return psi(params[f"{layer}/v"], params[f"{layer}/g"])
    return psi_of(params, layer, psi)(params[f"{layer}/v"])


def folded(params, psi):
    """The parameters of the plain network with the same weights."""
    own = {f"{layer}/{name}" for layer in (*LAYERS, "pair") for name in ("v", "a", "b", "g")}
    weights = {f"{layer}/kernel": weight(params, layer, psi) for layer in LAYERS}
    return weights | {leaf: x for leaf, x in params.items() if leaf not in own}


def gradients(params, psi, images, labels):
    """(loss, {leaf: dL/dleaf}, {layer: dL/dw}) of the network. images: (n, h, w, c); labels: (n,) integers."""
    conv, dense = (weight(params, layer, psi) for layer in LAYERS)
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = {(i, j): padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)}

    hidden = np.tanh(sum(x @ conv[ij] for ij, x in shifted.items()) + params["conv/bias"])
    deviation = np.sqrt(np.var(hidden, axis=(0, 1, 2)) + EPSILON)
    normal = (hidden - np.mean(hidden, axis=(0, 1, 2))) / deviation
    features = (normal * params["norm/scale"] + params["norm/bias"]).reshape(n, -1)
    logits = features @ dense + params["dense/bias"]
    shift = logits - np.max(logits, axis=1, keepdims=True)
    log_p = shift - np.log(np.sum(np.exp(shift), axis=1, keepdims=True))
    loss = -np.mean(log_p[np.arange(n), labels])

    d_logits = np.exp(log_p)
    d_logits[np.arange(n), labels] -= 1
    d_logits /= n
    d_features = (d_logits @ dense.T).reshape(normal.shape)
    d_normal = d_features * params["norm/scale"]
    centred = d_normal - np.mean(d_normal, axis=(0, 1, 2)) - normal * np.mean(d_normal * normal, axis=(0, 1, 2))
    d_conv = centred / deviation * (1 - hidden**2)
    d_weights = {"conv": np.empty_like(conv), "dense": features.T @ d_logits}
    for ij, x in shifted.items():
        d_weights["conv"][ij] = np.einsum("nhwc,nhwd->cd", x, d_conv)
    grads = {
        "conv/bias": np.sum(d_conv, axis=(0, 1, 2)),
        "norm/scale": np.sum(d_features * normal, axis=(0, 1, 2)),
        "norm/bias": np.sum(d_features, axis=(0, 1, 2)),
        "dense/bias": np.sum(d_logits, axis=0),
    }
    for layer, dw in d_weights.items():
        _through_psi(grads, params, layer, psi, dw)
    return loss, grads, d_weights


def _through_psi(grads, params, layer, psi, dw):
    """Adds dL/dv, and dL/da, dL/db or dL/dg, of one layer to grads. A shared pair sums over its layers."""
    if psi is None:
        grads[f"{layer}/kernel"] = dw
        return
    v = params[f"{layer}/v"]
    if isinstance(psi, WeightNorm):
        grads[f"{layer}/v"], grads[f"{layer}/g"] = psi.backward(v, params[f"{layer}/g"], dw)
        return
    owner, psi = owner_of_pair(params, layer), psi_of(params, layer, psi)
    grads[f"{layer}/v"] = dw * psi.slope(v)
    if owner:
        for name, by in (("a", psi.by_a), ("b", psi.by_b)):
            leaf = f"{owner}/{name}"
            grads[leaf] = grads.get(leaf, 0) + _summed(dw * by(v), np.shape(params[leaf]))


def _summed(x, shape):
    """x summed to shape: over all axes for a scalar and for a pair of a layer, over all but the last for channels."""
    if shape[-1:] == x.shape[-1:]:
        return np.sum(x, axis=_inputs(x), keepdims=True)
    return np.sum(x).reshape(shape)


def _is_elementwise(psi):
    return not (psi is None or isinstance(psi, WeightNorm))


def penalty_gradient(params, leaf, psi):
    """What decay adds to dL/dleaf, over λ: Ψ·Ψ′ for v; but v itself where a and b are learned, and 0 for them."""
    layer, name = leaf.split("/")
    if name in ("a", "b"):
        return 0.0
    if name == "v" and _is_elementwise(psi) and not owner_of_pair(params, layer):
        return psi(params[leaf]) * psi.slope(params[leaf])
    return params[leaf]


def sgd(params, psi, batches, rate, momentum=0.9, decay=0.0):
    """[(loss before the step, parameters after it)] of SGD with momentum on the gradients of the leaves."""
    trace, history = dict.fromkeys(params, 0.0), []
    for images, labels in batches:
        loss, grads, _ = gradients(params, psi, images, labels)
        trace = {k: grads[k] + decay * penalty_gradient(params, k, psi) + momentum * trace[k] for k in params}
        params = {k: p - rate * trace[k] for k, p in params.items()}
        history.append((loss, params))
    return history


def scaled_adam(params, psi, batches, rate, decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8):
    """[(loss before the step, parameters after it)] of Adam on dL/dw + λ·w, whose step is times Ψ′(v) for v.

    The other leaves get plain Adam on dL/dp + λ·p. If a and b are learned, dL/dv gets λ·v, so that dL/dw gets
    λ·v / Ψ′(v), and a and b get plain Adam without decay.
    """
    first, second, history = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0), []
    for count, (images, labels) in enumerate(batches, start=1):
        loss, seen, d_weights = gradients(params, psi, images, labels)
        penalties, slopes = dict(params), dict.fromkeys(params, 1.0)
        for layer in LAYERS if _is_elementwise(psi) else ():
            leaf, own = f"{layer}/v", psi_of(params, layer, psi)
            v = params[leaf]
            seen[leaf], slopes[leaf] = d_weights[layer], own.slope(v)
            penalties[leaf] = v / own.slope(v) if owner_of_pair(params, layer) else own(v)
        penalties |= {leaf: 0.0 for leaf in params if leaf.split("/")[1] in ("a", "b")}
        seen = {k: seen[k] + decay * penalties[k] for k in params}
        first = {k: beta1 * first[k] + (1 - beta1) * seen[k] for k in params}
        second = {k: beta2 * second[k] + (1 - beta2) * seen[k] ** 2 for k in params}
        step = {k: first[k] / (1 - beta1**count) / (np.sqrt(second[k] / (1 - beta2**count)) + eps) for k in params}
        params = {k: p - rate * step[k] * slopes[k] for k, p in params.items()}
        history.append((loss, params))
    return history
