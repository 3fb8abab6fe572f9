"""Reparameterized weights, their Ψ and their layers through flax.serialization and pickle."""

import pickle
import subprocess
import sys

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wcjax import Arctan, Erf, WeightNorm, compand, linen, reparameterize

PSI = Arctan(0.6, 0.7)
PARAMS = {"layer": {"kernel": np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]]), "bias": np.float32([0.1, -0.2, 0.3])}}


def layer(reparam, learn="none"):
    return linen.Dense(3, reparam=reparam, learn=learn, kernel_init=nn.initializers.zeros)


def test_flax_serialization_restores_to_the_bit_or_refuses():
    trees = [layer(linen.LearnedPair(PSI)).init(jax.random.key(0), jnp.ones((1, 2)))["params"]]
    trees += [reparameterize(PARAMS, psi, learn=learn) for psi, learn in ((PSI, "channel"), (WeightNorm(), "none"))]
    for learn in ("none", "channel", "coarse"):
        tx = compand(optax.adam(0.1), PSI, adaptive=True, learn=learn)
        trees.append(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[1])
    psi = Arctan(np.full((1, 1), 0.6, np.float32), 0.7)
    trees.append(
        compand(optax.sgd(0.1), psi, learn="fine").init(PARAMS)
    )  # its Ψ are without the arrays that are learned
    for weight_norm in (False, True):
        params = reparameterize(PARAMS, WeightNorm() if weight_norm else PSI, learn="none" if weight_norm else "fine")
        frozen = jax.tree.map(lambda _: "frozen", params)
        some = {"train": optax.sgd(0.1, momentum=0.9), "frozen": optax.set_to_zero()}
        trees.append(optax.multi_transform(some, frozen).init(params))
    for tree in trees:
        blank = jax.tree.map(jnp.zeros_like, tree)
        chex.assert_trees_all_equal(flax.serialization.from_bytes(blank, flax.serialization.to_bytes(tree)), tree)
    saved = flax.serialization.to_bytes(reparameterize(PARAMS, PSI))
    for other in (Arctan(0.9, 0.7), Erf(2.0, 0.7), Arctan(jnp.float32(0.6), 0.7)):
        with pytest.raises(ValueError, match="the state holds Arctan .*'a': 0.6, 'b': 0.7.*, but the target has"):
            flax.serialization.from_bytes(reparameterize(PARAMS, other), saved)


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="holds a plain array or None where the target has Reparameterized"):
        flax.serialization.from_bytes(reparameterize(PARAMS, PSI), flax.serialization.to_bytes(PARAMS))
    none, all_of = (compand(optax.sgd(0.1), PSI, where=where).init(PARAMS) for where in (is_bias, lambda *_: True))
    with pytest.raises(ValueError, match="holds a plain array or None where the target has Arctan"):
        flax.serialization.from_bytes(all_of, flax.serialization.to_bytes(none))


def is_bias(path, leaf):
    return leaf.ndim == 1


FLAX_AFTER_WCJAX = """
import sys
import jax, jax.numpy as jnp
import wcjax

assert "flax" not in sys.modules
params = wcjax.reparameterize({"kernel": jnp.full((2, 2), 0.1)}, wcjax.Arctan(0.6, 0.6))
import flax.serialization
restored = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, params), flax.serialization.to_bytes(params))
assert (restored["kernel"].v == params["kernel"].v).all()
"""


def test_flax_serialization_may_be_imported_afterwards():
    subprocess.run([sys.executable, "-c", FLAX_AFTER_WCJAX], check=True)


class Doubled(linen.Dense):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_companded_layers_and_their_classes_pickle():
    assert pickle.loads(pickle.dumps(Doubled)) is Doubled
    for base in (nn.Dense, nn.ConvTranspose):
        cls = linen.companded(base)
        assert pickle.loads(pickle.dumps(cls)) is cls is linen.companded(base)
    weights = reparameterize(PARAMS, Arctan(jnp.ones(()), 0.5))
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(weights)), weights)
    assert pickle.loads(pickle.dumps(layer(PSI, "fine"))) == layer(PSI, "fine")
