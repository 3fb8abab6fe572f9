"""Trees: each selected weight becomes a Reparameterized, and fold makes exactly the plain tree again."""

import dataclasses
import re
from typing import NamedTuple

import chex
import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from wcjax import Arctan, Arsinh, Erf, PowerProp, Reparameterized, WeightNorm, fold, is_kernel, reparameterize
from wcjax.params import is_weight

A, B = 0.7, 1.3
PSI = Arctan(A, B)
LEARNED = Arctan(jnp.float32(-0.4), jnp.float32(2.0))  # a learned a may have crossed zero


def weights(*shape, scale=0.3):
    return jnp.asarray(np.random.default_rng(len(shape)).uniform(-scale, scale, shape), jnp.float32)


def network():
    return {
        "conv": {"kernel": weights(3, 3, 2, 4), "bias": weights(4)},
        "norm": {"scale": weights(4)},
        "head": [{"kernel": weights(4, 2)}, ({"w": weights(2, 2), "b": weights(2)}, {"weight": weights(3, 2)})],
        "empty": {},
        "none": None,
        "steps": jnp.arange(3),
    }


def reparameterized_paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_weight)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, x in leaves if is_weight(x)}


WAYS = [(psi, "none") for psi in (PSI, Arsinh(A, B), Erf(A, B), PowerProp(1.5), WeightNorm(), WeightNorm(axis=0))]
WAYS += [(cls(A, B), learn) for cls in (Arctan, Arsinh, Erf) for learn in ("fine", "channel")]
each_way = pytest.mark.parametrize(("psi", "learn"), WAYS, ids=str)


@each_way
def test_fold_undoes_reparameterize(psi, learn):
    plain = network()
    companded = reparameterize(plain, psi, learn=learn)
    assert reparameterized_paths(companded) == {"conv/kernel", "head/0/kernel", "head/1/0/w", "head/1/1/weight"}
    back = fold(companded)
    chex.assert_trees_all_equal_structs(back, plain)
    chex.assert_trees_all_close(back, plain, rtol=1e-6)
    for tree in (companded, back):
        assert tree["conv"]["bias"] is plain["conv"]["bias"] and tree["steps"] is plain["steps"]


def test_a_weight_holds_the_inverse_of_w_and_its_own_psi():
    plain = network()
    w = np.asarray(plain["conv"]["kernel"], np.float64)
    for learn, shape in (("fine", (1, 1, 1, 1)), ("channel", (1, 1, 1, 4))):
        weight = reparameterize(plain, PSI, learn=learn)["conv"]["kernel"]
        np.testing.assert_allclose(weight.v, B * np.tan(w / A), rtol=1e-5)
        chex.assert_trees_all_equal(weight.psi, Arctan(jnp.full(shape, A), jnp.full(shape, B)))
    constant = reparameterize(plain, PSI)["conv"]["kernel"]
    assert constant.psi == PSI and jax.tree.leaves(constant) == [constant.v]


def test_weight_norm_holds_the_norm_of_each_output_channel():
    w = np.asarray(network()["conv"]["kernel"], np.float64)
    for psi, axes in ((WeightNorm(), (0, 1, 2)), (WeightNorm(axis=0), (1, 2, 3)), (WeightNorm(axis=(0, -1)), (1, 2))):
        weight = reparameterize(network(), psi)["conv"]["kernel"]
        np.testing.assert_allclose(weight.psi.g, np.sqrt(np.sum(w**2, axis=axes, keepdims=True)), 1e-6)
        np.testing.assert_array_equal(weight.v, w)


def test_leaves_have_the_names_v_and_the_learned_arrays():
    companded = reparameterize({"x": {"kernel": weights(2, 2)}}, Arctan(jnp.float32(A), B))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(companded)]
    assert sorted(paths) == ["['x']['kernel'].psi.a", "['x']['kernel'].v"]


