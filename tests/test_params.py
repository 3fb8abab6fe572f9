"""Trees: plain to companded and back, which leaves are kernels, and the Ψ of every leaf."""

import re
from typing import NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from wcjax import Arctan, Arsinh, Erf, PowerProp, WeightNorm, fold, is_kernel, reparameterize
from wcjax.params import Learned, psi_tree

A, B = 0.7, 1.3
PSI = Arctan(A, B)


def weights(*shape, scale=0.3):
    return jnp.asarray(np.random.default_rng(len(shape)).uniform(-scale, scale, shape), jnp.float32)


def network():
    return {
        "conv": {"kernel": weights(3, 3, 2, 4), "bias": weights(4)},
        "norm": {"scale": weights(4)},
        "head": [{"kernel": weights(4, 2)}, ({"w": weights(2, 2), "b": weights(2)}, {"weight": weights(3, 2)})],
        "empty": {},
        "steps": jnp.arange(3),
    }


@pytest.mark.parametrize("learn", ["none", "fine"])
@pytest.mark.parametrize("psi", [PSI, Arsinh(A, B), Erf(A, B), PowerProp(1.5), WeightNorm()], ids=repr)
def test_fold_undoes_reparameterize(psi, learn):
    if learn == "fine" and not hasattr(psi, "a"):
        pytest.skip("nothing to learn")
    plain, container = network(), flax.core.freeze if learn == "fine" else dict
    companded = reparameterize(container(plain), psi, learn=learn)
    back = fold(container(companded), psi)
    chex.assert_trees_all_equal_structs(back, plain)
    chex.assert_trees_all_close(back, plain, rtol=1e-6)
    for untouched in ("norm", "empty", "steps"):
        chex.assert_trees_all_equal(companded[untouched], plain[untouched])


def test_v_is_the_inverse_of_w_and_the_name_says_the_form():
    plain = network()
    companded = reparameterize(plain, PSI, learn="fine")
    assert set(companded["conv"]) == {"v", "a", "b", "bias"}
    assert set(companded["head"][1][0]) == {"v:w", "a:w", "b:w", "b"}  # 'b' is still the plain bias
    assert set(companded["head"][1][1]) == {"v:weight", "a:weight", "b:weight"}
    chex.assert_trees_all_close(companded["conv"]["v"], B * jnp.tan(plain["conv"]["kernel"] / A), rtol=1e-5)
    chex.assert_trees_all_equal(companded["conv"]["a"], jnp.float32(A))
    normed = reparameterize(plain, WeightNorm())
    assert set(normed["conv"]) == {"v", "g", "bias"}
    np.testing.assert_allclose(
        normed["conv"]["g"], np.linalg.norm(plain["conv"]["kernel"].reshape(-1, 4), axis=0), 1e-6
    )


def test_a_custom_where_chooses_the_weights():
    plain = {"embed": {"embedding": weights(5, 2)}, "dense": {"kernel": weights(2, 2), "bias": weights(2)}}
    companded = reparameterize(plain, PSI, where=lambda path, leaf: path[-1].key in ("embedding", "bias"))
    assert set(companded["embed"]) == {"v:embedding"} and set(companded["dense"]) == {"kernel", "v:bias"}
    chex.assert_trees_all_close(fold(companded, PSI), plain, rtol=1e-6)


def test_fold_takes_the_learned_values_and_not_those_it_started_from():
    v = weights(3, 2)
    own = {"v": v, "a": jnp.float32(-0.2), "b": jnp.float32(3.0)}  # a learned a may have crossed zero
    chex.assert_trees_all_close(fold({"x": own}, PSI), {"x": {"kernel": -0.2 * jnp.arctan(v / 3)}}, rtol=1e-6)
    shared = {"pair": {"a": jnp.float32(0.4), "b": jnp.float32(2.0)}, "x": {"v": v}, "y": {"z": {"v": 2 * v}}}
    expected = {"x": {"kernel": 0.4 * jnp.arctan(v / 2)}, "y": {"z": {"kernel": 0.4 * jnp.arctan(v)}}}
    chex.assert_trees_all_close(fold(shared, PSI), expected, rtol=1e-6)


