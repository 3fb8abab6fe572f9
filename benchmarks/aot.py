"""The training step as the compilers for GPU and TPU make it, on a machine that has neither.

    python -m benchmarks.aot --target h100 --config configs/cifar10.py:resnet18 --config.dtype=bfloat16
    python -m benchmarks.aot --target v5e:8x8 --config configs/imagenet.py:resnet50 --out FILE.json

Lowers and compiles the real step of a config for plain weights, for layers that compute w = Ψ(v), for `wcjax.compand`
and for a learned (a, b), runs nothing, and prints a Markdown table. A kernel is an instruction of the program that a
device executes as one: a fusion, a library call, a copy. Bytes are those that its instructions read and write, without
library calls. Cycles are the TPU compiler's own estimates; the GPU compiler gives none. Needs the extra `aot`; a GPU
program takes a minute to compile, a TPU program several.
"""

import argparse
import collections
import functools
import json
import math
import pathlib
import re
import sys

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import wcjax
from benchmarks.collectives import ARRAY, BYTES, OPERATION
from wcjax.config import check_config
from wcjax.config.build import learning_rate_schedule
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.data import Dataset, Split, image_shape
from wcjax.data.dataset import streamed_dataset
from wcjax.files import write_json
from wcjax.training import feed
from wcjax.training import mesh as meshes
from wcjax.training import step as steps
from wcjax.training.run import Run

H100 = pathlib.Path(__file__).with_name("h100.txtpb")
IMAGES = {"cifar10": (45_000, 10), "cifar100": (45_000, 100), "tiny_imagenet": (100_000, 200)}  # of train, and classes
IMAGES |= {"imagenet": (1_281_167, 1000), "digits": (1_293, 10)}
VARIANTS = {"plain": "plain", "layers": "wc", "compand": "plain", "learned": "learned"}  # variants of the config file
NOT_KERNELS = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id"}
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = (?P<result>\(.*?\)|\S+) (?P<kind>[\w-]+)\(")


class CompandRun(Run):
    """A run whose optimizer is `wcjax.compand`; its network is plain. `train.py` has layers instead."""

    @functools.cached_property
    def tx(self):
        config = self.config
        inner = optax.sgd(learning_rate_schedule(config, self.steps_per_epoch), momentum=config.momentum)
        return wcjax.compand(inner, wcjax.Arctan(1.0, 1.0), weight_decay=config.weight_decay)


def make_mesh(target: str, fsdp: int) -> Mesh:
    """The devices of 'h100', or of a TPU topology like 'v5e:2x2', as the mesh of a run."""
    if target == "h100":
        options = {"topology": "1x1x1", "target_config": H100.read_text()}
        devices = topologies.get_topology_desc(platform="cuda", **options).devices
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    return Mesh(np.array(devices).reshape(-1, fsdp), meshes.AXES, axis_types=(AxisType.Auto,) * 2)


def make_dataset(config) -> Dataset:
    """A data set of the sizes of the real one, without its images."""
    num_images, num_classes = IMAGES[config.dataset]
    shape = image_shape(config.dataset, config.image_size)
    if config.dataset.endswith("imagenet"):
        source = type("Source", (), {"num_images": num_images})
        return streamed_dataset(source, source, num_classes)
    split = Split(np.empty((num_images, *shape), np.uint8), np.empty(num_images, np.int32))
    return Dataset(split, split, split, num_classes, *np.full((2, shape[-1]), 0.5, np.float32))


def compile_step(target: str, config, is_compand: bool):
    """(the compiled training step of config for the devices of target, the number of arrays that it gets donated)."""
    mesh, dataset = make_mesh(target, config.mesh.fsdp), make_dataset(config)
    run = (CompandRun if is_compand else Run)(config, None, mesh, dataset)
    if isinstance(dataset.train, Split):
        data = feed.OnDevice(dataset.train, dataset, config, mesh)
    else:
        data = feed.Streamed(dataset.train, dataset, config, mesh, iter(()))
    state = steps.abstract_state(run.model, run.tx, run.image_shape, mesh)
    totals = meshes.abstract(jax.eval_shape(steps.Totals.zero), meshes.replicated(mesh))
    return steps.compile_train_step(run, data, state, totals), len(jax.tree.leaves((state, totals)))


def size(result: str) -> int:
    """Bytes of the result of an instruction, which may be a tuple."""
    return sum(
        math.prod(int(n) for n in array["shape"].split(",") if n) * BYTES.get(array["dtype"], 4)
        for array in ARRAY.finditer(result)
    )


def measure(compiled, donated: int) -> dict:
    """What a compiled step consists of."""
    hlo = compiled.as_text()
    entry = hlo[hlo.index("\nENTRY ") :].partition("\n}")[0].splitlines()
    kinds, copied = collections.Counter(), 0
    for line in entry:
        if (instruction := INSTRUCTION.match(line)) and instruction["kind"] not in NOT_KERNELS:
            kinds[instruction["kind"]] += 1
            copied += size(instruction["result"]) if instruction["kind"].startswith("copy") else 0
    memory = compiled.memory_analysis()
    collectives = collections.Counter(m["kind"] for line in hlo.splitlines() if (m := OPERATION.search(line)))
    cycles = [int(x) for line in entry for x in re.findall(r'"estimated_cycles":"(\d+)"', line)]
    return {
        "kernels": sum(kinds.values()),
        "convolutions": len(re.findall(r"__cudnn\$conv\w*|= \S+ convolution\(", hlo)),
        "conditionals": kinds["conditional"],
        "copies": sum(n for kind, n in kinds.items() if kind.startswith("copy")),
        "copied_mb": copied / 1e6,
        "bytes": accessed(compiled),
        "cycles": sum(cycles) or None,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "state_mb": memory.argument_size_in_bytes / 1e6,
        "donated": donated,
        "aliased": hlo.partition("\n")[0].count("may-alias") + hlo.partition("\n")[0].count("must-alias"),
        "collectives": dict(collectives),
        "asynchronous": len(re.findall(r" (?:all-reduce|all-gather|reduce-scatter)-start\(", hlo)),
    }


def accessed(compiled) -> float | None:
    """Bytes that the instructions of a program read and write. None for programs of which XLA keeps no module."""
    from jax._src.lib import _jax

    try:
        (module,) = compiled.runtime_executable().hlo_modules()
        return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)["bytes accessed"]
    except Exception:  # XLA's error types differ between versions
        return None


