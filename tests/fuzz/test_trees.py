"""Any tree of parameters is companded, folded, described, saved and trained, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

import wcjax
from tests import truth
from tests.fuzz.ours import only_our_errors
from wcjax import exchange as io
from wcjax.params import is_kernel, is_reparameterized

PSIS = (*(psi.ours() for psi in truth.PSIS), wcjax.WeightNorm())
LEARN = ("none", "fine", "channel")
LEARNED = wcjax.Arctan(np.array(-0.4, np.float32), np.array(0.9, np.float32))  # a pair that weights can share
SHAPES = ((2, 3), (3, 2, 2), (0, 3), (3,), (), (1, 1))  # few, because JAX compiles for each
DTYPES = ("float32", "bfloat16", "float16", "int32", "bool", "complex64")
NAMES = ("kernel", "weight", "w", "bias", "scale", "a", "b", "v", "g", "psi", "v:w", "x/y", "norm", "0")
SPECIAL = (np.nan, np.inf, -np.inf, 1e30, 0.9424778, 2.0, -0.0, 1e-45)

names = st.sampled_from(NAMES) | st.text(max_size=4)
odd_names = names | st.integers(-1, 2) | st.none() | st.tuples(st.integers(0, 1))  # JAX cannot sort a mixture of them


@st.composite
def arrays(draw, dtypes=DTYPES):
    """An array of small numbers, one of which may be special."""
    shape, dtype = draw(st.sampled_from(SHAPES)), jnp.dtype(draw(st.sampled_from(dtypes)))
    x = np.random.default_rng(draw(st.integers(0, 99))).uniform(-0.5, 0.5, shape)
    if x.size and draw(st.integers(0, 3)) == 0:
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from(SPECIAL))
    with np.errstate(all="ignore"):
        return draw(st.sampled_from((np.asarray, jnp.asarray)))(x.astype(dtype))


def trees(leaves, names=names):
    def grow(inside):
        mapping = st.dictionaries(names, inside, max_size=3)
        module = st.fixed_dictionaries({"kernel": arrays(("float32",))}, optional={"bias": inside, "a": inside})
        return mapping | module | st.lists(inside, max_size=2) | st.tuples(inside)

    return st.recursive(leaves, grow, max_leaves=6)


odd_leaves = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.just(np.array([None, "x"]))
odd_trees = trees(arrays() | odd_leaves)
weights = st.builds(wcjax.Reparameterized, arrays(), st.none() | st.sampled_from((*PSIS[:-1], LEARNED)))
half_companded_trees = trees(arrays() | weights | weights | st.just(LEARNED))


def eps(x):
    return float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.floating) else 0.0


def widened(x):
    return np.asarray(x).astype(np.complex128) if hasattr(x, "dtype") and x.dtype != object else x


@given(
    trees(arrays(("float32", "bfloat16", "int32"))) | odd_trees,
    st.sampled_from(PSIS),
    st.sampled_from(LEARN),
)
def test_fold_undoes_reparameterize(tree, psi, learn):
    with only_our_errors():
        companded = wcjax.reparameterize(tree, psi, learn=learn)
        folded = wcjax.fold(companded)
        assert jax.tree.structure(folded) == jax.tree.structure(tree)
        at = jax.tree.leaves(companded, is_leaf=is_reparameterized)
        for (path, w), x, y in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(folded), at, strict=True):
            assert is_reparameterized(y) == is_kernel(path, w)
            if is_reparameterized(y):
                assert all(p.ndim == w.ndim for p in jax.tree.leaves(y.psi))
                assert (x.shape, x.dtype) == (w.shape, w.dtype)
                rtol = 4 * eps(w)
                if isinstance(psi, wcjax.PowerProp):  # rounding the exponent counts log |w| times
                    rtol *= max(1, np.log(np.max(np.abs(widened(w)), initial=1)))
                np.testing.assert_allclose(widened(x), widened(w), rtol=rtol, atol=1e-7)
            else:
                assert x is w is y


@given(half_companded_trees | odd_trees, st.sampled_from(PSIS), st.sampled_from(LEARN))
def test_weights_that_are_companded_already_stay(tree, psi, learn):
    with only_our_errors():
        wcjax.describe(tree, psi=psi)
    with only_our_errors():
        companded = wcjax.reparameterize(tree, psi, learn=learn)
        before, after = (jax.tree.leaves(x, is_leaf=is_reparameterized) for x in (tree, companded))
        for x, y in zip(before, after, strict=True):
            assert is_reparameterized(y) and (x is y or not is_reparameterized(x)) or x is y
    with only_our_errors():
        folded = wcjax.fold(tree)
        assert not any(map(is_reparameterized, jax.tree.leaves(folded, is_leaf=is_reparameterized)))
        weights = [x for x in jax.tree.leaves(tree, is_leaf=is_reparameterized) if is_reparameterized(x)]
        if all(x.psi for x in weights):
            expected = jax.tree.map(lambda x: x.w if is_reparameterized(x) else x, tree, is_leaf=is_reparameterized)
            same = lambda x, y: np.testing.assert_array_equal(widened(x), widened(y))  # NumPy's nan of bfloat16 differ
            jax.tree.map(same, folded, expected)


@settings(max_examples=settings.default.max_examples // 2)  # each new shape is compiled
@given(
    trees(arrays(("float32", "bfloat16"))) | trees(arrays() | st.none()),
    st.sampled_from(PSIS),
    st.sampled_from((*LEARN, "coarse")),
)
def test_compand_without_a_gradient_moves_nothing(tree, psi, learn):
    with only_our_errors():
        tx = wcjax.compand(optax.sgd(0.1), psi, learn=learn)
        state = tx.init(tree)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, tree), state, tree)
        for w, step in zip(jax.tree.leaves(tree), jax.tree.leaves(updates), strict=True):
            assert step.shape == w.shape
            assert np.all(np.abs(widened(step)) <= 4 * eps(w) * np.fmax(1, np.abs(widened(w))))


@given(trees(arrays(), odd_names) | odd_trees)
def test_a_saved_tree_comes_back_bit_by_bit(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "w.safetensors"
    with only_our_errors():
        io.save_safetensors(path, tree)
        loaded = dict(jax.tree_util.tree_leaves_with_path(io.load_safetensors(path)))
        saved = dict(jax.tree_util.tree_leaves_with_path(tree))
        assert loaded.keys() == saved.keys()
        for at, x in saved.items():
            x, y = np.asarray(x), loaded[at]
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
