"""Reparameterized weights, their Ψ and their layers through flax.serialization, Orbax and pickle."""

import pickle

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.processes import python
from wcjax import Arctan, Erf, WeightNorm, compand, linen, reparameterize

PSI = Arctan(0.6, 0.7)
PARAMS = {"layer": {"kernel": np.float32([[0.3, -0.5, 0.7], [-0.2, 0.1, -0.6]]), "bias": np.float32([0.1, -0.2, 0.3])}}


def layer(reparam, learn="none"):
    return linen.Dense(3, reparam=reparam, learn=learn, kernel_init=nn.initializers.zeros)


def trained(**settings):
    """The state of compand after an update."""
    tx = compand(optax.adam(0.1), PSI, adaptive=True, **settings)
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[1]


def by_flax(tree, _):
    return flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, tree), flax.serialization.to_bytes(tree))


def by_orbax(tree, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, jax.eval_shape(lambda: tree))


def by_pickle(tree, _):
    return pickle.loads(pickle.dumps(tree))


@pytest.mark.parametrize("restored", [by_flax, by_orbax, by_pickle])
def test_weights_and_states_are_restored_to_the_bit(tmp_path, restored):
    trees = [trained(learn=learn) for learn in ("none", "channel", "coarse")]
    trees += [reparameterize(PARAMS, psi, learn=learn) for psi, learn in ((PSI, "channel"), (WeightNorm(), "none"))]
    frozen = {"train": optax.sgd(0.1, momentum=0.9), "frozen": optax.set_to_zero()}  # its state has no v, a, b and g
    trees += [optax.multi_transform(frozen, jax.tree.map(lambda _: "frozen", x)).init(x) for x in trees[3:]]
    trees.append(layer(linen.LearnedPair(PSI)).init(jax.random.key(0), jnp.ones((1, 2)))["params"])
    with_array = Arctan(np.full((1, 1), 0.6, np.float32), 0.7)  # the Ψ of its state are without their learned arrays
    trees.append(compand(optax.sgd(0.1), with_array, learn="fine").init(PARAMS))
    chex.assert_trees_all_equal(restored(trees, tmp_path / "trees"), trees, strict=True)


COMPANDED, OTHER_PSI = reparameterize(PARAMS, PSI), "the state holds Arctan .*'a': 0.6, 'b': 0.7.*, but the target has"
NO_WEIGHT = "holds a plain array or None where the target has "
REFUSED = {  # what is saved, what it is restored into
    "a": (COMPANDED, reparameterize(PARAMS, Arctan(0.9, 0.7)), OTHER_PSI),
    "class": (COMPANDED, reparameterize(PARAMS, Erf(2.0, 0.7)), OTHER_PSI),
    "learned a": (COMPANDED, reparameterize(PARAMS, Arctan(jnp.float32(0.6), 0.7)), OTHER_PSI),
    "plain": (PARAMS, COMPANDED, NO_WEIGHT + "Reparameterized"),
    "where": (trained(where=lambda path, leaf: leaf.ndim == 1), trained(where=lambda *_: True), NO_WEIGHT + "Arctan"),
}


@pytest.mark.parametrize("saved, target, message", REFUSED.values(), ids=REFUSED)
def test_a_state_of_another_kind_is_refused(saved, target, message):
    with pytest.raises(ValueError, match=message):
        flax.serialization.from_bytes(target, flax.serialization.to_bytes(saved))


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
    python("-c", FLAX_AFTER_WCJAX)


class Doubled(linen.Dense):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_companded_layers_and_their_classes_pickle():
    assert pickle.loads(pickle.dumps(Doubled)) is Doubled
    for base in (nn.Dense, nn.ConvTranspose):
        cls = linen.companded(base)
        assert pickle.loads(pickle.dumps(cls)) is cls is linen.companded(base)
    assert pickle.loads(pickle.dumps(layer(PSI, "fine"))) == layer(PSI, "fine")
