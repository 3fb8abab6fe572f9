"""Errors and entry points that users asked for: wrong uses of optax and Flax, and networks of their own."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from wcjax import Arctan, compand, models, reparameterize
from wcjax.errors import InputError
from wcjax.models import resnet, vgg

PSI = Arctan(0.6, 0.6)
PARAMS = {"kernel": jnp.full((2, 2), 0.1)}


def test_inject_hyperparams_without_static_args_names_them():
    tx = optax.inject_hyperparams(compand)(optax.sgd(0.1), PSI, weight_decay=0.01)
    with pytest.raises(ValueError, match=r"Under optax.inject_hyperparams pass static_args=\('inner', 'psi', "):
        tx.init(PARAMS)


def test_a_tree_that_is_reparameterized_already_is_said_to_be():
    with pytest.raises(ValueError, match="selects no leaf .* Reparameterized already: 1; fold the tree"):
        reparameterize(reparameterize(PARAMS, PSI), Arctan(0.9, 0.9))


FLAX_AFTER_WCJAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
import wcjax

assert "flax" not in sys.modules
params = wcjax.reparameterize({"kernel": jnp.full((2, 2), 0.1)}, wcjax.Arctan(0.6, 0.6), learn="fine")
import flax.serialization
restored = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, params), flax.serialization.to_bytes(params))
assert jax.tree.structure(restored) == jax.tree.structure(params)
assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(params)))
"""


def test_flax_serialization_may_be_imported_after_the_first_reparameterize():
    subprocess.run([sys.executable, "-c", FLAX_AFTER_WCJAX], check=True)


def test_reparameterize_works_without_flax(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    reparameterize(PARAMS, PSI)


def test_a_line_in_the_table_makes_a_network(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", functools.partial(resnet.ResNet, stages=(), block=resnet.BasicBlock))
    monkeypatch.setitem(models.NETWORKS, "thin", functools.partial(vgg.VGG, stages=(1,) * 5, width=8))
    assert {"tiny", "thin"} < set(models.NAMES)
    assert models.options("tiny") == ("stem", "kernel_init") and models.options("thin") == ("dropout",)
    model = models.create("tiny", 3, PSI, "coarse", stem="imagenet")
    assert jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]["pair"]
    with pytest.raises(InputError, match="unknown option of thin 'stem'. Known: dropout."):
        models.create("thin", 3, stem="cifar")
