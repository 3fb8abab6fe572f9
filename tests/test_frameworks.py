"""compand trains models of every JAX framework as they are, and steps their weights exactly as Ψ says.

The leaves that should be companded are written out by hand for each model, and every step of a run is compared with
the inner optimizer's step u on v = Ψ⁻¹(w) and Δw = Ψ(v + u) − w in float64.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wcjax
from tests.truth import Psi

PSI = Psi("arctan", 0.8, 0.7)
STEPS = 10
KEY = jax.random.key(0, impl="rbg")  # its draws compile in a third of the time
INNER = {
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), False),
    "adamw": (lambda: optax.adamw(1e-2, weight_decay=1e-2), True),
}


class Model(NamedTuple):
    """A model with its data: each call of start(tx)() takes a step and returns (params after it, gradients, loss)."""

    params: Any
    companded: set
    start: Callable[[Any], Callable]


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def leaves(tree):
    return {name_of(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def drawn(init, *arguments):
    """Parameters in the shapes of init(*arguments), drawn by NumPy because compiling init takes seconds."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return jnp.asarray(rng.normal(0, 1 / math.sqrt(math.prod(leaf.shape[:-1])), leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, name_of(path).endswith("scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, *arguments))


def pure(params, companded, loss):
    """The model of loss(params)."""

    def start(tx):
        now = [params, tx.init(params)]
        chex.clear_trace_counter()

        @jax.jit
        @chex.assert_max_traces(n=1)
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), grads, value

        def advance():
            now[:], grads, value = step(*now)
            return now[0], grads, value

        return advance

    return Model(params, companded, start)


def sentences():
    """Tokens (32, 6) below 12, and a class of two for each row, which says whether their sum is large."""
    tokens = np.random.default_rng(0).integers(0, 12, (32, 6))
    return jnp.asarray(tokens), jnp.asarray(tokens.sum(axis=1) > 33, jnp.int32)


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(12, 16, rngs=rngs)
        self.conv = nnx.Conv(16, 16, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)])
        self.layer_norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, tokens):
        x = nnx.relu(self.norm(self.conv(self.embed(tokens)))).mean(axis=1)
        return self.layers[1](self.layer_norm(nnx.relu(self.layers[0](x))))


@functools.cache
def nnx_net():
    tokens, y = sentences()
    read = lambda state: jax.tree.map(np.array, nnx.to_pure_dict(state))

    def start(tx):
        model = NNXNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        chex.clear_trace_counter()

        @nnx.jit
        @chex.assert_max_traces(n=1)
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(tokens), y))(model)
            optimizer.update(model, grads)
            return loss, grads

        def advance():
            loss, grads = step(model, optimizer)
            return read(nnx.state(model, nnx.Param)), read(grads), loss

        return advance

    params = nnx.state(NNXNet(nnx.Rngs(0)), nnx.Param)
    assert {name_of(path) for path in kernels(params)} == {name_of(path) for path in kernels(read(params))}
    return Model(read(params), {"conv/kernel", "layers/0/kernel", "layers/1/kernel"}, start)


@functools.cache
def equinox_mlp():
    eqx = pytest.importorskip("equinox", reason="needs pip install equinox")

    class Net(eqx.Module):
        embedding: eqx.nn.Embedding
        norm: eqx.nn.LayerNorm
        mlp: eqx.nn.MLP

        def __init__(self, key):
            keys = jax.random.split(key)
            self.embedding = eqx.nn.Embedding(12, 16, key=keys[0])
            self.norm = eqx.nn.LayerNorm((6, 16))  # its weight has two axes
            self.mlp = eqx.nn.MLP(16, 2, 32, 2, key=keys[1])

        def __call__(self, tokens):
            return self.mlp(self.norm(jax.vmap(self.embedding)(tokens)).mean(axis=0))

    tokens, y = sentences()
    arrays, rest = eqx.partition(Net(KEY), eqx.is_inexact_array)
    loss = lambda arrays: cross_entropy(jax.vmap(eqx.combine(arrays, rest))(tokens), y)
    return pure(arrays, {f"mlp/layers/{i}/weight" for i in range(3)}, loss)


@functools.cache
def haiku_net():
    hk = pytest.importorskip("haiku", reason="needs pip install dm-haiku")

    def forward(tokens):
        x = hk.Embed(12, 16)(tokens)
        x = jax.nn.relu(hk.Conv1D(16, 3)(x)).mean(axis=1)
        return hk.nets.MLP([32, 2])(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x))

    tokens, y = sentences()
    net = hk.without_apply_rng(hk.transform(forward))
    loss = lambda params: cross_entropy(net.apply(params, tokens), y)
    return pure(drawn(net.init, KEY, tokens), {"conv1_d/w", "mlp/~/linear_0/w", "mlp/~/linear_1/w"}, loss)


