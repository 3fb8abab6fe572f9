"""Layers that hold v, against the plain Flax layers and NumPy."""

import functools
from collections.abc import Callable

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.truth import Psi
from wcjax import Arctan, PowerProp, Reparameterized, WeightNorm, fold, linen, reparameterize

A, B = 1.6, 1.3
PSI = Arctan(A, B)
KEY = jax.random.key(0, impl="rbg")  # compiles faster than threefry
UNIFORM = nn.initializers.uniform(0.5)  # a random bias shows whether its key is that of the plain layer
DRAWN = {"kernel_init": UNIFORM, "bias_init": UNIFORM}

TURNED = {"features": 3, "kernel_size": (2,), "transpose_kernel": True}
LAYERS = {  # class, arguments, shape of the input; shape of a, b and g for each output channel
    "Dense": (nn.Dense, {"features": 3}, (2, 4), (1, 3)),
    "Conv": (nn.Conv, {"features": 3, "kernel_size": (2, 2)}, (2, 3, 3, 2), (1, 1, 1, 3)),
    "ConvTranspose": (nn.ConvTranspose, {"features": 3, "kernel_size": (2,)}, (2, 3, 2), (1, 1, 3)),
    "ConvTranspose, turned": (nn.ConvTranspose, TURNED, (2, 3, 2), (1, 3, 1)),
    "ConvLocal": (nn.ConvLocal, {"features": 3, "kernel_size": (2,)}, (2, 3, 2), (1, 1, 3)),
    "DenseGeneral": (nn.DenseGeneral, {"features": (3, 2), "axis": (-2, -1)}, (2, 4, 3), (1, 1, 3, 2)),
    "DenseGeneral of heads": (nn.DenseGeneral, {"features": (2, 3)}, (2, 4), (1, 2, 3)),
    "Einsum": (nn.Einsum, {"shape": (4, 3), "einsum_str": "...d,df->...f"}, (2, 4), (1, 3)),
    "Einsum, turned": (nn.Einsum, {"shape": (3, 4), "einsum_str": "...d, fd -> ...f"}, (2, 4), (3, 1)),
    "Einsum of an ellipsis": (nn.Einsum, {"shape": (2, 3, 4), "einsum_str": "bd,...d->b..."}, (2, 4), (2, 3, 1)),
    "DenseGeneral of a batch": (nn.DenseGeneral, {"features": np.int64(3), "batch_dims": 0}, (2, 4), (2, 1, 3)),
}
FORMS = {
    "fixed": lambda: {"reparam": PSI},
    "fine": lambda: {"reparam": PSI, "learn": "fine"},
    "channel": lambda: {"reparam": PSI, "learn": "channel"},
    "coarse": lambda: {"reparam": linen.LearnedPair(PSI)},
    "weightnorm": lambda: {"reparam": WeightNorm()},
}


def layer_of(name):
    return getattr(linen, name, None) or linen.companded(LAYERS[name][0])