@pytest.mark.parametrize("psi, rows", [(PSI, 2), (PSI, 3), (WeightNorm(), 2), (WeightNorm(), 3)], ids=repr)
def test_fold_of_stacked_layers_is_the_stack_of_their_folds(psi, rows):
    # nn.scan over depth and vmap over seeds stack every leaf, a and b and g too.
    single = [{"x": {"kernel": weights(rows, 3) * (i + 1)}} for i in range(3)]
    learn = "none" if isinstance(psi, WeightNorm) else "fine"
    companded = [
        jax.tree.map(lambda x, i=i: x * (1 + i), reparameterize(p, psi, learn=learn)) for i, p in enumerate(single)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *companded)
    folded = jax.tree.map(lambda *x: jnp.stack(x), *[fold(c, psi) for c in companded])
    chex.assert_trees_all_close(fold(stacked, psi), folded, rtol=1e-6)


def test_fold_of_stacked_networks_with_a_shared_pair_is_the_stack_of_their_folds():
    # vmap over seeds; silently taking psi's own a and b instead would be wrong.
    member = lambda a: {"pair": {"a": jnp.float32(a), "b": jnp.float32(2.0)}, "x": {"v": weights(2, 2)}}
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    found = fold(stack(member(0.4), member(-0.9)), PSI)
    chex.assert_trees_all_close(found, stack(fold(member(0.4), PSI), fold(member(-0.9), PSI)), rtol=1e-6)


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
        assert f"only reaches |w| < {cls(0.05).bound:.6g}" in message
        a = float(re.search(r"a >= (\S+),", message)[1])
        assert np.all(np.isfinite(reparameterize(tree, cls(a, 2.0))["block"]["v"]))
        assert a < 1.2 * largest / cls(1.0).bound


@pytest.mark.parametrize("share", [1.0, np.nextafter(np.float32(1), np.float32(0)), 1.01])
def test_a_weight_at_the_bound_is_an_error(share):
    with pytest.raises(ValueError, match="kernel: largest"):
        reparameterize({"kernel": jnp.full((2, 2), np.float32(PSI.bound) * np.float32(share))}, PSI)