def test_a_users_own_parameters_of_any_name_are_left_alone():
    own = {name: weights(2, 2) for name in ("v", "a", "b", "g", "psi", "v:kernel", "a:kernel")}
    scalars = {"a": jnp.float32(2.0), "b": jnp.float32(3.0)}  # a module that holds an a and a b, and nothing else
    plain = {"x": {"kernel": weights(2, 2), **own}, "scalars": scalars, "v": weights(3, 2)}
    for psi, learn in WAYS:
        companded = reparameterize(plain, psi, learn=learn)
        for tree in (companded, fold(companded)):
            assert tree.keys() == plain.keys() and tree["x"].keys() == plain["x"].keys()
            assert all(tree["x"][name] is x for name, x in own.items())
            assert all(tree["scalars"][name] is x for name, x in scalars.items()) and tree["v"] is plain["v"]


def test_a_custom_where_chooses_the_weights():
    plain = {"embed": {"embedding": weights(5, 2)}, "dense": {"kernel": weights(2, 2), "bias": weights(2)}}
    companded = reparameterize(plain, PSI, where=lambda path, leaf: path[-1].key in ("embedding", "bias"))
    assert reparameterized_paths(companded) == {"embed/embedding", "dense/bias"}
    chex.assert_trees_all_close(fold(companded), plain, rtol=1e-6)


def test_a_second_reparameterize_takes_other_weights_only():
    plain = network()
    first = reparameterize(plain, PSI, where=lambda path, _: path[0].key == "conv", learn="fine")
    asked = []

    def where(path, leaf):
        asked.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return is_kernel(path, leaf)

    both = reparameterize(first, WeightNorm(), where)
    assert "head/0/kernel" in asked and not any("conv" in path for path in asked)
    assert both["conv"]["kernel"] is first["conv"]["kernel"]
    assert isinstance(both["head"][0]["kernel"].psi, WeightNorm)
    chex.assert_trees_all_close(fold(both), plain, rtol=1e-6)


def test_fold_takes_the_learned_values_and_not_those_it_started_from():
    v = weights(3, 2)
    tree = {"x": {"kernel": Reparameterized(v, LEARNED)}, "y": Reparameterized(v, WeightNorm(jnp.ones((1, 2))))}
    expected = {"x": {"kernel": -0.4 * jnp.arctan(v / 2)}, "y": v / jnp.sqrt(jnp.sum(v**2, 0))}
    chex.assert_trees_all_close(fold(tree), expected, rtol=1e-6)
    chex.assert_trees_all_equal(tree["x"]["kernel"].w, fold(tree)["x"]["kernel"])


SHARED = {
    "pair": {"psi": LEARNED},
    "x": {"kernel": Reparameterized(weights(3, 2), None), "bias": weights(2)},
    "y": {"z": {"kernel": Reparameterized(weights(2, 2, 2), None)}, "scale": jnp.float32(0), "empty": {}},
    "own": {"kernel": Reparameterized(weights(3, 2), Erf(A, B))},
}


def shared_by_hand(a, b):
    w = lambda weight: a * jnp.arctan(weight.v / b)
    return {
        "x": {"kernel": w(SHARED["x"]["kernel"]), "bias": SHARED["x"]["bias"]},
        "y": {"z": {"kernel": w(SHARED["y"]["z"]["kernel"])}, "scale": jnp.float32(0), "empty": {}},
        "own": {"kernel": A * jax.scipy.special.erf(weights(3, 2) / B)},
    }


@pytest.mark.parametrize("container", [dict, flax.core.freeze], ids=["dict", "FrozenDict"])
def test_weights_that_share_a_pair_fold_with_it_and_it_goes(container):
    found = fold(container(SHARED))
    chex.assert_trees_all_close(found, container(shared_by_hand(-0.4, 2.0)), rtol=1e-6)


