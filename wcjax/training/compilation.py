"""Compiles the steps of a run: the memory layout of the state, the buffers that are reused, and the options of XLA."""

import functools
import logging

import flax.linen as nn
import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from wcjax.training import sharding, steps
from wcjax.training.feed import Feed
from wcjax.training.run import Run
from wcjax.training.train_state import Totals, TrainState, zero_totals

log = logging.getLogger(__name__)

# Options of XLA for the steps of training and evaluation, by platform or kind of TPU.
# CPU: by default, loops use half of the width of AVX-512.
# GPU and TPU, for several devices: by default XLA sums all gradients in one operation that waits for the end of the
# backward pass. With a limit on the bytes of one operation there are several, and some of them run during the backward
# pass: docs/scaling.md has the share. XLA refuses these options on TPUs other than v5e.
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_prefer_vector_width": "512"},
    "gpu": {
        "xla_gpu_all_reduce_combine_threshold_bytes": "4000000",
        "xla_gpu_all_gather_combine_threshold_bytes": "4000000",
        "xla_gpu_reduce_scatter_combine_threshold_bytes": "500000",  # of the result, a part of the gradients
    },
    "TPU v5 lite": {
        "xla_jf_crs_combiner_threshold_in_bytes": "1000000",
        "xla_enable_async_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
}


def compile_train_step(run: Run, feed: Feed, state: TrainState, totals: Totals) -> jax.stages.Compiled:
    """`steps.train_step`, compiled, for the leaves of (state, totals): (arrays, inputs) -> (arrays, means).

    The step reuses the buffers of `arrays`. state and totals are arrays here, or their shapes, dtypes and shardings.

    XLA chooses the layout of the state in memory, because GPUs want kernels with their input channels last and would
    otherwise transpose each of them, and Ψ of it, in every step. Put the first arrays into
    `compiled.input_formats[0][0]`; the outputs have the formats of the inputs.
    """
    inputs = feed.train_input_shapes()
    shapes, structure = jax.tree.flatten(jax.tree.map(_abstract, (state, totals)))

    def step(arrays, inputs):
        state, totals, means = steps.train_step(run, feed, *jax.tree.unflatten(structure, arrays), inputs)
        return jax.tree.leaves((state, totals)), means

    formats = [Format(Layout.AUTO, x.sharding) for x in jax.tree.leaves(state)]
    formats += [x.sharding for x in totals]
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(formats, jax.tree.map(lambda x: x.sharding, inputs)),
        out_shardings=(formats, sharding.replicated(run.mesh)),
    )
    return _compile_with_options(jitted.lower(shapes, inputs), compiler_options(run.mesh))


def compile_eval_step(model: nn.Module, feed: Feed, params, batch_stats) -> jax.stages.Compiled:
    """`steps.eval_step`, compiled: (params, batch_stats, totals, inputs) -> totals."""
    jitted = jax.jit(functools.partial(steps.eval_step, model, feed), out_shardings=sharding.replicated(feed.mesh))
    lowered = jitted.lower(params, batch_stats, zero_totals(feed.mesh), feed.eval_input_shapes())
    return _compile_with_options(lowered, compiler_options(feed.mesh))


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """The options of XLA for a step of training or evaluation on the devices of mesh."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu" and mesh.size == 1:
        return {}
    return COMPILER_OPTIONS.get(device.device_kind if device.platform == "tpu" else device.platform, {})


def _compile_with_options(lowered: jax.stages.Lowered, options: dict[str, str]) -> jax.stages.Compiled:
    """lowered.compile(options), or without options if this version of XLA does not know or refuses one of them."""
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if not options or not str(error).startswith(("INVALID_ARGUMENT", "FAILED_PRECONDITION")):
            raise
        _warn_once(str(error).splitlines()[0])
        return lowered.compile()


@functools.cache
def _warn_once(error: str) -> None:
    log.warning("The steps are compiled without XLA's options: %s", error)