W = weights(2, 2)
MISTAKES = {
    "nan": (lambda: reparameterize({"x": {"kernel": W.at[0, 0].set(jnp.nan)}}, PSI), "x/kernel: .*nan"),
    "nan in a norm": (
        lambda: reparameterize({"x": {"kernel": W.at[0, 0].set(jnp.nan)}}, WeightNorm()),
        "x/kernel: .*nan",
    ),
    "norm overflows": (
        lambda: reparameterize({"x": {"kernel": W.at[0, 0].set(1e30)}}, WeightNorm()),
        r"x/kernel: Ψ⁻¹\(w\) overflows for \|w\| = 1e\+30",
    ),
    "text for v": (lambda: fold({"v": "text"}, PSI), r"'v' and its g, a and b must be float arrays"),
    "complex v": (lambda: fold({"v": W.astype(complex)}, PSI), r"'v' and .*; found complex64\("),
    "a of another shape": (
        lambda: fold({"v": W, "a": jnp.ones(99), "b": jnp.ones(99)}, PSI),
        r"'v' and its g, a and b must be float arrays, the latter of fitting shapes; found float32\(.*float32\(99,",
    ),
    "overflow": (lambda: reparameterize({"x": {"kernel": W}}, Arsinh(1e-3)), "x/kernel"),  # sinh(300) is inf in float32
    "nothing selected": (lambda: reparameterize({"x": {"bias": W}}, PSI), "selects none of the 1 leaves .x/bias"),
    "twice": (lambda: reparameterize(reparameterize({"x": {"kernel": W}}, PSI), PSI), "x/v: .*companded already"),
    "twice, other name": (lambda: reparameterize(reparameterize({"w": W}, PSI), PSI), "v:w: .*companded already"),
    "a taken": (lambda: reparameterize({"kernel": W, "a": W}, PSI, learn="fine"), "kernel: the names .*'a'.* taken"),
    "g taken": (lambda: reparameterize({"kernel": W, "g": W}, WeightNorm()), "kernel: the names .*'g'.* taken"),
    "box": (lambda: reparameterize({"x": nn.Partitioned(W, (None, None))}, PSI), "x is a Partitioned.*Unbox"),
    "fold a box": (lambda: fold({"x": {"v": nn.Partitioned(W, (None, None))}}, PSI), "Partitioned.*Unbox"),
    "unknown learn": (lambda: reparameterize({"kernel": W}, PSI, learn="coarse"), "'none', 'fine', found 'coarse'"),
    "fine PowerProp": (lambda: reparameterize({"kernel": W}, PowerProp(), learn="fine"), "PowerProp has no a and b"),
    "fine WeightNorm": (lambda: reparameterize({"kernel": W}, WeightNorm(), learn="fine"), "WeightNorm has no a and b"),
    "fold a plain tree": (lambda: fold({"kernel": W}, PSI), "plain already"),
    "two shared pairs": (
        lambda: fold({"p": {"a": 1.0, "b": 1.0}, "q": {"a": 1.0, "b": 1.0}, "v": W}, PSI),
        "more than one",
    ),
    # These names would be read as learned values, and lost by fold.
    "a, b beside": (lambda: reparameterize({"kernel": W, "a": W[0], "b": W[0]}, PSI), "kernel: the names .* taken"),
    "a module of a, b": (lambda: reparameterize({"x": {"kernel": W}, "s": {"a": W[0, 0], "b": W[0, 0]}}, PSI), "s"),
    # A tree that was made with another Ψ.
    "g left over": (lambda: fold(reparameterize({"x": {"kernel": W}}, WeightNorm()), PSI), "x.*g"),
    "g missing": (lambda: fold(reparameterize({"x": {"kernel": W}}, PSI), WeightNorm()), "x.*g"),
    "a unexpected": (lambda: fold(reparameterize({"x": {"kernel": W}}, PSI, learn="fine"), PowerProp()), "PowerProp"),
    "not a Ψ": (lambda: reparameterize({"kernel": W}, None), "None"),
    "a class": (lambda: fold({"v": W}, Arctan), "Arctan"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_named_tuple_of_modules_is_kept():
    class Pair(NamedTuple):
        first: dict
        second: dict

    plain = Pair({"kernel": W}, {"kernel": 2 * W})
    chex.assert_trees_all_close(fold(reparameterize(plain, PSI), PSI), plain, rtol=1e-6)


LINEN = nn.Sequential([nn.Conv(2, (2, 2)), nn.BatchNorm(True), nn.Dense(3), nn.LayerNorm(), nn.Embed(3, 2)])
KEYS = {
    "dict": ((DictKey("dense"), DictKey("kernel")), True),
    "haiku": ((DictKey("mlp/~/linear_0"), DictKey("w")), True),
    "equinox": ((GetAttrKey("layers"), SequenceKey(0), GetAttrKey("weight")), True),
    "nnx": ((DictKey("conv"), DictKey("kernel"), GetAttrKey("value")), True),
    "nnx, older": ((DictKey("conv"), DictKey("kernel"), GetAttrKey("raw_value")), True),
    "alone": ((DictKey("kernel"),), True),
    "equinox norm": ((GetAttrKey("norm1"), GetAttrKey("weight")), False),
    "equinox norms": ((GetAttrKey("norms"), SequenceKey(1), GetAttrKey("weight")), False),
    "equinox embedding": ((GetAttrKey("embedding"), GetAttrKey("weight")), False),
    "bias": ((DictKey("dense"), DictKey("bias")), False),
    "scale": ((DictKey("norm"), DictKey("scale")), False),
    "embedding": ((DictKey("embed"), DictKey("embedding")), False),
    "companded": ((DictKey("dense"), DictKey("v")), False),
    "a module called kernel": ((DictKey("kernel"), DictKey("bias")), False),
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


def test_psi_tree_gives_each_leaf_its_own_psi():
    one, two = jnp.float32(1.0), jnp.float32(2.0)
    pair = {"a": one, "b": two}
    own = psi_tree({"x": {"v": W, **pair, "bias": one}, "y": {"v:w": W, "b": one}, "z": [{"kernel": W}]}, PSI)
    assert own == {"x": {"v": Arctan(one, two), "a": Learned(), "b": Learned(), "bias": None},
                   "y": {"v:w": PSI, "b": None}, "z": [{"kernel": None}]}  # fmt: skip
    assert own["y"]["v:w"] is PSI
    shared = psi_tree({"pair": pair, "x": {"v": W}, "y": {"v": W, "a": two, "b": one}}, PSI)
    assert shared["pair"] == {"a": Learned(), "b": Learned()}
    assert shared["x"]["v"] == Arctan(one, two) and shared["y"]["v"] == Arctan(two, one)


def test_psi_tree_leaves_masked_leaves_alone():
    hole = optax.MaskedNode()
    assert psi_tree({"x": {"v": W, "bias": hole}, "y": hole}, PSI) == {"x": {"v": PSI, "bias": hole}, "y": hole}
    assert psi_tree({"x": {"v": W, "a": hole, "b": hole}}, PSI)["x"]["v"] == Arctan(hole, hole)
    assert psi_tree(W, PSI) is None