def inputs(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def w_by_hand(params):
    """w of a layer's parameters, in NumPy float64."""
    kernel = params["kernel"]
    v, psi = np.float64(kernel.v), kernel.psi or params["reparam"]["psi"]
    if isinstance(psi, WeightNorm):
        summed = tuple(axis for axis, size in enumerate(psi.g.shape) if size == 1)
        return np.float64(psi.g) * v / np.sqrt(np.sum(v**2, axis=summed, keepdims=True))
    return Psi("arctan", np.float64(psi.a), np.float64(psi.b))(v)


CASES = [("Dense", form) for form in FORMS if form != "channel"] + [(name, "channel") for name in LAYERS]
CASES += [("ConvTranspose, turned", "weightnorm"), ("DenseGeneral of heads", "weightnorm")]


@pytest.mark.parametrize("name, form", CASES)
def test_a_layer_starts_with_the_plain_weights_and_computes_w(name, form):
    cls, arguments, shape, channels = LAYERS[name]
    x = inputs(shape)
    plain, layer = cls(**arguments, **DRAWN), layer_of(name)(**arguments, **DRAWN, **FORMS[form]())
    expected, params = jax.jit(lambda key: [model.init(key, x)["params"] for model in (plain, layer)])(KEY)
    assert params.keys() == {"kernel", "bias"} | ({"reparam"} if form == "coarse" else set())
    assert isinstance(params["kernel"], Reparameterized)
    learned = {"fine": (1,) * len(channels), "channel": channels, "weightnorm": channels}.get(form)
    assert {x.shape for x in jax.tree.leaves(params["kernel"].psi)} == ({learned} if learned else set())
    chex.assert_trees_all_close(params["bias"], expected["bias"], rtol=1e-6)
    np.testing.assert_allclose(w_by_hand(params), expected["kernel"], rtol=2e-6)

    rng = np.random.default_rng(1)  # a and b of each channel move by different amounts
    trained = jax.tree.map(lambda p: np.float32(np.asarray(p) * rng.uniform(0.8, 1.2, p.shape) + 0.01), params)
    by_hand = {"kernel": jnp.asarray(w_by_hand(trained), jnp.float32), "bias": trained["bias"]}
    folded, *outputs = jax.jit(
        lambda trained: (fold(trained), layer.apply({"params": trained}, x), plain.apply({"params": by_hand}, x))
    )(trained)
    chex.assert_trees_all_close(folded, by_hand, rtol=2e-6)
    chex.assert_trees_all_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_without_reparam_a_layer_compiles_to_the_flax_layer(name):
    cls, arguments, shape, _ = LAYERS[name]
    plain, layer = (c(**arguments, **DRAWN) for c in (cls, layer_of(name)))
    expected, program = (jax.make_jaxpr(model.init_with_output)(KEY, inputs(shape)) for model in (plain, layer))
    assert str(program) == str(expected)


class Small(nn.Module):
    """Layers that are named automatically."""

    layer: Callable  # what makes a layer of each Flax class

    @nn.compact
    def __call__(self, x):
        conv, dense = (self.layer(cls) for cls in (nn.Conv, nn.Dense))
        x = nn.LayerNorm()(conv(2, (2, 2))(conv(2, (2, 2))(x)))
        return dense(3)(dense(4)(x))


def test_folded_params_have_the_plain_networks_automatic_names():
    init = lambda layer: jax.eval_shape(Small(layer).init, KEY, jnp.zeros((1, 3, 3, 1)))["params"]
    plain = init(lambda cls: cls)
    folded = fold(init(lambda cls: functools.partial(linen.companded(cls), reparam=PSI)))
    chex.assert_trees_all_equal_shapes_and_dtypes(folded, plain)
    assert folded.keys() == {"Conv_0", "Conv_1", "LayerNorm_0", "Dense_0", "Dense_1"}


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
            return linen.Dense(2, reparam=pair, kernel_init=UNIFORM)(x)
        dense = functools.partial(nn.remat(linen.Dense), kernel_init=UNIFORM)
        return nn.Sequential([dense(4, reparam=pair), nn.tanh, dense(2, reparam=pair)])(x)


class ScanBody(nn.Module):
    @nn.compact
    def __call__(self, x, psi):
        return nn.tanh(linen.Dense(4, reparam=psi, kernel_init=UNIFORM)(x)), None


@pytest.mark.parametrize("how", ["remat", "scan"])
def test_a_learned_pair_is_one_pair_for_all_layers(how):
    x, learned, plain = inputs((2, 4)), Stack(how, PSI), Stack(how)
    params = jax.jit(learned.init)(KEY, x)["params"]
    chex.assert_trees_all_equal(params["pair"], {"psi": Arctan(jnp.float32(A), jnp.float32(B))})
    names = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert [names.count(jax.tree_util.GetAttrKey(name)) for name in "abv"] == [1, 1, 2]

    loss = lambda model, params: jnp.sum(jnp.sin(model.apply({"params": params}, x)))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def values_and_gradients(params):
        companded = jax.value_and_grad(lambda params: loss(learned, params))(params)
        return companded, jax.value_and_grad(lambda params: loss(plain, fold(params)))(params)

    for factor in (1.2, -1.0):  # a learned a below zero is neither a new program nor an error
        moved = jax.tree.map(lambda p, factor=factor: np.float32(np.asarray(p) * factor + 0.01), params)
        chex.assert_trees_all_close(*values_and_gradients(moved), rtol=1e-4, atol=1e-6)


STACKS = [("fixed", -1, 3), ("fine", 0, 3), ("channel", 1, 4), ("weightnorm", 1, 4)]  # in 4 every size fits every axis


@pytest.mark.parametrize("form, axis, length", STACKS)
def test_stacked_layers_are_folded_as_each_layer_by_itself(form, axis, length):
    class Layer(nn.Module):
        settings: dict

        @nn.compact
        def __call__(self, x, _):
            return linen.Dense(4, **self.settings, **DRAWN, name="dense")(x), None

    x, settings = jnp.ones((2, 4)), FORMS[form]()
    scanned = nn.scan(Layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=length)
    companded, plain = scanned(settings), scanned({})
    params, drawn = jax.jit(lambda: [stack.init(KEY, x, None)["params"] for stack in (companded, plain)])()
    make = lambda w: reparameterize({"kernel": w}, settings["reparam"], learn=settings.get("learn", "none"))
    made = jax.jit(jax.vmap(make, in_axes=axis, out_axes=axis))(drawn["dense"]["kernel"])
    chex.assert_trees_all_close(made["kernel"], params["dense"]["kernel"], rtol=1e-5)

    move = lambda p: np.float32(1.1 * np.asarray(p) + 0.01 * np.arange(p.size).reshape(p.shape) / p.size)
    params = jax.tree.map(move, params)
    apply = lambda stack, params: stack.apply({"params": params}, x, None)[0]
    by_layers, by_fold, folded = jax.jit(lambda p: (apply(companded, p), apply(plain, fold(p)), fold(p)))(params)
    np.testing.assert_allclose(by_layers, by_fold, rtol=1e-5, atol=1e-6)
    for i in range(length):
        layer, w = jax.tree.map(lambda x, i=i: np.take(np.asarray(x), i, axis), (params["dense"], folded["dense"]))
        np.testing.assert_allclose(w["kernel"], w_by_hand(layer), rtol=1e-5)


@pytest.mark.parametrize("name, form", [("Dense", "channel"), ("DenseGeneral", "weightnorm")])
def test_partitioning_names_stay_on_v(name, form):
    _, arguments, shape, _ = LAYERS[name]
    x, make = inputs(shape), lambda kernel_init: layer_of(name)(**arguments, kernel_init=kernel_init, **FORMS[form]())
    layer = make(nn.with_partitioning(UNIFORM, ("in", "out")))
    boxed = jax.eval_shape(layer.init, KEY, x)
    spec = nn.get_partition_spec(boxed)["params"]
    assert (spec["kernel"].v, spec["bias"]) == (PartitionSpec("in", "out"), PartitionSpec())
    assert set(jax.tree.leaves(spec["kernel"].psi)) == {PartitionSpec()}
    program = lambda function, *arguments: str(jax.make_jaxpr(function)(*arguments))
    assert program(layer.init, KEY, x) == program(make(UNIFORM).init, KEY, x)
    assert program(layer.apply, boxed, x) == program(layer.apply, nn.unbox(boxed), x)


def test_a_layer_that_asks_for_a_boxed_kernel_gets_boxed_w():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param("kernel", nn.with_partitioning(nn.initializers.ones, ("in", "out")), (2, 2), unbox=False)

    w, _ = jax.jit(linen.companded(Boxed)(reparam=PSI).init_with_output)(KEY)
    assert isinstance(w, nn.Partitioned) and w.names == ("in", "out")
    chex.assert_trees_all_close(w.value, jnp.ones((2, 2)), rtol=1e-6)


def test_only_initial_weights_beyond_the_bound_are_nan():
    w, psi = np.float32([[0.1, -0.4, 0.2], [0.4, -0.3, -0.1]]), Arctan(0.2, 1.0)
    layer = linen.Dense(3, reparam=psi, kernel_init=lambda *_: jnp.asarray(w))
    v = jax.jit(layer.init)(KEY, jnp.ones((1, 2)))["params"]["kernel"].v
    np.testing.assert_array_equal(np.isnan(v), np.abs(w) > psi.bound)


class OwnName(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 2))


