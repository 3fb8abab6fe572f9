"""Trees of every JAX framework are companded as they are, in both ways, and stepped like a dict of their leaves.

The leaves that should be companded are written out by hand for each tree.
"""

from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wcjax
from tests.truth import Psi
from wcjax import optim
from wcjax.params import is_reparameterized

TRUTH = Psi("arctan", 0.8, 0.7)
PSI = TRUTH.ours()
KEY = jax.random.key(0, impl="rbg")  # its draws compile in a third of the time
TOKENS = jnp.arange(12).reshape(2, 6)


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


def linen_decoder():
    return jax.eval_shape(Decoder().init, KEY, TOKENS)["params"]


def nnx_net():
    return nnx.state(nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0))), nnx.Param)


def equinox_net():
    norm = eqx.nn.LayerNorm((6, 16))  # its weight has two axes
    make = lambda: {
        "embedding": eqx.nn.Embedding(12, 16, key=KEY),
        "norm": norm,
        "mlp": eqx.nn.MLP(16, 2, 32, 2, key=KEY),
    }
    return eqx.filter(eqx.filter_eval_shape(make), lambda x: isinstance(x, jax.ShapeDtypeStruct))


def haiku_net():
    def forward(tokens):
        x = jax.nn.relu(hk.Conv1D(16, 3)(hk.Embed(12, 16)(tokens))).mean(axis=1)
        return hk.nets.MLP([32, 2])(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x))

    return jax.eval_shape(hk.transform(forward).init, KEY, TOKENS)


class Pair(NamedTuple):
    first: dict
    second: dict


KERNEL, BIAS = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 3), (3,)))


def named_tuple():
    return Pair({"kernel": KERNEL}, {"bias": BIAS})


def boxes():
    return {"kernel": nn.Partitioned(KERNEL, ("in", "out")), "bias": nn.Partitioned(BIAS, ("out",))}


def array():
    return KERNEL


MODELS = {  # the shapes of a model, and which leaves should be companded
    linen_decoder: {
        *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
        "up/kernel",
        "down/kernel",
    },
    nnx_net: {"conv/kernel", "layers/0/kernel", "layers/1/kernel"},
    equinox_net: {f"mlp/layers/{i}/weight" for i in range(3)},
    haiku_net: {"conv1_d/w", "mlp/~/linear_0/w", "mlp/~/linear_1/w"},
    named_tuple: {"first/kernel"},
    boxes: {"kernel"},
}


def drawn(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.5, 0.5, x.shape), jnp.float32), shapes)


def path_str(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name_of(path):
    """The name of a leaf, which may be in a box."""
    return path_str(path).removesuffix("/value")


def by_name(tree, name=name_of):
    return {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def descend(tx, params):
    """(params, state) after two steps, the second of which has momentum."""
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):
        updates, state = update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


named = lambda x: getattr(x, "__name__", None)
STEPPED = [(make, "sgd", "none") for make in MODELS] + [(boxes, "sgd", learn) for learn in ("channel", "coarse")]
STEPPED += [pytest.param(make, "adamw", "fine", marks=pytest.mark.long) for make in MODELS]


@pytest.mark.parametrize("make, inner, learn", STEPPED, ids=named)
def test_a_tree_is_stepped_like_a_dict_of_its_leaves(make, inner, learn):
    tree, adaptive = drawn(make()), inner == "adamw"
    inner = {"sgd": optax.sgd(0.1, momentum=0.9), "adamw": optax.adamw(1e-2)}[inner]
    results = []
    for params, where in ((tree, None), (by_name(tree), lambda path, _: path[0].key in MODELS[make])):
        params, state = descend(wcjax.compand(inner, PSI, adaptive=adaptive, where=where, learn=learn), params)
        results.append((by_name(params), by_name(state.pairs, path_str)))  # a pair has no box
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-7)
    owners = {"none": [], "coarse": [""]}.get(learn, [f"{name}/" for name in MODELS[make]])
    assert results[0][1].keys() == {owner + letter for owner in owners for letter in "ab"}


@pytest.mark.parametrize("learn", ["none", "channel"])
@pytest.mark.parametrize("make", [*MODELS, array], ids=named)
def test_folding_restores_a_tree_of_any_kind_exactly(make, learn):
    plain, where = drawn(make()), (lambda path, leaf: True) if make is array else None
    companded = wcjax.reparameterize(plain, PSI, where, learn)
    leaves = jax.tree_util.tree_leaves_with_path(companded, is_leaf=is_reparameterized)
    assert {name_of(path) for path, x in leaves if is_reparameterized(x)} == MODELS.get(make, {""})
    back = wcjax.fold(companded)
    assert type(back) is type(plain) and jax.tree.structure(back) == jax.tree.structure(plain)  # boxes' names too
    chex.assert_trees_all_close(back, plain, rtol=1e-6)


def test_the_optimizer_of_nnx_trains_a_model_with_compand():
    tx = wcjax.compand(optax.sgd(0.1, momentum=0.9), PSI)
    model = NNXNet(nnx.Rngs(0))
    optimizer, read = nnx.Optimizer(model, tx, wrt=nnx.Param), lambda x: jax.tree.map(np.array, nnx.to_pure_dict(x))
    params = read(nnx.state(model, nnx.Param))
    state, update = tx.init(params), jax.jit(tx.update)
    chex.clear_trace_counter()

    @nnx.jit
    @chex.assert_max_traces(n=1)
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum(jnp.square(model(TOKENS) - 1)))(model)
        optimizer.update(model, grads)
        return grads

    for _ in range(3):
        updates, state = update(read(step(model, optimizer)), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(read(nnx.state(model, nnx.Param)), params, rtol=1e-5, atol=1e-6)


def test_frozen_leaves_of_equinox_stay_and_the_others_train():
    """The whole Equinox model as params, gradients None for frozen leaves and for functions."""
    model = eqx.nn.MLP(3, 2, 2, 1, key=KEY)
    last = lambda model: (model.layers[1].weight, model.layers[1].bias)
    trainable = eqx.tree_at(last, jax.tree.map(eqx.is_inexact_array, model), (False, False))
    grads = eqx.filter(jax.tree.map(lambda x: x if eqx.is_array(x) else None, model), trainable)
    tx = wcjax.compand(optax.sgd(0.1), PSI, weight_decay=0.01)
    updates, _ = tx.update(grads, tx.init(model), model)
    moved, w = eqx.apply_updates(model, updates), np.float64(model.layers[0].weight)
    chex.assert_trees_all_equal(last(moved), last(model))
    step = -0.1 * TRUTH.derivative(TRUTH.inverse(w)) * 1.01 * w
    np.testing.assert_allclose(moved.layers[0].weight, TRUTH.step(w, step), rtol=1e-5)

    weights = eqx.filter(wcjax.reparameterize(model, PSI), eqx.is_inexact_array)
    grads = eqx.tree_at(lambda model: model.layers[1].weight.v, weights, None)
    tx = optax.chain(optim.add_decayed_weights(0.01), optim.scale_by_derivative(optax.sgd(0.1)))
    updates, _ = tx.update(grads, tx.init(weights), weights)
    assert updates.layers[1].weight.v is None and np.all(updates.layers[0].weight.v != 0)