def test_fold_of_stacked_networks_with_a_shared_pair_is_the_stack_of_their_folds():
    # As vmap over seeds makes them: a and b of shape (2,), each v with one more axis.
    other = jax.tree.map(lambda x: 1.5 * x, SHARED)
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    chex.assert_trees_all_close(fold(stack(SHARED, other)), stack(fold(SHARED), fold(other)), rtol=1e-6)


@each_way
@pytest.mark.parametrize("rows", [2, 3])
def test_fold_of_stacked_layers_is_the_stack_of_their_folds(psi, learn, rows):
    # nn.scan over depth and vmap over seeds stack every leaf. With three rows every axis has the same size.
    plain = jnp.stack([weights(rows, 3) * (i + 1) / 3 for i in range(3)])
    stacked = jax.vmap(lambda w: reparameterize({"kernel": w}, psi, learn=learn))(plain)
    stacked = jax.tree.map(lambda x: x * jnp.arange(1.0, 4).reshape(3, *[1] * (x.ndim - 1)), stacked)  # as learned
    rows = [fold(jax.tree.map(lambda x, i=i: x[i], stacked)) for i in range(3)]
    chex.assert_trees_all_close(fold(stacked), jax.tree.map(lambda *x: jnp.stack(x), *rows), rtol=1e-6)


class Pair(NamedTuple):
    first: dict
    second: dict


class Linear(nnx.Module):
    def __init__(self):
        self.linear = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))])
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(2))


def boxed():
    return {"x": {"kernel": nn.Partitioned(weights(2, 3), ("in", "out")), "bias": nn.Partitioned(weights(3), ("out",))}}


FRAMEWORKS = {  # a tree and its weights
    "named tuple": (lambda: Pair({"kernel": weights(2, 2)}, {"bias": weights(2)}), {"first/kernel"}),
    "list": (lambda: [weights(2, 2), [weights(2, 3)]], {"0", "1/0"}),
    "array": (lambda: weights(2, 2), {""}),
    "FrozenDict": (lambda: flax.core.freeze({"x": {"kernel": weights(2, 3)}}), {"x/kernel"}),
    "box": (boxed, {"x/kernel"}),
    "nnx state": (lambda: nnx.state(Linear(), nnx.Param), {"linear/0/kernel", "linear/1/kernel"}),
    "nnx pure dict": (lambda: nnx.to_pure_dict(nnx.state(Linear())), {"linear/0/kernel", "linear/1/kernel"}),
    "equinox": (
        lambda: eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)),  # with functions as leaves
        {"layers/0/weight", "layers/1/weight"},
    ),
    "equinox arrays": (
        lambda: eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array),
        {"layers/0/weight", "layers/1/weight"},
    ),
}
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def selection(framework):
    return (lambda path, leaf: True) if framework in ("list", "array") else is_kernel


@each_framework
@pytest.mark.parametrize("learn", ["none", "channel"])
def test_a_tree_of_any_framework_is_folded_to_exactly_itself(framework, learn):
    plain, expected = FRAMEWORKS[framework][0](), FRAMEWORKS[framework][1]
    companded = reparameterize(plain, PSI, selection(framework), learn)
    assert {path.removesuffix("/value") for path in reparameterized_paths(companded)} == expected
    back = fold(companded)
    assert type(back) is type(plain) and jax.tree.structure(back) == jax.tree.structure(plain)  # names in boxes too
    arrays = lambda tree: eqx.filter(tree, eqx.is_array)
    chex.assert_trees_all_close(arrays(back), arrays(plain), rtol=1e-6)


