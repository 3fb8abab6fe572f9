"""What eight simulated devices do as one device does: python -m tests.training.eight_devices steps|compand"""

import functools
import sys
import unittest
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import wcjax
from benchmarks.hlo import collective_arrays
from tests import truth
from tests.training import runs
from wcjax.config import check_config
from wcjax.config.build import load_dataset
from wcjax.training import compilation, feed, sharding
from wcjax.training.progress import Progress
from wcjax.training.run import Run


def compare_batches(run, alone):
    """Eight devices gather the batches of one, each its own rows."""
    batches = []
    for each in (run, alone):
        state = Progress.start(each).state._replace(step=jnp.int32(13))  # in the second epoch
        with feed.training(each, 0) as data:
            inputs = next(data.epoch(state, 1))
            batches.append(jax.jit(data.train_batch)(inputs, state.step, jax.random.key(0)))
            batches.append(jax.jit(data.eval_batch)(next(data.one_pass()), 704))  # 15 images in a batch of 64
    for images, labels in batches[:2]:
        assert images.sharding.is_equivalent_to(sharding.by_rows(run.mesh), 4)
        assert labels.sharding.is_equivalent_to(sharding.by_rows(run.mesh), 1)
    jax.tree.map(np.testing.assert_array_equal, batches[:2], batches[2:])


def check_collectives(run):
    """A step sends the gradients of kernels, the sums of batch norm, two numbers, and each sharded kernel once."""
    # Steps on several CPU devices get an option that XLA does not know, which they report and compile without.
    options = mock.patch.dict(compilation.COMPILER_OPTIONS, cpu={"xla_no_such_option": "true"})
    with options, unittest.TestCase().assertLogs(compilation.log) as warnings:
        progress = Progress.start(run)
        with feed.training(run, 0) as data:
            step = compilation.compile_train_step(run, data, progress.state, progress.totals)
            compilation.compile_eval_step(run.model, data, progress.state.params, progress.state.batch_stats)
    assert compilation.compiler_options(sharding.one_device()) == compilation.COMPILER_OPTIONS["cpu"] != {}
    assert len(warnings.output) == 1
    assert "No such compile option: 'xla_no_such_option'" in warnings.output[0]
    sent = collective_arrays(step.as_text())
    _, size = sent.pop(("all-reduce", "vectors, backward"))
    # Scale, bias and the head's bias; XLA may send a sum on its own that is part of two gradients.
    assert 4 * (2 * 8 + 10) <= size <= 4 * (4 * 8 + 10)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(progress.state.params) if leaf.ndim > 1)
    assert sent == {
        ("all-reduce", "numbers"): (2, 8),
        ("all-reduce", "vectors, forward"): (2, 4 * 2 * 8),  # sums of x and x²
        ("all-gather", "kernels"): (2, size),  # forwards, and not again backwards
        # Over fsdp, which is a reduce-scatter on a GPU or TPU, then over data, of the shards that this leaves.
        ("all-reduce", "kernels"): (4, size + size // run.mesh.shape["fsdp"]),
    }


def compare_compand(mesh, alone, learn):
    """The optimizer gives the same weights, to float64, where w and its moments are sharded."""
    tx = wcjax.compand(optax.adam(0.01), wcjax.Arctan(0.6, 0.6), adaptive=True, weight_decay=1e-2, learn=learn)
    x = np.random.default_rng(1).normal(size=(16, 12))
    kernels = np.linspace(-0.6, 0.6, 12 * 8).reshape(12, 8), np.full((8, 16), 0.1)
    params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in zip(("one", "two"), kernels, strict=True)}

    def step(params, state, x):
        loss = lambda p: jnp.mean((jnp.tanh(x @ p["one"]["kernel"]) @ p["two"]["kernel"] - 1) ** 2)
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for on in (mesh, alone):
        start = (params, tx.init(params))
        shardings = sharding.state_sharding(on, start)
        state, jitted = jax.device_put(start, shardings), jax.jit(step, out_shardings=shardings)
        for _ in range(10):
            state = jitted(*state, jax.device_put(x, sharding.by_rows(on)))
        results.append(state)
    assert results[0][0]["one"]["kernel"].addressable_shards[0].data.shape == (3, 8)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(results[0][1].pairs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), *results)


def check_explicit_mesh():
    """Weights whose type holds their sharding are companded and folded where they are, without jax.set_mesh."""
    by_rows = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,)), P("x"))
    w = jax.device_put(np.linspace(-0.3, 0.3, 32, dtype=np.float32).reshape(8, 4), by_rows)
    for psi in (*(psi.ours() for psi in truth.PSIS), wcjax.WeightNorm()):
        folded = wcjax.fold(wcjax.reparameterize({"kernel": w}, psi))["kernel"]
        assert folded.sharding.is_equivalent_to(by_rows, w.ndim)
        np.testing.assert_allclose(folded, w, rtol=1e-6)


def make_run(data, fsdp):
    config = check_config(runs.tiny(mesh={"data": data, "fsdp": fsdp}))
    return Run(config, None, sharding.make_mesh(config), load_dataset(config))


if __name__ == "__main__":
    runs.register_tiny()
    sharding.MIN_FSDP_SIZE = 64  # the tiny network has no larger arrays
    alone, replicated, sharded = make_run(1, 1), make_run(8, 1), make_run(2, 4)
    if sys.argv[1] == "steps":
        compare_batches(replicated, alone)
        check_collectives(sharded)
        check_explicit_mesh()
    else:
        jax.config.update("jax_enable_x64", True)
        for learn in ("channel", "coarse"):
            compare_compand(sharded.mesh, alone.mesh, learn)
