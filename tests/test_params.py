"""Trees: each selected weight becomes a Reparameterized, and fold makes exactly the plain tree again."""

import collections
import dataclasses
import re

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

import wcjax
from tests.truth import PSIS, Psi
from wcjax import Arctan, Arsinh, Erf, Reparameterized, WeightNorm, fold, is_kernel, reparameterize
from wcjax.params import is_reparameterized
from wcjax.trees import path_str

PSI = PSIS[0]
LEARNED = Arctan(jnp.float32(-0.4), jnp.float32(2.0))  # a learned a may have crossed zero


def weights(*shape, scale=0.3):
    return jnp.asarray(np.random.default_rng(len(shape)).uniform(-scale, scale, shape), jnp.float32)


def network():
    return {
        "conv": {"kernel": weights(3, 3, 2, 4), "bias": weights(4)},
        "norm": {"scale": weights(4)},
        "head": [{"kernel": weights(4, 2)}, ({"w": weights(4, 2), "b": weights(2)}, {"weight": weights(4, 2)})],
        "empty": {},
        "none": None,
        "steps": jnp.arange(3),
    }


def names(tree):
    """Of the Reparameterized weights."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_reparameterized)
    return {path_str(path) for path, x in leaves if is_reparameterized(x)}


FORMS = {  # a, learn: the shapes of the learned a and b of a kernel (3, 3, 2, 4), None for a constant
    "none": (0.7, "none", (None, None)),
    "fine": (0.7, "fine", ((1, 1, 1, 1),) * 2),
    "channel": (0.7, "channel", ((1, 1, 1, 4),) * 2),
    "an array stays learned": (np.array(0.7), "none", ((1, 1, 1, 1), None)),
    "an array of channels": (np.full(4, 0.7), "fine", ((1, 1, 1, 4), (1, 1, 1, 1))),
    "an array for each weight": (np.full((3, 3, 2, 4), 0.7), "channel", ((3, 3, 2, 4), (1, 1, 1, 4))),
}


@pytest.mark.parametrize(
    "form, dtype", [(form, "float32") for form in FORMS] + [("channel", "float64"), ("channel", "bfloat16")]
)
def test_a_weight_holds_v_and_learned_arrays_of_its_rank(form, dtype):
    a, learn, shapes = FORMS[form]
    with jax.enable_x64(dtype == "float64"):
        w = np.asarray(weights(3, 3, 2, 4)).astype(dtype)
        weight = reparameterize({"kernel": w}, Arctan(a, 0.5), learn=learn)["kernel"]
        np.testing.assert_allclose(np.float64(weight.v), PSI.inverse(w), rtol=8 * float(jnp.finfo(dtype).eps))
        assert weight.v.dtype == weight.w.dtype == w.dtype
        for name, start, shape in zip("ab", (0.7, 0.5), shapes, strict=True):
            x = getattr(weight.psi, name)
            np.testing.assert_allclose(x, start, rtol=1e-7)
            learned = {"shape": shape, "dtype": np.dtype("float64" if dtype == "float64" else "float32")}
            assert isinstance(x, float) if shape is None else {"shape": x.shape, "dtype": x.dtype} == learned
        leaves = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weight)}
        assert leaves == {".v"} | {f".psi.{name}" for name, shape in zip("ab", shapes, strict=True) if shape}


@pytest.mark.parametrize("axis", [None, 0, (0, -1), ()])
def test_weight_norm_starts_at_w_for_any_output_axes(axis):
    w = weights(3, 3, 2, 4)
    weight = reparameterize({"kernel": w}, WeightNorm(axis=axis))["kernel"]
    outputs = np.arange(4)[[-1] if axis is None else np.atleast_1d(axis).astype(int)]
    summed = tuple(set(range(4)) - set(outputs.tolist()))
    np.testing.assert_allclose(weight.psi.g, np.sqrt(np.sum(np.float64(w) ** 2, axis=summed, keepdims=True)), 1e-6)
    assert len(jax.tree.leaves(weight)) == 2 and jax.tree.leaves(WeightNorm(axis=axis)) == []
    for v in (weight.v, 3 * weight.v):  # only the direction of v counts
        np.testing.assert_allclose(Reparameterized(v, weight.psi).w, w, rtol=1e-6)


def test_a_second_reparameterize_takes_other_weights_only():
    plain, asked = network(), []
    first = reparameterize(plain, PSI.ours(), where=lambda path, _: path[0].key == "conv", learn="fine")
    assert names(first) == {"conv/kernel", "conv/bias"}

    def where(path, leaf):
        asked.append(path_str(path))
        return is_kernel(path, leaf)

    both = reparameterize(first, WeightNorm(), where)
    assert "head/0/kernel" in asked and not any("conv" in path for path in asked)
    assert both["conv"]["kernel"] is first["conv"]["kernel"]
    assert isinstance(both["head"][0]["kernel"].psi, WeightNorm)
    chex.assert_trees_all_close(fold(both), plain, rtol=1e-6)


SHARED = {  # weights that share the pair of the module `pair`, next to one that has its own
    "pair": {"psi": LEARNED},
    "x": {"kernel": Reparameterized(weights(3, 2), None), "bias": weights(2)},
    "y": {"z": {"kernel": Reparameterized(weights(2, 2, 2), None)}, "scale": jnp.float32(0), "empty": {}},
    "own": {"kernel": Reparameterized(weights(3, 2), jax.tree.map(lambda x: x.reshape(1, 1), LEARNED))},
}


w_by_hand = lambda v: jnp.float32(Psi("arctan", -0.4, 2.0)(v))
SHARED_BY_HAND = {
    "x": {"kernel": w_by_hand(weights(3, 2)), "bias": weights(2)},
    "y": {"z": {"kernel": w_by_hand(weights(2, 2, 2))}, "scale": jnp.float32(0), "empty": {}},
    "own": {"kernel": w_by_hand(weights(3, 2))},
}


def test_fold_applies_and_removes_a_shared_pair():
    by_default = lambda tree: collections.defaultdict(dict, tree)
    for around in (lambda tree: tree, flax.core.freeze, by_default, lambda tree: ({"deep": [tree]}, {})):
        chex.assert_trees_all_close(fold(around(SHARED)), around(SHARED_BY_HAND), rtol=1e-6)
    stack = lambda *trees: jax.tree.map(lambda *x: np.stack(x), *trees)  # as vmap over seeds makes it
    other, folded = jax.tree.map(lambda x: 1.5 * x, SHARED), jax.jit(fold)
    chex.assert_trees_all_close(folded(stack(SHARED, other)), stack(folded(SHARED), folded(other)), rtol=1e-6)


def test_a_mask_can_hide_a_weight_of_a_companded_tree():
    hidden = jax.tree.map(lambda _: optax.MaskedNode(), SHARED["own"]["kernel"])
    folded = fold({"x": hidden, "y": SHARED["own"]["kernel"]})
    assert folded["x"] == optax.MaskedNode()
    chex.assert_trees_all_close(folded["y"], SHARED_BY_HAND["own"]["kernel"], rtol=1e-6)


WAYS = [(PSI.ours(), "none"), (PSI.ours(), "channel"), (PSIS[3].ours(), "none"), (WeightNorm(axis=0), "none")]


@pytest.mark.parametrize("psi, learn", WAYS, ids=str)
def test_shapes_alone_become_the_shapes_of_the_companded_tree(psi, learn):
    arrays = {"x": {"kernel": weights(3, 2).astype(jnp.bfloat16), "bias": weights(2)}}
    shapes, make = jax.eval_shape(lambda: arrays), lambda tree: reparameterize(tree, psi, learn=learn)
    companded, expected, inside_jit = make(shapes), make(arrays), jax.eval_shape(make, arrays)
    chex.assert_trees_all_equal_shapes_and_dtypes(companded, expected, inside_jit)
    assert jax.tree.structure(companded) == jax.tree.structure(expected)
    assert fold(companded) == shapes  # still shapes, not arrays


@pytest.mark.parametrize("cls, dtype", [(Arctan, jnp.float32), (Erf, jnp.bfloat16)])
def test_the_error_for_a_weight_beyond_the_bound_names_a_fit(cls, dtype):
    for size in (0.096, 0.95, 0.999, 1.0, 9.9999, 9.999999, 1234.5):
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


W = weights(2, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Getter:
    weight: jax.Array

    def get_value(self):
        return self.weight


def test_a_box_of_a_framework_may_hold_a_weight_already():
    weight = reparameterize({"kernel": W}, PSI.ours())["kernel"]
    params = reparameterize({"kernel": nnx.Param(weight), "layer": Getter(W)}, PSI.ours())
    chex.assert_trees_all_equal(params["kernel"].get_value(), weight)
    assert isinstance(params["layer"].weight, Reparameterized)
    plain = fold(params)
    chex.assert_trees_all_close((plain["kernel"].get_value(), plain["layer"].weight), (W, W), rtol=1e-6)


class Softsign(wcjax.psi.Elementwise):
    bound = 1.0
    offset: float = dataclasses.field(init=False, default=1.0)  # which the class holds, and not the instance

    def __call__(self, v):
        return v / (self.offset + jnp.abs(v))

    def inverse(self, w):
        return w / (1 - jnp.abs(w))

    def derivative(self, v):
        return 1 / jnp.square(1 + jnp.abs(v))


def test_a_user_defined_psi_is_folded_and_trained():
    params, w = {"kernel": W}, np.float64(W)
    chex.assert_trees_all_close(fold(reparameterize(params, Softsign())), params, rtol=1e-6)
    tx = wcjax.compand(optax.sgd(0.1), Softsign())
    updates, _ = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
    v = w / (1 - np.abs(w)) - 0.1 * (1 - np.abs(w)) ** 2
    np.testing.assert_allclose(updates["kernel"], v / (1 + np.abs(v)) - w, rtol=1e-5)


def test_weights_of_one_shape_share_a_trace_of_psi():
    shapes = []

    class Recorded(Softsign):
        def __call__(self, v):
            shapes.append(v.shape)
            return super().__call__(v)

    params = reparameterize({"first": {"kernel": W}, "second": {"kernel": W}}, Recorded())
    fold(params)
    jax.jit(fold)(params)
    assert shapes == [W.shape]


@jax.tree_util.register_pytree_node_class
class Nameless(list):
    """A container that JAX knows, but not the names in it, like those of Haiku."""

    tree_flatten = lambda self: (list(self), None)
    tree_unflatten = classmethod(lambda cls, _, leaves: cls(leaves))


class Variable:
    """A holder of an array that is no pytree, like a variable of Keras."""

    def __init__(self, value):
        self.value, self.shape, self.ndim, self.dtype = value, value.shape, value.ndim, value.dtype

    def __jax_array__(self):
        return self.value


def start(psi, w=W, name="kernel", **settings):
    return reparameterize({"x": {name: w}}, psi, **settings)


BELOW = np.nextafter(np.float32(PSI.bound), np.float32(0))
MISTAKES = {
    "nan": (lambda: start(PSI.ours(), W.at[0, 0].set(jnp.nan)), "x/kernel: .*nan"),
    "overflow": (  # sinh(300) is inf in float32
        lambda: start(Arsinh(1e-3)),
        r"x/kernel: Ψ⁻¹\(w\), or the norm of w, overflows for \|w\| = 0\.",
    ),
    "overflow in float16": (  # 3e4·tan(1.4) is 174,000
        lambda: start(Arctan(0.5, 3e4), jnp.full((2, 2), 0.7, jnp.float16)),
        r"overflows for \|w\| = 0.7.* under Arctan.* in float16. Choose a larger a, a smaller b",
    ),
    "norm that overflows": (lambda: start(WeightNorm(), W.at[0, 0].set(1e30)), "x/kernel: .*norm of w, overflows"),
    "one float below the bound": (lambda: start(PSI.ours(), jnp.full((3, 2), BELOW)), "kernel: largest"),
    "a NumPy scalar": (lambda: reparameterize(np.float32(3.0), PSI.ours(), lambda *_: True), "largest .w. is 3, but"),
    "bound of a channel": (lambda: start(Arctan(np.array([0.9, 0.1]), 1.0)), "x/kernel: largest .w. is 0.2.*, but Arc"),
    "bound of a negative a": (lambda: start(Arctan(np.array(-0.1), 1.0)), "x/kernel: largest .w. is 0.2.*, but Arctan"),
    "bound of a Ψ of one's own": (lambda: start(Softsign(), 9 * W), "but Softsign.* only reaches .* smaller weights"),
    "complex": (lambda: start(PSI.ours(), W + 1j, where=lambda *_: True), "x/kernel has dtype complex64, but only"),
    "a variable": (lambda: start(PSI.ours(), Variable(9 * W)), "x/kernel is a Variable, but only arrays"),
    "nothing selected": (lambda: start(PSI.ours(), name="bias"), "selects no leaf of the 1 .x/bias"),
    "entries without names": (lambda: start(PSI.ours(), Nameless([W, W])), "containers that do not name their entries"),
    "twice": (
        lambda: reparameterize(start(PSI.ours()), PSI.ours()),
        "no leaf of the 1 .* Reparameterized already: 1; fold the tree",
    ),
    "nothing to learn": (lambda: start(Softsign(), learn="fine"), "Softsign has no a and b to learn"),
    "array that does not fit": (
        lambda: start(Arctan(jnp.ones(99), 0.5)),
        r"kernel: Arctan holds an array of shape \(99,\), which does not fit \(2, 2\)",
    ),
    "a class": (lambda: start(Arctan), "psi must be .*class 'wcjax.reparam.Arctan'"),
    "fold a plain tree": (lambda: fold({"kernel": W}), "no wcjax.Reparameterized .* plain already"),
    "two shared pairs": (lambda: fold({**SHARED, "other": LEARNED}), "share one learned pair .* holds 2 pairs"),
    "shared weight alone": (lambda: SHARED["x"]["kernel"].w, "shares its a and b .* fold the tree"),
    "a learned pair elsewhere": (
        lambda: fold({"x": Reparameterized(W, jax.tree.map(lambda _: None, Arctan(jnp.ones(()), 0.6)))}),
        "learned a and b are in another part of the tree",
    ),
    "an axis that w lacks": (lambda: start(WeightNorm(axis=5)), "x/kernel: axis 5 is out of bounds"),
    "an axis that is text": (lambda: WeightNorm(axis="x"), "axis must be an int or several of them, found 'x'"),
    "where gives an array": (
        lambda: start(PSI.ours(), where=lambda _, x: x > 0),
        "must return True or False .* returned a value of type ArrayImpl for x/kernel",
    ),
    "where gives text": (lambda: start(PSI.ours(), where=lambda *_: "no"), "returned a value of type str"),
    "describe with Ψ second": (lambda: wcjax.describe({"kernel": W}, PSI.ours()), "`where` must be a function"),
    "describe of complex weights": (
        lambda: wcjax.describe({"x": W + 1j}, where=lambda *_: True),
        "x has dtype complex64, but only",
    ),
    "another byte order": (lambda: start(PSI.ours(), np.ones((2, 2), ">f4")), "kernel has dtype >f4, but only"),
    "floats of 80 bits": (lambda: start(PSI.ours(), np.ones((2, 2), np.longdouble)), "kernel has dtype float128, but"),
    "describe with a class": (lambda: wcjax.describe({"kernel": W}, psi=Arctan), "psi must be"),
}


@pytest.mark.parametrize("call, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


KERNELS = ["dense/kernel", "mlp/~/linear_0/w", ".layers/0/.weight", "conv/kernel/.value", "kernel"]
OTHERS = [".norm1/.weight", ".norms/1/.weight", ".embedding/.weight", "dense/bias", "norm/scale", "embed/embedding"]
OTHERS += ["dense/v", "kernel/bias", "bias/.value", "attention/w/value", "0", ""]


@pytest.mark.parametrize("names, expected", [*((x, True) for x in KERNELS), *((x, False) for x in OTHERS)])
def test_is_kernel_decides_by_path(names, expected):  # .name: an attribute; a number: an index
    key = lambda x: GetAttrKey(x[1:]) if x[0] == "." else SequenceKey(int(x)) if x.isdigit() else DictKey(x)
    path = tuple(map(key, filter(None, names.split("/"))))
    assert is_kernel(path, jnp.ones((2, 2))) is is_kernel(path, jax.ShapeDtypeStruct((2, 2), "bfloat16")) is expected
    assert not any(is_kernel(path, x) for x in (jnp.ones(2), jnp.ones((2, 2), int), None))


def test_describe_prints_counts_and_shares_of_the_bound(capsys):
    plain = {"bias": np.ones(3), "kernel": np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]]), "out": {"w": -W}}
    wcjax.describe(plain, psi=Arctan(0.9, 0.6))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == ["bias (3,)", "kernel (2, 3) yes 0.7 49.5%"]
    assert lines[-1] == "2 of 3 leaves companded: 10 of 13 parameters."
    wcjax.describe(reparameterize({"kernel": jnp.full((2, 2), 0.3)}, Arctan(jnp.float32(-0.6), 0.6)))
    assert "31.8%" in capsys.readouterr().out  # of the bound |a|·π/2
    for psi, share in ((Arsinh(0.9, 0.6), ""), (Arctan(jnp.ones(5), 0.6), "arrays do not fit")):
        wcjax.describe({"kernel": plain["kernel"]}, psi=psi)
        assert capsys.readouterr().out.splitlines()[1].split("0.7")[1].strip() == share