def markdown(records) -> str:
    """One row for each variant, with ratios to plain."""
    head = ["variant", "kernels", "GB", "million cycles", "copies (MB)", "temporary, MB", "collectives (asynchronous)"]
    rows = []
    for record in records:
        ratio = functools.partial(_ratio, record, records[0])
        rows.append(
            [
                record["variant"],
                f"{record['kernels']}{ratio('kernels')}",
                f"{record['bytes'] / 1e9:.3f}{ratio('bytes')}" if record["bytes"] else "",
                f"{record['cycles'] / 1e6:.2f}{ratio('cycles')}" if record["cycles"] else "",
                f"{record['copies']} ({record['copied_mb']:.1f})",
                f"{record['temporary_mb']:.0f}{ratio('temporary_mb')}",
                f"{sum(record['collectives'].values())} ({record['asynchronous']})",
            ]
        )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])


def _ratio(record, plain, key) -> str:
    return f" ({record[key] / plain[key]:.3f})" if plain[key] else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="'h100', or a TPU topology like v5e:2x2")
    parser.add_argument("--config", required=True, help="FILE.py:model; --config.key=value changes a key")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of %(default)s; plain comes first")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write")
    arguments, overrides = split_overrides(sys.argv[1:])
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # of this process; the compilers need no device
    records = []
    for variant in args.variants.split(","):
        config = check_config(read_config_file(f"{args.config},{VARIANTS[variant]}", overrides))
        case = {"target": args.target, "model": config.model, "batch": config.batch_size, "dtype": config.dtype}
        measured = measure(*compile_step(args.target, config, variant == "compand"))
        records.append({"group": "aot", **case, "variant": variant, **measured})
        print(json.dumps(records[-1]), flush=True)
        if args.out:
            write_json(args.out, {"records": records})
    print(f"\n{markdown(records)}")


if __name__ == "__main__":
    main()
