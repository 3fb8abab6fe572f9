"""Ψ, convolution and the training of a small network in NumPy float64: no autodiff, every derivative by hand.

THE table of Ψ is `ROWS`; tests that hold for every Ψ are parametrized over `PSIS`.
"""

import math

import numpy as np
from scipy import special

from wcjax import reparam

ROWS = {  # Ψ(v), Ψ⁻¹(w), Ψ′(v) and the bound of |w|, for a and b or for α; a and b may be arrays, and negative
    "arctan": (
        lambda v, a, b: a * np.arctan(v / b),
        lambda w, a, b: b * np.tan(w / a),
        lambda v, a, b: a * b / (b**2 + v**2),
        lambda a, b: abs(a) * math.pi / 2,
    ),
    "arsinh": (
        lambda v, a, b: a * np.arcsinh(v / b),
        lambda w, a, b: b * np.sinh(w / a),
        lambda v, a, b: a / b / np.sqrt(1 + (v / b) ** 2),
        lambda a, b: math.inf,
    ),
    "erf": (
        lambda v, a, b: a * special.erf(v / b),
        lambda w, a, b: b * special.erfinv(w / a),
        lambda v, a, b: 2 / math.sqrt(math.pi) * a / b * np.exp(-((v / b) ** 2)),
        lambda a, b: abs(a),
    ),
    "powerprop": (
        lambda v, alpha: np.sign(v) * np.abs(v) ** alpha,
        lambda w, alpha: np.sign(w) * np.abs(w) ** (1 / alpha),
        lambda v, alpha: alpha * np.abs(v) ** (alpha - 1),
        lambda alpha: math.inf,
    ),
}


class Psi:
    """A row of the table with its numbers: Psi("arctan", 0.7, 0.5)(v) is w in float64."""

    def __init__(self, name, *numbers):
        self.name, self.numbers = name, numbers
        self.forward, self.backward, self.slope, bound = ROWS[name]
        self.bound = bound(*numbers)

    def __repr__(self):
        return f"{self.name}({', '.join(map(str, self.numbers))})"

    def __call__(self, v):
        return self.forward(np.asarray(v, np.float64), *self.numbers)

    def inverse(self, w):
        return self.backward(np.asarray(w, np.float64), *self.numbers)

    def derivative(self, v):
        return self.slope(np.asarray(v, np.float64), *self.numbers)

    def step(self, w, u):
        """w after v = Ψ⁻¹(w) has moved by u."""
        return self(self.inverse(w) + u)

    def ours(self, make=float):
        """The Ψ of wcjax with these numbers, or with the arrays that make=jnp.float32 makes of them."""
        return reparam.BY_NAME[self.name](*map(make, self.numbers))


PSIS = [Psi("arctan", 0.7, 0.5), Psi("arsinh", 0.6, 0.9), Psi("erf", 0.8, 0.6), Psi("powerprop", 1.5)]
SIGMOIDS = PSIS[:3]  # which have an a and a b


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


def windows(x, size, strides):
    """{(i, j): index of the pixels of the padded x that a window sees at its place (i, j)}."""
    axes = zip(x.shape[1:3], size, strides, strict=True)
    height, width = ((pixels - taps) // stride * stride + 1 for pixels, taps, stride in axes)
    places = np.ndindex(*size)
    return {(i, j): np.s_[:, i : i + height : strides[0], j : j + width : strides[1]] for i, j in places}


def padded(x, padding, value=0.0):
    return np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)), constant_values=value)


def convolve(x, w, strides=(1, 1), padding=((1, 1), (1, 1))):
    """x (n, height, width, inputs) convolved with w (height, width, inputs, outputs)."""
    x = padded(x, padding)
    return sum(x[seen] @ w[place] for place, seen in windows(x, w.shape[:2], strides).items())


def convolution_gradients(x, w, dy, strides=(1, 1), padding=((1, 1), (1, 1))):
    """(dL/dx, dL/dw) of `convolve` for dL/dy."""
    (top, _), (left, _), (height, width) = *padding, x.shape[1:3]
    x = padded(x, padding)
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for place, seen in windows(x, w.shape[:2], strides).items():
        dx[seen] += dy @ w[place].T
        dw[place] = np.tensordot(x[seen], dy, axes=((0, 1, 2), (0, 1, 2)))
    return dx[:, top : top + height, left : left + width], dw


