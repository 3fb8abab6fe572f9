"""Layers that hold v, against the plain Flax layers and closed forms in NumPy."""

import functools
import re

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from wcjax import Arctan, PowerProp, Reparameterized, WeightNorm, compand, fold, linen, optim

A, B = 1.6, 1.3
PSI = Arctan(A, B)
KEY = jax.random.key(0, impl="rbg")  # compiles faster than threefry
BIAS = nn.initializers.normal()  # a random bias shows whether the key that it is drawn from is the plain layer's

LAYERS = {
    "Dense": (nn.Dense, {"features": 3}, (2, 4)),
    "Conv": (nn.Conv, {"features": 3, "kernel_size": (2, 2)}, (2, 3, 3, 2)),
    "ConvTranspose": (nn.ConvTranspose, {"features": 3, "kernel_size": (2,)}, (2, 3, 2)),
    "ConvLocal": (nn.ConvLocal, {"features": 3, "kernel_size": (2,)}, (2, 3, 2)),
    "DenseGeneral": (nn.DenseGeneral, {"features": (3, 2), "axis": (-2, -1)}, (2, 4, 3)),
    "Einsum": (nn.Einsum, {"shape": (4, 3), "einsum_str": "...d,df->...f"}, (2, 4)),
}
FORMS = {
    "fixed": lambda: {"reparam": PSI},
    "fine": lambda: {"reparam": PSI, "learn": "fine"},
    "channel": lambda: {"reparam": PSI, "learn": "channel"},
    "coarse": lambda: {"reparam": linen.LearnedPair(PSI)},
    "powerprop": lambda: {"reparam": PowerProp(2.0)},
    "weightnorm": lambda: {"reparam": WeightNorm()},
}
SHAPES = {  # layer: (a and b of the kernel, a and b of its channels, which is also that of the norms)
    "Dense": ((1, 1), (1, 3)),
    "Conv": ((1, 1, 1, 1), (1, 1, 1, 3)),
    "ConvTranspose": ((1, 1, 1), (1, 1, 3)),
    "ConvLocal": ((1, 1, 1), (1, 1, 3)),
    "DenseGeneral": ((1, 1, 1, 1), (1, 1, 3, 2)),
    "Einsum": ((1, 1), (1, 3)),
}


def layer_of(name):
    return getattr(linen, name, None) or linen.companded(LAYERS[name][0])