class Decoder(nn.Module):
    """A decoder-only transformer: causal attention, learned positions, output tied to the embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(12, 16, name="embed")
        x = embed(tokens) + self.param("position", nn.initializers.normal(0.02), (tokens.shape[-1], 16))
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        x = x + attention(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
        x = x + nn.Dense(16, name="down")(nn.gelu(nn.Dense(64, name="up")(nn.LayerNorm()(x))))
        return embed.attend(nn.LayerNorm()(x))


@functools.cache
def linen_transformer():
    tokens = (jnp.arange(12)[:, None] + jnp.arange(12)) % 12
    params = drawn(Decoder().init, KEY, tokens)["params"]
    loss = lambda params: cross_entropy(Decoder().apply({"params": params}, tokens), (tokens + 1) % 12)
    companded = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    return pure(params, companded | {"up/kernel", "down/kernel"}, loss)


def kernels(params):
    return [path for path, leaf in jax.tree_util.tree_leaves_with_path(params) if wcjax.is_kernel(path, leaf)]


CASES = [(linen_transformer, "sgd"), (haiku_net, "sgd"), (nnx_net, "adamw"), (equinox_mlp, "adamw")]
by_name = lambda x: getattr(x, "__name__", x)


@pytest.mark.parametrize("make, optimizer", CASES, ids=by_name)
def test_each_step_is_the_inner_step_on_v_or_inner_alone(make, optimizer):
    model, (make_inner, adaptive) = make(), INNER[optimizer]
    assert {name_of(path) for path in kernels(model.params)} == model.companded

    def on_weights(f, tree, *more, otherwise=lambda x, *_: x):
        pick = lambda path, *x: (f if name_of(path) in model.companded else otherwise)(*map(np.float64, x))
        return jax.tree_util.tree_map_with_path(pick, tree, *more)

    advance = model.start(wcjax.compand(make_inner(), PSI.ours(), adaptive=adaptive))
    float32, inner = lambda tree: jax.tree.map(np.float32, tree), make_inner()
    seen_params = lambda params: float32(params if adaptive else on_weights(PSI.inverse, params))
    params, state, update, losses = model.params, inner.init(seen_params(model.params)), jax.jit(inner.update), []
    for _ in range(STEPS):
        new, grads, loss = advance()
        slope = on_weights(lambda w: PSI.derivative(PSI.inverse(w)), params)
        seen = grads if adaptive else float32(on_weights(np.multiply, grads, slope))
        u, state = update(seen, state, seen_params(params))
        u = on_weights(np.multiply, u, slope) if adaptive else u
        expected, params = leaves(on_weights(PSI.step, params, u, otherwise=np.add)), new
        assert leaves(params).keys() == expected.keys()
        for leaf, x in leaves(params).items():
            np.testing.assert_allclose(x, expected[leaf], rtol=0, atol=1e-6, err_msg=leaf)
        losses.append(loss)
    assert all(np.any(leaves(params)[leaf] != leaves(model.params)[leaf]) for leaf in model.companded)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("make", [nnx_net, equinox_mlp, haiku_net], ids=by_name)
def test_every_companded_weight_has_its_learned_pair(make):
    model = make()
    pairs = jax.eval_shape(wcjax.compand(optax.sgd(0.05), PSI.ours(), learn="fine").init, model.params).pairs
    names = {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(pairs)}
    assert names == {f"{weight}/{letter}" for weight in model.companded for letter in "ab"}


@pytest.mark.long
def test_embeddings_are_the_callers_choice():
    model, embedding = equinox_mlp(), "embedding/weight"
    before = leaves(model.params)[embedding]
    psi = Psi("arctan", 2 * np.max(np.abs(before)), 1.0)
    where = lambda path, leaf: wcjax.is_kernel(path, leaf) or "embed" in jax.tree_util.keystr(path)
    after, grads, _ = model.start(wcjax.compand(optax.sgd(0.1), psi.ours(), where=where))()
    grad = leaves(grads)[embedding]
    expected = psi.step(before, -0.1 * psi.derivative(psi.inverse(before)) * grad)
    np.testing.assert_allclose(leaves(after)[embedding], expected, atol=1e-6)
    assert np.max(np.abs(expected - before + 0.1 * grad)) > 1e-4  # the plain step is another one