# The network: conv 3x3 → tanh → batch norm (training mode) → flatten → dense → mean softmax cross-entropy.
#
# It has tanh instead of ReLU because finite differences and runs that agree to rounding need a loss without kinks. The
# tanh is before batch norm because a bias right before batch norm has gradient zero, and Adam would step along its
# rounding.
#
# Its parameters are flat: {'conv/v', 'conv/bias', 'norm/scale', 'norm/bias', 'dense/v', 'dense/bias'}. Learned a and b
# add '<layer>/a' and '<layer>/b', of the rank of v (fine, channel), or the scalars 'pair/a' and 'pair/b' (coarse).
# WeightNorm adds '<layer>/g'. The plain network (psi=None) has '<layer>/kernel' instead of '<layer>/v'.

LAYERS = ("conv", "dense")
EPSILON = 1e-5  # of batch norm


def pair_owner(params, layer):
    """The module that holds the learned a and b of a layer, or None."""
    return next((owner for owner in (layer, "pair") if f"{owner}/a" in params), None)


def psi_of(params, layer, psi):
    owner = pair_owner(params, layer)
    return Psi(psi.name, params[f"{owner}/a"], params[f"{owner}/b"]) if owner else psi


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
    """(loss, {leaf: dL/dleaf}, {layer: dL/dw}). images: (n, height, width, channels); labels: (n,) integers."""
    conv, dense = (weight(params, layer, psi) for layer in LAYERS)
    pixels = (0, 1, 2)
    hidden = np.tanh(convolve(images, conv) + params["conv/bias"])
    deviation = np.sqrt(np.var(hidden, axis=pixels) + EPSILON)
    normal = (hidden - np.mean(hidden, axis=pixels)) / deviation
    features = (normal * params["norm/scale"] + params["norm/bias"]).reshape(len(images), -1)
    logits = features @ dense + params["dense/bias"]
    log_p = logits - special.logsumexp(logits, axis=1, keepdims=True)
    right = np.eye(logits.shape[1])[labels]
    loss = -np.mean(np.sum(log_p * right, axis=1))

    d_logits = (np.exp(log_p) - right) / len(images)
    d_features = (d_logits @ dense.T).reshape(normal.shape)
    d_normal = d_features * params["norm/scale"]
    centred = d_normal - np.mean(d_normal, axis=pixels) - normal * np.mean(d_normal * normal, axis=pixels)
    d_conv = centred / deviation * (1 - hidden**2)
    d_weights = {"conv": convolution_gradients(images, conv, d_conv)[1], "dense": features.T @ d_logits}
    grads = {
        "conv/bias": np.sum(d_conv, axis=pixels),
        "norm/scale": np.sum(d_features * normal, axis=pixels),
        "norm/bias": np.sum(d_features, axis=pixels),
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
    owner, psi = pair_owner(params, layer), psi_of(params, layer, psi)
    grads[f"{layer}/v"] = dw * psi.derivative(v)
    if owner:  # of w = a·s(v / b)
        a, b = psi.numbers
        for name, slope in (("a", psi(v) / a), ("b", -v / b * psi.derivative(v))):
            leaf = f"{owner}/{name}"
            grads[leaf] = grads.get(leaf, 0) + _summed(dw * slope, np.shape(params[leaf]))


def _summed(x, shape):
    """x summed to shape: over all axes, or over all but the last for channels."""
    if shape[-1:] == x.shape[-1:]:
        return np.sum(x, axis=_inputs(x), keepdims=True)
    return np.sum(x).reshape(shape)


def penalty_gradient(params, leaf, psi):
    """What decay adds to dL/dleaf, over λ: Ψ·Ψ′ for v; but v itself where a and b are learned, and 0 for them."""
    layer, name = leaf.split("/")
    if name in ("a", "b"):
        return 0.0
    if name == "v" and isinstance(psi, Psi) and not pair_owner(params, layer):
        return psi(params[leaf]) * psi.derivative(params[leaf])
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
        for layer in LAYERS if isinstance(psi, Psi) else ():
            leaf, own = f"{layer}/v", psi_of(params, layer, psi)
            v = params[leaf]
            seen[leaf], slopes[leaf] = d_weights[layer], own.derivative(v)
            penalties[leaf] = v / own.derivative(v) if pair_owner(params, layer) else own(v)
        penalties |= {leaf: 0.0 for leaf in params if leaf.split("/")[1] in ("a", "b")}
        seen = {k: seen[k] + decay * penalties[k] for k in params}
        first = {k: beta1 * first[k] + (1 - beta1) * seen[k] for k in params}
        second = {k: beta2 * second[k] + (1 - beta2) * seen[k] ** 2 for k in params}
        step = {k: first[k] / (1 - beta1**count) / (np.sqrt(second[k] / (1 - beta2**count)) + eps) for k in params}
        params = {k: p - rate * step[k] * slopes[k] for k, p in params.items()}
        history.append((loss, params))
    return history