def inputs(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def w_by_hand(params):
    """w of a layer's parameters, in NumPy float64."""
    kernel = params["kernel"]
    v, psi = np.float64(kernel.v), kernel.psi or params["reparam"]["psi"]
    if isinstance(psi, PowerProp):
        return v * np.abs(v)
    if isinstance(psi, WeightNorm):
        summed = tuple(axis for axis, size in enumerate(psi.g.shape) if size == 1)
        return np.float64(psi.g) * v / np.sqrt(np.sum(v**2, axis=summed, keepdims=True))
    return np.float64(psi.a) * np.arctan(v / np.float64(psi.b))


@pytest.mark.parametrize("name, form", [("Dense", f) for f in FORMS] + [(n, "channel") for n in LAYERS if n != "Dense"])
def test_a_layer_starts_with_the_plain_weights_and_computes_w(name, form):
    cls, arguments, shape = LAYERS[name]
    x = inputs(shape)
    plain, layer = cls(**arguments, bias_init=BIAS), layer_of(name)(**arguments, bias_init=BIAS, **FORMS[form]())
    expected, params = (model.init(KEY, x)["params"] for model in (plain, layer))
    assert params.keys() == {"kernel", "bias"} | ({"reparam"} if form == "coarse" else set())
    assert isinstance(params["kernel"], Reparameterized)
    chex.assert_trees_all_equal(params["bias"], expected["bias"])
    np.testing.assert_allclose(w_by_hand(params), expected["kernel"], rtol=2e-6)

    rng = np.random.default_rng(1)  # a and b of each channel move by an amount of their own
    trained = jax.tree.map(lambda p: p * jnp.asarray(rng.uniform(0.8, 1.2, p.shape), p.dtype) + 0.01, params)
    by_hand = {"kernel": jnp.asarray(w_by_hand(trained), jnp.float32), "bias": trained["bias"]}
    chex.assert_trees_all_close(fold(trained), by_hand, rtol=2e-6)
    of_plain = plain.apply({"params": by_hand}, x)
    chex.assert_trees_all_close(layer.apply({"params": trained}, x), of_plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["fine", "channel", "weightnorm"])
@pytest.mark.parametrize("name", LAYERS)
def test_learned_arrays_have_the_rank_of_their_kernel(name, form):
    _, arguments, shape = LAYERS[name]
    params = jax.eval_shape(layer_of(name)(**arguments, **FORMS[form]()).init, KEY, inputs(shape))["params"]
    learned = {"g"} if form == "weightnorm" else {"a", "b"}
    assert set(params["kernel"].psi.learned) == learned
    assert {getattr(params["kernel"].psi, x).shape for x in learned} == {SHAPES[name][form != "fine"]}


@pytest.mark.parametrize("name", LAYERS)
def test_without_reparam_it_is_the_flax_layer_to_the_bit(name):
    cls, arguments, shape = LAYERS[name]
    x = inputs(shape)
    plain, layer = (c(**arguments, bias_init=BIAS) for c in (cls, layer_of(name)))
    out_of_plain, out = (model.init_with_output(KEY, x) for model in (plain, layer))
    chex.assert_trees_all_equal(out, out_of_plain)


class Small(nn.Module):
    """The same network in plain (psi None) and companded layers, named automatically."""

    psi: object = None
    plain: bool = False

    @nn.compact
    def __call__(self, x):
        conv, dense, transposed = linen.Conv, linen.Dense, linen.companded(nn.ConvTranspose)
        more = {"reparam": self.psi}
        if self.plain:
            conv, dense, transposed, more = nn.Conv, nn.Dense, nn.ConvTranspose, {}
        x = conv(2, (2, 2), **more)(conv(2, (2, 2), **more)(x))
        x = nn.LayerNorm()(transposed(2, (2, 2), **more)(x))
        return dense(3, **more)(nn.relu(dense(4, **more)(x.reshape(len(x), -1))))


@pytest.mark.parametrize("psi", [PSI, WeightNorm(), None], ids=repr)
def test_folded_params_have_the_plain_networks_automatic_names(psi):
    x = jnp.zeros((1, 3, 3, 1))
    plain = jax.eval_shape(Small(plain=True).init, KEY, x)["params"]
    init = lambda key: Small(psi).init(key, x)["params"]
    found = jax.eval_shape(init if psi is None else lambda key: fold(init(key)), KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, plain)
    assert {"Conv_0", "Conv_1", "ConvTranspose_0", "Dense_1"} < set(found)


class Stack(nn.Module):
    """Layers that share one learned pair, under a lifted transformation; psi None: the plain network."""

    how: str
    psi: object = None

    @nn.compact
    def __call__(self, x):
        pair = self.psi and linen.LearnedPair(self.psi, name="pair")
        if self.how == "scan":  # the pair is called by the parent, and its Ψ broadcast over the layers
            deep = nn.scan(
                ScanBody, variable_axes={"params": 0}, split_rngs={"params": True}, length=3, in_axes=nn.broadcast
            )
            x, _ = deep()(x, pair and pair())
            return linen.Dense(2, reparam=pair)(x)
        dense = nn.remat(linen.Dense) if self.how == "remat" else linen.Dense
        return nn.Sequential([dense(4, reparam=pair), nn.tanh, dense(2, reparam=pair)])(x)


class ScanBody(nn.Module):
    @nn.compact
    def __call__(self, x, psi):
        return nn.tanh(linen.Dense(4, reparam=psi)(x)), None


@pytest.mark.parametrize("how", ["sequential", "remat", "scan"])
def test_a_learned_pair_is_one_pair_for_all_layers(how):
    x, learned, plain = inputs((2, 4)), Stack(how, PSI), Stack(how)
    params = learned.init(KEY, x)["params"]
    chex.assert_trees_all_equal(params["pair"], {"psi": Arctan(jnp.float32(A), jnp.float32(B))})
    names = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert [names.count(jax.tree_util.GetAttrKey(name)) for name in "abv"] == [1, 1, 2]

    params = jax.tree.map(lambda p: p * 1.2 + 0.01, params)
    loss = lambda model, params: jnp.sum(jnp.sin(model.apply({"params": params}, x)))

    @jax.jit
    def found_and_expected(params):
        found = jax.value_and_grad(lambda params: loss(learned, params))(params)
        return found, jax.value_and_grad(lambda params: loss(plain, fold(params)))(params)

    chex.assert_trees_all_close(*found_and_expected(params), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("form", ["fine", "channel", "weightnorm"])
def test_scanned_layers_learn_arrays_of_their_own(form, axis):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(linen.Dense(4, use_bias=False, **FORMS[form](), name="dense")(x)), None

    deep = nn.scan(Layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=3)()
    x, rng = inputs((2, 4)), np.random.default_rng(1)
    params = deep.init(KEY, x, None)["params"]
    params = jax.tree.map(lambda p: p * jnp.asarray(rng.uniform(0.5, 1.5, p.shape), p.dtype), params)
    expected, kernels = np.float64(x), fold(params)["dense"]["kernel"]
    for i in range(3):
        layer = {"kernel": jax.tree.map(lambda p, i=i: jnp.take(p, i, axis), params["dense"]["kernel"])}
        np.testing.assert_allclose(jnp.take(kernels, i, axis), w_by_hand(layer), rtol=1e-5)
        expected = np.tanh(expected @ w_by_hand(layer))
    np.testing.assert_allclose(deep.apply({"params": params}, x, None)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["fixed", "fine", "channel", "coarse"])
def test_gradients_are_those_of_w_times_the_derivatives_of_psi(form):
    x, layer = inputs((5, 4)), linen.Dense(3, **FORMS[form](), bias_init=BIAS)
    params = layer.init(KEY, x)["params"]
    loss = lambda model, params: jnp.sum(jnp.sin(model.apply({"params": params}, x)))
    found = jax.grad(lambda params: loss(layer, params))(params)
    plain = {"kernel": jnp.asarray(w_by_hand(params), jnp.float32), "bias": params["bias"]}
    of_w = jax.grad(lambda params: loss(nn.Dense(3), params))(plain)
    v, g = np.asarray(params["kernel"].v, np.float64), np.asarray(of_w["kernel"])
    of_a, of_b = g * np.arctan(v / B), -g * A * v / (B**2 + v**2)
    kernel, pair = found["kernel"], found["reparam"]["psi"] if form == "coarse" else found["kernel"].psi
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(kernel.v, g * A * B / (B**2 + v**2))
    close(found["bias"], of_w["bias"])
    if form != "fixed":
        total = functools.partial(np.sum, axis=0, keepdims=True) if form == "channel" else np.sum
        close(pair.a, total(of_a).reshape(pair.a.shape))
        close(pair.b, total(of_b).reshape(pair.b.shape))


@pytest.mark.parametrize("form", ["fixed", "fine", "channel", "weightnorm"])
@pytest.mark.parametrize("name", ["Dense", "DenseGeneral"])
def test_partitioning_names_stay_on_v(name, form):
    _, arguments, shape = LAYERS[name]
    init = nn.initializers.lecun_normal()
    make = lambda kernel_init: layer_of(name)(**arguments, kernel_init=kernel_init, **FORMS[form]())
    boxed = make(nn.with_partitioning(init, ("in", "out"))).init(KEY, inputs(shape))
    spec = nn.get_partition_spec(boxed)["params"]
    assert (spec["kernel"].v, spec["bias"]) == (PartitionSpec("in", "out"), PartitionSpec())
    learned = {"fixed": 0, "weightnorm": 1}.get(form, 2)
    assert jax.tree.leaves(spec["kernel"].psi) == [PartitionSpec()] * learned
    chex.assert_trees_all_equal(nn.unbox(boxed), make(init).init(KEY, inputs(shape)))
    layer = make(nn.with_partitioning(init, ("in", "out")))
    chex.assert_trees_all_equal(layer.apply(boxed, inputs(shape)), layer.apply(nn.unbox(boxed), inputs(shape)))


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_psi_runs_in_float32_and_casts_once_whatever_the_dtypes(param_dtype):
    x, layer = inputs((5, 4)), linen.Dense(8, dtype=jnp.bfloat16, param_dtype=param_dtype, reparam=PSI, learn="fine")
    params = layer.init(KEY, x)["params"]
    v, psi = params["kernel"].v, params["kernel"].psi
    assert (v.dtype, psi.a.dtype, psi.b.dtype) == (param_dtype, jnp.float32, jnp.float32)
    a, b, v = (np.asarray(x, np.float32) for x in (psi.a, psi.b, v))
    kernel = jnp.asarray(a * jnp.arctan(v / b)).astype(param_dtype)
    plain = nn.Dense(8, dtype=jnp.bfloat16, param_dtype=param_dtype)
    expected = plain.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
    assert expected.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(layer.apply({"params": params}, x), expected)


def test_a_layer_that_asks_for_its_boxed_kernel_gets_w_in_the_box():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param("kernel", nn.with_partitioning(nn.initializers.ones, ("in", "out")), (2, 2), unbox=False)

    w, _ = linen.companded(Boxed)(reparam=PSI).init_with_output(KEY)
    assert isinstance(w, nn.Partitioned) and w.names == ("in", "out")
    chex.assert_trees_all_close(w.value, jnp.ones((2, 2)), rtol=1e-6)


def test_an_initial_weight_beyond_the_bound_gives_nan_there_and_only_there():
    w = nn.Dense(8).init(KEY, inputs((1, 8)))["params"]["kernel"]
    psi = Arctan(0.2, 1.0)
    v = jax.jit(linen.Dense(8, reparam=psi).init)(KEY, inputs((1, 8)))["params"]["kernel"].v
    beyond = np.abs(w) >= psi.bound
    assert 0 < beyond.sum() < w.size
    np.testing.assert_array_equal(np.isnan(v), beyond)


WRONG = {
    "a class": ({"reparam": Arctan}, "psi must be Arctan, .*found <class"),
    "a name": ({"reparam": "arctan"}, "found 'arctan'"),
    "unknown learn": ({"reparam": PSI, "learn": "coarse"}, "'none', 'fine', 'channel', found 'coarse'"),
    "unknown learn of a plain layer": ({"learn": "fnie"}, "found (None|'fnie')"),
    "a plain layer that learns": ({"learn": "fine"}, "None"),
    "fine PowerProp": ({"reparam": PowerProp(), "learn": "fine"}, "PowerProp has no a and b"),
    "channel WeightNorm": ({"reparam": WeightNorm(), "learn": "channel"}, "WeightNorm has no a and b"),
    "pair of PowerProp": ({"reparam": linen.LearnedPair(PowerProp())}, "PowerProp has no a and b"),
    "pair, and fine": ({"reparam": linen.LearnedPair(PSI), "learn": "fine"}, "LearnedPair"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_error_that_names_it(case):
    arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(linen.Dense(3, **arguments).init, KEY, jnp.zeros((1, 2)))


OTHER = [  # (the layer that made the parameters, the layer that gets them)
    ({}, {"reparam": PSI}),
    ({"reparam": PSI}, {}),
    ({"reparam": PSI}, {"reparam": Arctan(A, 2 * B)}),
    ({"reparam": PSI}, {"reparam": PSI, "learn": "fine"}),
    ({"reparam": PSI, "learn": "fine"}, {"reparam": PSI}),
    ({"reparam": PSI, "learn": "channel"}, {"reparam": PSI, "learn": "fine"}),
    ({"reparam": PSI}, {"reparam": WeightNorm()}),
    ({"reparam": linen.LearnedPair(PSI)}, {"reparam": PSI}),
]


@pytest.mark.parametrize("made_by, given_to", OTHER, ids=str)
def test_parameters_of_another_reparam_are_refused(made_by, given_to):
    x = jnp.zeros((1, 2))
    params = linen.Dense(3, **made_by).init(KEY, x)
    with pytest.raises((ValueError, flax.errors.ScopeParamShapeError), match="kernel"):
        linen.Dense(3, **given_to).apply(params, x)


def test_a_network_can_be_tabulated_and_is_traced_once():
    x, model = inputs((2, 4)), Stack("sequential", PSI)
    assert "pair" in model.tabulate(KEY, x, console_kwargs={"width": 200})
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(lambda params: model.apply({"params": params}, x), n=1))
    params = model.init(KEY, x)["params"]
    for factor in (1.0, 1.1, -1.0):  # a learned a below zero is no new program, and no error
        chex.assert_tree_all_finite(apply(jax.tree.map(lambda p, factor=factor: p * factor, params)))


SGD, ADAM, PSI64, DECAY = optax.sgd(0.1, momentum=0.9), optax.adam(1e-3), Arctan(0.9, 0.6), 1e-4
ON_W = optim.add_decayed_weights(DECAY)
SCALED = optim.scale_by_derivative(ADAM)
STEPS = {  # (reparam and learn of the layers, optimizer)
    "layers": (PSI64, "none", SGD),
    "layers, decay": (PSI64, "none", optax.chain(ON_W, SGD)),
    "layers, fine, decay": (PSI64, "fine", optax.chain(ON_W, SGD)),
    "layers, channel, decay": (PSI64, "channel", optax.chain(ON_W, SGD)),
    "layers, Adam": (PSI64, "none", optim.scale_by_derivative(optax.adamw(1e-3))),
    "layers, Adam, decay before": (PSI64, "none", optax.chain(ON_W, SCALED)),
    "compand": (None, "none", compand(SGD, PSI64, weight_decay=DECAY)),
    "compand, fine": (None, "none", compand(SGD, PSI64, weight_decay=DECAY, learn="fine")),
    "compand, channel": (None, "none", compand(SGD, PSI64, weight_decay=DECAY, learn="channel")),
    "compand, coarse": (None, "none", compand(SGD, PSI64, weight_decay=DECAY, learn="coarse")),
    "compand, Adam": (None, "none", compand(ADAM, PSI64, adaptive=True, weight_decay=DECAY)),
}


@pytest.mark.parametrize("form", STEPS)
def test_a_compiled_step_takes_one_arctangent_of_each_weight_and_writes_into_the_buffers_it_was_given(form):
    (reparam, learn, tx), x = STEPS[form], np.ones((2, 8, 8, 3))
    with jax.enable_x64(True):  # where it is an operation of its own in the compiled program
        layer = dict(reparam=reparam, learn=learn, param_dtype=jnp.float64)
        last = [lambda h: h.mean((1, 2)), linen.Dense(5, **layer)]
        # For a wider window XLA reverses v in place of w, if Ψ is one operation, as here but not in float32.
        model = nn.Sequential([linen.Conv(4, (1, 1), **layer), nn.relu, linen.Conv(4, (1, 1), **layer), *last])
        params = model.init(jax.random.key(0), x)
        state = tx.init(params)

        def step(params, state):
            grads = jax.grad(lambda p: jnp.mean(model.apply(p, x) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
    assert len(re.findall(r" atan2?\(", compiled.as_text())) == 3  # none in the backward pass, and none for the decay
    leaves = jax.tree.leaves((params, state))
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves)