def init(layer):
    return jax.eval_shape(layer.init, KEY, jnp.zeros((1, 2)))


def dense(**settings):
    return init(linen.Dense(3, **settings))


NO_KERNEL = "does not have its own parameter 'kernel'"


class Coder(nn.Module):
    @nn.compact
    def encode(self, x):
        return x @ self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 2))


def encode(**settings):
    layer = linen.companded(Coder)(**settings)
    return jax.eval_shape(functools.partial(layer.init, method="encode"), KEY, jnp.zeros((1, 2)))


class Members(nn.Module):
    """A pair that is an attribute of layers under nn.vmap, and of a layer that has as many outputs as they are."""

    @nn.compact
    def __call__(self, x):
        pair = linen.LearnedPair(PSI)
        dense = nn.vmap(linen.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
        return linen.Dense(2, reparam=pair)(dense(4, reparam=pair)(x))


WRONG = {
    "a class": (lambda: dense(reparam=Arctan), "psi must be Arctan, .*found <class"),
    "unknown learn of a plain layer": (lambda: dense(learn="coarse"), "'none', 'fine', 'channel', found 'coarse'"),
    "a plain layer that learns": (lambda: dense(learn="fine"), "None has no a and b"),
    "pair of PowerProp": (lambda: dense(reparam=linen.LearnedPair(PowerProp())), "PowerProp has no a and b"),
    "pair, and fine": (lambda: dense(reparam=linen.LearnedPair(PSI), learn="fine"), "LearnedPair"),
    "integers": (
        lambda: dense(reparam=PSI, param_dtype="int32", kernel_init=nn.initializers.ones),
        "kernel has dtype int",
    ),
    "complex pair": (
        lambda: dense(reparam=linen.LearnedPair(PSI), param_dtype="complex64"),
        "kernel has dtype complex64",
    ),
    "attention": (lambda: linen.companded(nn.MultiHeadDotProductAttention), f"{NO_KERNEL}; these do: Conv,"),
    "another name": (lambda: init(linen.companded(OwnName)(reparam=PSI)), f"OwnName {NO_KERNEL}"),
    "unknown learn of another method": (lambda: encode(reparam=PSI, learn="fnie"), "found 'fnie'"),
    "an equation at the call": (
        lambda: linen.companded(nn.Einsum)((2, 3), reparam=WeightNorm()).init(KEY, jnp.ones((1, 2)), "bd,df->bf"),
        "kernel: pass einsum_str to nn.Einsum",
    ),
    "companded twice": (lambda: linen.companded(linen.Dense), "Dense is companded already"),
    "a layer": (lambda: linen.companded(nn.Dense(2)), "takes a class of Flax Linen layers"),
    "a stack of pairs for one layer": (  # it would broadcast over the output channels
        lambda: jax.eval_shape(Members().init, KEY, jnp.zeros((2, 3, 4))),
        r"LearnedPair_0: the pair has the shape \(2,\).*hand `pair\(\)`",
    ),
}


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_an_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


OTHER = [  # (the layer that made the parameters, the layer that gets them)
    ({}, {"reparam": PSI}),
    ({"reparam": PSI}, {}),
    ({"reparam": PSI}, {"reparam": Arctan(A, 2 * B)}),
    ({"reparam": PSI, "learn": "fine"}, {"reparam": PSI}),
    ({"reparam": PSI, "learn": "channel"}, {"reparam": PSI, "learn": "fine"}),
    ({"reparam": linen.LearnedPair(PSI)}, {"reparam": PSI}),
]


@pytest.mark.parametrize("maker, user", OTHER, ids=str)
def test_parameters_of_another_reparam_are_refused(maker, user):
    with pytest.raises((ValueError, flax.errors.ScopeParamShapeError), match="kernel"):
        jax.eval_shape(linen.Dense(3, **user).apply, dense(**maker), jnp.zeros((1, 2)))