@each_framework
def test_gradients_through_fold_in_any_framework_are_those_of_psi(framework):
    params = eqx.filter(FRAMEWORKS[framework][0](), eqx.is_inexact_array)
    companded = reparameterize(params, PSI, selection(framework))
    loss = lambda params: sum(jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(params))
    gradient = jax.jit(jax.grad(lambda params: loss(fold(params))))(companded)
    assert jax.tree.structure(gradient) == jax.tree.structure(companded)
    updates, _ = optax.sgd(0.1).update(gradient, optax.sgd(0.1).init(companded), companded)
    moved = fold(optax.apply_updates(companded, updates))
    companded_count = 0
    for (path, w), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(moved), strict=True):
        w = np.asarray(w, np.float64)
        expected = w - 0.1 * np.cos(w)
        if selection(framework)(path, w):
            companded_count += 1
            v = B * np.tan(w / A)
            expected = A * np.arctan((v - 0.1 * A * B / (B**2 + v**2) * np.cos(w)) / B)
        np.testing.assert_allclose(new, expected, atol=1e-6)
    assert companded_count == len(FRAMEWORKS[framework][1])


def test_a_folded_nnx_state_merges_into_its_model():
    model = Linear()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    merged = nnx.merge(graph, fold(reparameterize(params, PSI)), rest)
    x = jnp.ones((2, 2))
    chex.assert_trees_all_close(merged.linear[0](x), model.linear[0](x), rtol=1e-5)


def test_a_box_stays_around_v_with_the_names_of_its_axes():
    weight = reparameterize(boxed(), PSI, learn="channel")["x"]["kernel"]
    assert weight.v.names == ("in", "out") and weight.v.value.shape == (2, 3)
    assert weight.psi.a.shape == (1, 3)
    assert weight.w.names == ("in", "out")


