"""What the devices of a mesh send each other in one training step of ImageNet, read from the compiled program.

    python -m benchmarks.collectives --devices 8 64 --fsdp 1 8

Compiles the step of configs/imagenet.py for that many simulated CPU devices, runs nothing, and prints Markdown: for
each kind of collective how many arrays there are, and the bytes of the results on one device. On a CPU, XLA keeps
an all-reduce even if each device needs only its shard of the gradient. On GPU and TPU, a pass of the compiler turns it
into a reduce-scatter of the same operand.
"""

import argparse
import json
import os
import pathlib
import runpy
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import aot, hlo
from wcjax import elementary
from wcjax.config import check_config
from wcjax.models import cpu_convolution
from wcjax.training import sharding


def compile_step(model: str, variant: str, devices: int, fsdp: int, batch_size: int, dtype: str):
    """The step of configs/imagenet.py, compiled for a mesh of (devices / fsdp) x fsdp, and its abstract state."""
    file = pathlib.Path(__file__).parents[1] / "configs" / "imagenet.py"
    config = runpy.run_path(str(file))["get_config"](f"{model},{variant}")
    config.mesh = {"data": devices // fsdp, "fsdp": fsdp}
    config.batch_size, config.dtype = batch_size, dtype
    config = check_config(config)
    by_xla = mock.patch.dict(os.environ, {cpu_convolution.SWITCH: "xla"})
    # As on a GPU or TPU: what only a CPU does is omitted.
    with by_xla, mock.patch.object(elementary, "arctan", jnp.arctan):
        step, (state, _) = aot.compile_step(config, sharding.make_mesh(config))
    return step, state


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--fsdp", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--variant", default="wc")
    parser.add_argument("--batch", type=int, default=256, help="of all devices together")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true", help="one line for each program, for scripts")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(args.devices))
    if not args.json:
        print("| devices | fsdp | collective | of | arrays | MB |\n| --- | --- | --- | --- | --- | --- |")
    for devices in args.devices:
        for fsdp in args.fsdp:
            step, state = compile_step(args.model, args.variant, devices, fsdp, args.batch, args.dtype)
            text = step.as_text()
            totals = hlo.collective_arrays(text)
            if args.json:
                sizes = [leaf.size for leaf in jax.tree.leaves(state.params) if jnp.ndim(leaf) > 1]
                rows = [[*key, *value] for key, value in sorted(totals.items())]
                numbers = {"kernels": sizes, "found": rows, "largest_arctan": hlo.largest_arctan(text)}
                print(json.dumps({"devices": devices, "fsdp": fsdp, **numbers}))
                continue
            for (kind, what), (count, size) in sorted(totals.items()):
                print(f"| {devices} | {fsdp} | {kind} | {what} | {count} | {size / 1e6:.3f} |", flush=True)


if __name__ == "__main__":
    main()
