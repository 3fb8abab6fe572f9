"""compand trains models of every JAX framework as they are, and steps their weights exactly as Ψ says.

The leaves that should be companded are written out by hand for each model, and every step of a run is compared with
v = b·tan(w / a), the inner optimizer's step u on v, and Δw = a·arctan((v + u) / b) − w, in float64.
"""

import codecs
import collections
import contextlib
import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wcjax

A, B = 0.8, 0.7
PSI = wcjax.Arctan(A, B)
STEPS = 10
KEY = jax.random.key(0, impl="rbg")  # its draws compile in a third of the time
INNER = {
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), False),
    "adamw": (lambda: optax.adamw(1e-2, weight_decay=1e-2), True),
}


class History(NamedTuple):
    """What a run did: params of STEPS + 1 moments, grads and losses of STEPS steps, how often the step was traced."""

    params: list
    grads: list
    losses: list
    traces: int


class Model(NamedTuple):
    """A model with its data: train(tx) runs STEPS steps of tx from the first params."""

    params: Any
    companded: set
    train: Callable[[Any], History]
    lowered_to: float = 0.85  # the last loss, at most, as a share of the first


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def leaves(tree):
    return {name(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def train_pure(params, loss, carry=()):
    """A train function for loss(params, carry) -> (loss, carry)."""

    def train(tx):
        traces = []

        @jax.jit
        def step(params, carry, state):
            traces.append(1)
            (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(params, carry)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), carry, state, grads, value

        at, kept, state = [params], carry, tx.init(params)
        all_grads, losses = [], []
        for _ in range(STEPS):
            new, kept, state, grads, value = step(at[-1], kept, state)
            at.append(new)
            all_grads.append(grads)
            losses.append(float(value))
        return History(at, all_grads, losses, len(traces))

    return train


@functools.cache
def history_of(make, optimizer):
    inner, adaptive = INNER[optimizer]
    return make().train(wcjax.compand(inner(), PSI, adaptive=adaptive))


def labelled(*shape):
    """Inputs of that shape and a class of two for each, which is the sign of a linear function of the input."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    y = (x.reshape(shape[0], -1) @ rng.normal(size=int(np.prod(shape[1:]))) > 0).astype(np.int32)
    return jnp.asarray(x), jnp.asarray(y)


def sentences():
    """Tokens (32, 6) below 12, and a class of two for each row, which says whether their sum is large."""
    tokens = np.random.default_rng(0).integers(0, 12, (32, 6))
    return jnp.asarray(tokens), jnp.asarray(tokens.sum(axis=1) > 33, jnp.int32)


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@functools.cache
def linen_cnn():
    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features in (8, 16):
                x = nn.Conv(features, (3, 3), strides=2)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            return nn.Dense(2)(x.reshape(x.shape[0], -1))

    x, y = labelled(32, 8, 8, 1)
    variables = jax.jit(CNN().init)(KEY, x)

    def loss(params, stats):
        logits, updated = CNN().apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated["batch_stats"]

    companded = {"Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"}
    return Model(variables["params"], companded, train_pure(variables["params"], loss, variables["batch_stats"]))


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

    def train(tx):
        model, traces = NNXNet(nnx.Rngs(0)), []
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            traces.append(1)
            loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(tokens), y))(model)
            optimizer.update(model, grads)
            return loss, grads

        read = lambda state: jax.tree.map(np.array, nnx.to_pure_dict(state))
        at, all_grads, losses = [read(nnx.state(model, nnx.Param))], [], []
        for _ in range(STEPS):
            loss, grads = step(model, optimizer)
            at.append(read(nnx.state(model, nnx.Param)))
            all_grads.append(read(grads))
            losses.append(float(loss))
        return History(at, all_grads, losses, len(traces))

    params = nnx.state(NNXNet(nnx.Rngs(0)), nnx.Param)
    return Model(params, {"conv/kernel", "layers/0/kernel", "layers/1/kernel"}, train)


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
    net = Net(KEY)
    arrays = lambda net: eqx.filter(net, eqx.is_inexact_array)

    def train(tx):
        traces = []

        @eqx.filter_jit
        def step(net, state):
            traces.append(1)
            loss, grads = eqx.filter_value_and_grad(lambda net: cross_entropy(jax.vmap(net)(tokens), y))(net)
            updates, state = tx.update(grads, state, arrays(net))
            return eqx.apply_updates(net, updates), state, grads, loss

        at, state, all_grads, losses = [net], tx.init(arrays(net)), [], []
        for _ in range(STEPS):
            new, state, grads, loss = step(at[-1], state)
            at.append(new)
            all_grads.append(grads)
            losses.append(float(loss))
        return History(list(map(arrays, at)), all_grads, losses, len(traces))

    return Model(arrays(net), {f"mlp/layers/{i}/weight" for i in range(3)}, train)


@functools.cache
def haiku_net():
    hk = pytest.importorskip("haiku", reason="needs pip install dm-haiku")

    def forward(tokens):
        x = hk.Embed(12, 16)(tokens)
        x = jax.nn.relu(hk.Conv1D(16, 3)(x)).mean(axis=1)
        return hk.nets.MLP([32, 2])(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x))

    tokens, y = sentences()
    net = hk.without_apply_rng(hk.transform(forward))
    params = jax.jit(net.init)(KEY, tokens)
    loss = lambda params, carry: (cross_entropy(net.apply(params, tokens), y), carry)
    return Model(params, {"conv1_d/w", "mlp/~/linear_0/w", "mlp/~/linear_1/w"}, train_pure(params, loss))


@functools.cache
def plain_jax():
    x, y = labelled(64, 8)
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.uniform(-0.5, 0.5, shape), jnp.float32)
    params = {
        "table": draw(8, 8),  # an array with two axes, but not called kernel, weight or w
        "layers": [{"w": draw(8, 16), "b": jnp.zeros(16)}, {"w": draw(16, 2), "b": jnp.zeros(2)}],
        "gain": jnp.ones(8),
    }

    def loss(params, carry):
        first, last = params["layers"]
        h = jax.nn.relu((x @ params["table"] * params["gain"]) @ first["w"] + first["b"])
        return cross_entropy(h @ last["w"] + last["b"], y), carry

    return Model(params, {"layers/0/w", "layers/1/w"}, train_pure(params, loss))


class Decoder(nn.Module):
    """A decoder-only transformer: 2 layers, causal attention, learned positions, output tied to the embedding."""

    vocabulary: int
    width: int = 32
    heads: int = 2
    depth: int = 2

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocabulary, self.width, name="embed")
        position = self.param("position", nn.initializers.normal(0.02), (tokens.shape[-1], self.width))
        x = embed(tokens) + position
        for i in range(self.depth):
            h = nn.LayerNorm(name=f"norm_{i}a")(x)
            heads = (self.heads, self.width // self.heads)
            q, k, v = (nn.DenseGeneral(heads, name=f"{which}_{i}")(h) for which in ("query", "key", "value"))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(heads[1])
            visible = jnp.tril(jnp.ones((tokens.shape[-1],) * 2, bool))
            attention = nn.softmax(jnp.where(visible, scores, -jnp.inf))
            h = jnp.einsum("bhqk,bkhd->bqhd", attention, v)
            x = x + nn.DenseGeneral(self.width, axis=(-2, -1), name=f"mix_{i}")(h)
            h = nn.gelu(nn.Dense(4 * self.width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}b")(x)))
            x = x + nn.Dense(self.width, name=f"down_{i}")(h)
        return embed.attend(nn.LayerNorm(name="norm_out")(x))


@functools.cache
def text():
    """The Zen of Python as tokens (windows, 33)."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    letters = codecs.decode(this.s, "rot13")
    vocabulary = sorted(set(letters))
    tokens = np.array([vocabulary.index(letter) for letter in letters])
    return jnp.asarray(tokens[: len(tokens) // 33 * 33].reshape(-1, 33)), len(vocabulary)


@functools.cache
def transformer():
    tokens, vocabulary = text()
    model = Decoder(vocabulary)
    params = jax.jit(model.init)(KEY, tokens[:, :-1])["params"]
    loss = lambda params, carry: (
        cross_entropy(model.apply({"params": params}, tokens[:, :-1]), tokens[:, 1:]),
        carry,
    )
    layers = ("query", "key", "value", "mix", "up", "down")
    companded = {f"{layer}_{i}/kernel" for layer in layers for i in range(2)}
    return Model(params, companded, train_pure(params, loss), lowered_to=0.9)


MODELS = [linen_cnn, nnx_net, equinox_mlp, haiku_net, plain_jax, transformer]
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def expected_params(history, inner, adaptive, companded):
    """The params after each step by the formulas of Ψ in float64; only the inner optimizer's step is optax's."""

    def on_weights(f, tree, *more):
        pick = lambda path, x, *y: f(*(np.asarray(z, np.float64) for z in (x, *y))) if name(path) in companded else x
        return jax.tree_util.tree_map_with_path(pick, tree, *more)

    def as_v(params):
        v = on_weights(lambda w: B * np.tan(w / A), params)
        return v, on_weights(lambda v: A * B / (B**2 + v**2), v)

    seen_params = lambda params: jax.tree.map(np.float32, params if adaptive else as_v(params)[0])
    state, update = inner.init(seen_params(history.params[0])), jax.jit(inner.update)
    for params, grads in zip(history.params, history.grads, strict=False):
        v, slope = as_v(params)
        seen = grads if adaptive else jax.tree.map(np.float32, on_weights(np.multiply, grads, slope))
        u, state = update(seen, state, seen_params(params))
        if adaptive:
            u = on_weights(np.multiply, u, slope)
        changes = on_weights(lambda u, v, w: A * np.arctan((v + u) / B) - w, u, v, params)
        yield jax.tree.map(lambda w, change: np.float64(w) + np.float64(change), params, changes)


@pytest.mark.parametrize(
    "make, optimizer",
    [
        (linen_cnn, "sgd"),
        (nnx_net, "sgd"),
        (nnx_net, "adamw"),
        (equinox_mlp, "adamw"),
        (haiku_net, "sgd"),
        (plain_jax, "sgd"),
        (plain_jax, "adamw"),
        (transformer, "adamw"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_step_is_the_inner_step_on_v_and_other_leaves_are_inner_alone(make, optimizer):
    model, history, (inner, adaptive) = make(), history_of(make, optimizer), INNER[optimizer]
    for found, expected in zip(
        history.params[1:], expected_params(history, inner(), adaptive, model.companded), strict=True
    ):
        found, expected = leaves(found), leaves(expected)
        assert found.keys() == expected.keys()
        for leaf in found:
            np.testing.assert_allclose(found[leaf], expected[leaf], rtol=0, atol=1e-6, err_msg=leaf)
    moved = {leaf for leaf, w in leaves(history.params[-1]).items() if np.any(w != leaves(history.params[0])[leaf])}
    assert model.companded <= moved
    assert history.losses[-1] < model.lowered_to * history.losses[0]
    assert history.traces == 1


@every_model
def test_is_kernel_selects_the_weights_of_linear_maps_and_nothing_else(make):
    model = make()
    selected = {
        name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(model.params) if wcjax.is_kernel(path, leaf)
    }
    assert selected == model.companded


@every_model
def test_describe_counts_what_is_companded(make, capsys):
    model = make()
    wcjax.describe(model.params, psi=PSI)
    *rows, summary = capsys.readouterr().out.splitlines()
    assert sum(" yes " in row for row in rows) == len(model.companded)
    count = len(jax.tree.leaves(model.params))
    assert summary.startswith(f"{len(model.companded)} of {count} leaves companded: ")


@pytest.mark.parametrize("learn", ["fine", "channel", "coarse"])
@pytest.mark.parametrize("make", [nnx_net, equinox_mlp, plain_jax], ids=lambda make: make.__name__)
def test_a_and_b_can_be_learned_whatever_the_key_paths_are_made_of(make, learn):
    model = make()
    asked = collections.Counter()

    def where(path, leaf):
        asked[jax.tree_util.keystr(path)] += 1
        return wcjax.is_kernel(path, leaf)

    history = model.train(wcjax.compand(optax.sgd(0.05, momentum=0.9), PSI, learn=learn, where=where))
    assert history.losses[-1] < 0.95 * history.losses[0]
    assert history.traces == 1
    assert len(asked) == len(jax.tree.leaves(model.params))
    assert set(asked.values()) == {1}, "update has asked again"


def with_embeddings(path, leaf):
    return wcjax.is_kernel(path, leaf) or "embed" in jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "make, embedding",
    [
        (nnx_net, "embed/embedding"),
        (equinox_mlp, "embedding/weight"),
        (haiku_net, "embed/embeddings"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_embeddings_are_the_callers_choice(make, embedding):
    model = make()
    largest = np.max(np.abs(leaves(model.params)[embedding]))
    psi = wcjax.Arctan(2 * float(largest), 1.0)
    history = model.train(wcjax.compand(optax.sgd(0.1), psi, where=with_embeddings))
    before, after, grad = (leaves(x)[embedding] for x in (*history.params[:2], history.grads[0]))
    v = psi.b * np.tan(before / psi.a)
    slope = psi.a * psi.b / (psi.b**2 + v**2)
    change = psi.a * np.arctan((v - 0.1 * slope * grad) / psi.b) - before
    np.testing.assert_allclose(after - before, change, atol=1e-6)
    assert np.max(np.abs(change + 0.1 * grad)) > 1e-4  # the plain step is another one


def test_the_transformer_stays_causal():
    tokens, vocabulary = text()
    params = history_of(transformer, "adamw").params[-1]
    apply = jax.jit(lambda tokens: Decoder(vocabulary).apply({"params": params}, tokens))
    one = tokens[:, :-1]
    other = one.at[:, 20:].set((one[:, 20:] + 1) % vocabulary)
    np.testing.assert_allclose(apply(one)[:, :20], apply(other)[:, :20], atol=1e-5)
    assert np.all(np.any(apply(one)[:, 20:] != apply(other)[:, 20:], axis=-1))