@each_way
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_alone_become_the_shapes_of_the_companded_tree(psi, learn, dtype):
    arrays = {"x": {"kernel": weights(3, 2).astype(dtype), "bias": weights(2)}}
    shapes = jax.eval_shape(lambda: arrays)
    companded, expected = reparameterize(shapes, psi, learn=learn), reparameterize(arrays, psi, learn=learn)
    chex.assert_trees_all_equal_shapes_and_dtypes(companded, expected)
    assert jax.tree.structure(companded) == jax.tree.structure(expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(fold(companded), arrays)
    assert fold(companded) == shapes  # still shapes, not arrays


def test_float64_weights_of_numpy_become_arrays_of_jax():
    weight = reparameterize({"kernel": np.full((2, 3), 0.3)}, PSI, learn="fine")["kernel"]
    assert weight.v.dtype == weight.psi.a.dtype == weight.w.dtype == jnp.float32
    with jax.enable_x64(True):
        weight = reparameterize({"kernel": np.full((2, 3), 0.3)}, PSI, learn="fine")["kernel"]
        assert weight.v.dtype == weight.psi.a.dtype == weight.w.dtype == jnp.float64
        np.testing.assert_allclose(weight.v, B * np.tan(0.3 / A), rtol=1e-15)


def test_reparameterize_and_fold_run_inside_jit():
    plain = {"kernel": weights(2, 3), "bias": weights(3)}
    companded = jax.jit(lambda p: reparameterize(p, PSI, learn="channel"))(plain)
    chex.assert_trees_all_close(companded, reparameterize(plain, PSI, learn="channel"), rtol=1e-6)
    chex.assert_trees_all_close(jax.jit(fold)(companded), plain, rtol=1e-6)


def test_a_tree_under_one_psi_does_not_load_under_another():
    params = {"kernel": weights(2, 2)}
    one, other = reparameterize(params, PSI), reparameterize(params, dataclasses.replace(PSI, b=1.0))
    assert jax.tree.structure(one) != jax.tree.structure(other)
    state = flax.serialization.to_state_dict(reparameterize(params, PSI, learn="fine"))
    restored = flax.serialization.from_state_dict(reparameterize(params, Arctan(2.0, 2.0), learn="fine"), state)
    chex.assert_trees_all_equal(restored, reparameterize(params, PSI, learn="fine"))  # learned values are loaded


SIZES = [0.096, 0.95, 0.96, 0.999, 1.0, 3.3, 9.51, 9.9, 9.9999, 9.999999, 99.5, 1234.5]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("cls", [Arctan, Erf])
def test_a_weight_beyond_the_bound_is_an_error_whose_a_fits(cls, dtype):
    for size in SIZES:  # of |w| / (bound at a = 1)
        tree = {"block": {"kernel": (jnp.array([[0.1, -1.0]]) * size * cls(1.0).bound).astype(dtype)}}
        largest = float(jnp.abs(tree["block"]["kernel"]).max())
        with pytest.raises(ValueError) as error:
            reparameterize(tree, cls(0.05, 2.0))
        message = str(error.value)
        assert f"block/kernel: largest |w| is {largest:.6g}, but {cls.__name__}(a=0.05, b=2)" in message
        reached = float(re.search(r"only reaches \|w\| < (\S+) in", message)[1])
        eps = float(jnp.finfo(dtype).eps)
        assert cls(0.05).bound * (1 - 5 * eps) < reached * (1 + 1e-5) and reached <= cls(0.05).bound * (1 + 1e-5)
        a = float(re.search(r"a >= (\S+),", message)[1])
        assert np.all(np.isfinite(reparameterize(tree, cls(a, 2.0))["block"]["kernel"].v))
        assert a < 1.2 * largest / cls(1.0).bound


@pytest.mark.parametrize("share", [1.0, np.nextafter(np.float32(1), np.float32(0)), 1.01])
def test_a_weight_at_the_bound_is_an_error(share):
    with pytest.raises(ValueError, match="kernel: largest"):
        reparameterize({"kernel": jnp.full((2, 2), np.float32(PSI.bound) * np.float32(share))}, PSI)


@pytest.mark.parametrize("a", [[0.9, 0.1], 0.1, -0.1], ids=str)
def test_the_bound_of_learned_arrays_is_checked_too(a):
    with pytest.raises(ValueError, match="x/kernel: largest .w. is 0.3, but Arctan"):
        reparameterize({"x": {"kernel": jnp.full((3, 2), 0.3)}}, Arctan(jnp.array(a), B))


W = weights(2, 2)
HOLE = {"kernel": W.at[0, 0].set(jnp.nan)}
EVERY = lambda path, leaf: True
MISTAKES = {
    "nan": (lambda: reparameterize({"x": HOLE}, PSI), "x/kernel: .*nan"),
    "overflow": (
        lambda: reparameterize({"x": {"kernel": W}}, Arsinh(1e-3)),  # sinh(300) is inf in float32
        r"x/kernel: Ψ⁻¹\(w\), or the norm of w, overflows for \|w\| = 0\.",
    ),
    "integers": (lambda: reparameterize({"x": jnp.ones((2, 2), int)}, PSI, EVERY), "x has dtype int32, .* real floats"),
    "complex": (lambda: reparameterize({"x": W.astype(complex)}, WeightNorm(), EVERY), "x has dtype complex64"),
    "text": (lambda: reparameterize({"x": "text"}, PSI, EVERY), "x is a str, .* real floats"),
    "nothing selected": (lambda: reparameterize({"x": {"bias": W}}, PSI), "selects no leaf of the 1 .x/bias"),
    "twice": (lambda: reparameterize(reparameterize({"kernel": W}, PSI), PSI), "selects no leaf of the 1 .kernel/v"),
    "unknown learn": (lambda: reparameterize({"kernel": W}, PSI, learn="coarse"), "'none', 'fine', 'channel', found"),
    "fine PowerProp": (lambda: reparameterize({"kernel": W}, PowerProp(), learn="fine"), "PowerProp has no a and b"),
    "fine WeightNorm": (lambda: reparameterize({"kernel": W}, WeightNorm(), learn="fine"), "WeightNorm has no a and b"),
    "array that does not fit": (
        lambda: reparameterize({"kernel": W}, Arctan(jnp.ones(99), B)),
        r"kernel: Arctan holds an array of shape \(99,\), which does not fit \(2, 2\)",
    ),
    "no Ψ": (lambda: reparameterize({"kernel": W}, None), "psi must be .* found None"),
    "a class": (lambda: reparameterize({"kernel": W}, Arctan), "psi must be .*class 'wcjax.reparam.Arctan'"),
    "fold a plain tree": (lambda: fold({"kernel": W}), "no wcjax.Reparameterized .* plain already"),
    "shared pair is not there": (lambda: fold({"x": SHARED["x"]}), "share one learned pair .* holds 0 pairs"),
    "two shared pairs": (lambda: fold({**SHARED, "other": LEARNED}), "share one learned pair .* holds 2 pairs"),
    "shared weight alone": (lambda: SHARED["x"]["kernel"].w, "shares its a and b .* fold the tree"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e30], ids=str)
def test_a_weight_whose_norm_is_not_finite_is_an_error(value):
    with pytest.raises(ValueError, match="x/kernel"):
        reparameterize({"x": {"kernel": W.at[0, 0].set(value)}}, WeightNorm())


KEYS = {
    "dict": ((DictKey("dense"), DictKey("kernel")), True),
    "haiku": ((DictKey("mlp/~/linear_0"), DictKey("w")), True),
    "equinox": ((GetAttrKey("layers"), SequenceKey(0), GetAttrKey("weight")), True),
    "nnx": ((DictKey("conv"), DictKey("kernel"), GetAttrKey("value")), True),
    "alone": ((DictKey("kernel"),), True),
    "equinox norm": ((GetAttrKey("norm1"), GetAttrKey("weight")), False),
    "equinox norms": ((GetAttrKey("norms"), SequenceKey(1), GetAttrKey("weight")), False),
    "equinox embedding": ((GetAttrKey("embedding"), GetAttrKey("weight")), False),
    "bias": ((DictKey("dense"), DictKey("bias")), False),
    "scale": ((DictKey("norm"), DictKey("scale")), False),
    "embedding": ((DictKey("embed"), DictKey("embedding")), False),
    "v": ((DictKey("dense"), DictKey("v")), False),
    "a module called kernel": ((DictKey("kernel"), DictKey("bias")), False),
    "value": ((DictKey("bias"), GetAttrKey("value")), False),
    "no name": ((SequenceKey(0),), False),
    "no path": ((), False),
}


@pytest.mark.parametrize("case", KEYS)
def test_is_kernel_by_path(case):
    path, expected = KEYS[case]
    assert is_kernel(path, jnp.ones((2, 2))) is expected
    assert not is_kernel(path, jnp.ones(2)) and not is_kernel(path, jnp.ones((2, 2), int)) and not is_kernel(path, None)
    assert is_kernel(path, jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)) is expected


def test_is_kernel_selects_the_kernels_of_flax_networks():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.BatchNorm(True)(nn.Conv(2, (2, 2))(nn.Embed(3, 2)(x))))
            return nn.Dense(3)(x)

    linen = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 4, 4), int))["params"]
    rngs = nnx.Rngs(0)
    model = nnx.List([nnx.Conv(2, 2, (2, 2), rngs=rngs), nnx.BatchNorm(2, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)])
    for params, count in ((linen, 2), (nnx.state(model), 2), (nnx.to_pure_dict(nnx.state(model)), 2)):
        chosen = [path for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_kernel(path, leaf)]
        assert len(chosen) == count and all("kernel" in jax.tree_util.keystr(path) for path in chosen)


def test_a_mask_can_hide_a_weight_of_a_companded_tree():
    hole = optax.MaskedNode()
    hidden = jax.tree.map(lambda _: hole, Reparameterized(W, LEARNED))
    tree = {"x": {"kernel": hidden}, "y": {"kernel": Reparameterized(W, LEARNED)}}
    found = fold(tree)
    assert found["x"]["kernel"] == hole
    chex.assert_trees_all_close(found["y"]["kernel"], -0.4 * jnp.arctan(W / 2), rtol=1e-6)
