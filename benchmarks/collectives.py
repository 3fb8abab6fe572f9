"""What the devices of a mesh send each other in one training step of ImageNet, read from the compiled program.

    python -m benchmarks.collectives --devices 8 64 --fsdp 1 8

Compiles the step of configs/imagenet.py for that many simulated CPU devices, runs nothing, and prints Markdown: for
each kind of collective how many arrays there are, and the bytes of the results on one device. On a CPU, XLA keeps
an all-reduce even if each device needs only its shard of the gradient. On GPU and TPU, a pass of the compiler turns it
into a reduce-scatter of the same operand.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import runpy
import types
from unittest import mock

import jax
import jax.numpy as jnp

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "pred": 1}
OPERATION = re.compile(
    r"= (?P<result>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+|pred)\[(?P<shape>[\d,]*)\]")


def compile_step(model: str, variant: str, devices: int, fsdp: int = 1, batch_size: int = 256, dtype: str = "float32"):
    """The step of configs/imagenet.py, compiled for a mesh of (devices / fsdp) x fsdp, and its abstract state."""
    from wcjax import elementary
    from wcjax.config import check_config
    from wcjax.data.dataset import streamed_dataset
    from wcjax.models import cpu_convolution
    from wcjax.training import feed, sharding, steps
    from wcjax.training.run import Run

    file = pathlib.Path(__file__).parents[1] / "configs" / "imagenet.py"
    config = runpy.run_path(str(file))["get_config"](f"{model},{variant}")
    config.mesh = {"data": devices // fsdp, "fsdp": fsdp}
    config.batch_size, config.dtype = batch_size, dtype
    config = check_config(config)
    images = types.SimpleNamespace(num_images=1_281_167)
    run = Run(config, None, sharding.make_mesh(config), streamed_dataset(images, images, 1000))
    state = steps.abstract_state(run.model, run.tx, run.image_shape, run.mesh)
    totals = sharding.abstract(jax.eval_shape(steps.Totals.zero), sharding.replicated(run.mesh))
    data = feed.Streamed(images, run.dataset, config, run.mesh, iter(()))
    by_xla = mock.patch.dict(os.environ, {cpu_convolution.SWITCH: "xla"})
    # As on a GPU or TPU: what only a CPU does is omitted.
    with by_xla, mock.patch.object(elementary, "arctan", jnp.arctan):
        return steps.compile_train_step(run, data, state, totals), state


def collectives(hlo: str) -> dict[tuple[str, str], tuple[int, int]]:
    """{(kind, what): (arrays, bytes of the results on one device)} of a compiled program.

    what: 'kernels' for arrays of two axes and more; for those of one axis, which are batch norm's but for the bias of
    the head, 'vectors, forward' (sums for mean and variance) or 'backward'; 'numbers' for the loss and what is counted.
    """
    totals = collections.defaultdict(lambda: (0, 0))
    for line in hlo.splitlines():
        if not (operation := OPERATION.search(line)):
            continue
        backward = "transpose(" in line.partition("op_name=")[2]
        for array in ARRAY.finditer(operation["result"]):
            shape = [int(n) for n in array["shape"].split(",") if n]
            what = "kernels" if len(shape) > 1 else f"vectors, {'backward' if backward else 'forward'}"
            what = what if shape else "numbers"
            count, size = totals[operation["kind"], what]
            totals[operation["kind"], what] = (count + 1, size + math.prod(shape) * BYTES[array["dtype"]])
    return dict(totals)


def largest_arctan(hlo: str) -> int:
    """Elements of the largest array of which a device computes the arctan: under fsdp that of a shard."""
    shapes = re.findall(r"= f32\[([\d,]*)\]\S* atan2\(", hlo)
    return max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)


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
            hlo = step.as_text()
            totals = collectives(hlo)
            if args.json:
                sizes = [leaf.size for leaf in jax.tree.leaves(state.params) if jnp.ndim(leaf) > 1]
                rows = [[*key, *value] for key, value in sorted(totals.items())]
                numbers = {"kernels": sizes, "found": rows, "largest_arctan": largest_arctan(hlo)}
                print(json.dumps({"devices": devices, "fsdp": fsdp, **numbers}))
                continue
            for (kind, what), (count, size) in sorted(totals.items()):
                print(f"| {devices} | {fsdp} | {kind} | {what} | {count} | {size / 1e6:.3f} |", flush=True)


if __name__ == "__main__":
    main()
