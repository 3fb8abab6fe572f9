"""The training step as the compilers for GPU and TPU make it, on a machine that has neither.

    python -m benchmarks.aot --target h100 --config configs/cifar10.py:resnet18 --config.dtype=bfloat16
    python -m benchmarks.aot --target v5e:8x8 --config configs/imagenet.py:resnet50 --out FILE.json

Lowers and compiles the real step of a config for plain weights, for layers that compute w = Ψ(v), for `wcjax.compand`
and for a learned (a, b), runs nothing, and prints a Markdown table. A kernel is an instruction that a device
executes in one launch: a fusion, a library call, a copy. Bytes are those that instructions read and write, without
library calls. Cycles are the TPU compiler's own estimates; the GPU compiler gives none. For several devices ('h100:8')
the table shows what they send each other. Needs the extra `aot`; a GPU program takes a minute to compile, a TPU program
several. Where several processes use libtpu at once, set ALLOW_MULTIPLE_LIBTPU_LOAD=1 and TPU_SKIP_MDS_QUERY=1.
"""

import argparse
import contextlib
import json
import pathlib
import re
import sys
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from benchmarks import hlo, report
from benchmarks.runs import VARIANTS
from wcjax.config import check_config
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.data import Dataset, Split, image_shape
from wcjax.data.dataset import streamed_dataset
from wcjax.system.files import write_json
from wcjax.training import compilation, feed, sharding, steps
from wcjax.training.run import Run
from wcjax.training.train_state import Totals

H100 = pathlib.Path(__file__).with_name("h100.txtpb")
MEMORY = {"v5e": 16 * 2**30, "v6e": 32 * 2**30}  # bytes of a chip
MEMORY["h100"] = int(re.search(r"device_memory_size: (\d+)", H100.read_text())[1])
IMAGES = {"cifar10": (45_000, 10), "cifar100": (45_000, 100), "tiny_imagenet": (100_000, 200)}  # of train, and classes
IMAGES |= {"imagenet": (1_281_167, 1000), "digits": (1_293, 10)}


def make_mesh(target: str, fsdp: int) -> Mesh:
    """The devices of 'h100', 'h100:8' or a TPU topology like 'v5e:2x2', as the mesh of a run."""
    name, _, number = target.partition(":")
    if name == "h100":
        options = {"topology": f"1x1x{number or 1}", "target_config": H100.read_text()}
        devices = topologies.get_topology_desc(platform="cuda", **options).devices
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    return Mesh(np.array(devices).reshape(-1, fsdp), sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def make_dataset(config) -> Dataset:
    """A data set of the sizes of the real one, without its images."""
    num_images, num_classes = IMAGES[config.dataset]
    shape = image_shape(config.dataset, config.image_size)
    if config.dataset.endswith("imagenet"):
        source = type("Source", (), {"num_images": num_images})
        return streamed_dataset(source, source, num_classes)
    split = Split(np.empty((num_images, *shape), np.uint8), np.empty(num_images, np.int32))
    return Dataset(split, split, split, num_classes, *np.full((2, shape[-1]), 0.5, np.float32))


def compile_step(config, mesh: Mesh, run_class: type[Run] = Run):
    """(the compiled training step of config for the devices of mesh, the arguments that it takes over: state, totals).

    The arguments are shapes, dtypes and shardings. Nothing is drawn, and no memory is used.
    """
    dataset = make_dataset(config)
    run = run_class(config, None, mesh, dataset)
    if isinstance(dataset.train, Split):
        train_feed = feed.OnDevice(dataset.train, dataset, config, mesh)
    else:
        train_feed = feed.Streamed(dataset.train, dataset, config, mesh, iter(()))
    shapes = jax.eval_shape(steps.initializer(run.model, run.tx, run.image_shape), jax.random.key(0))
    state = with_shardings(shapes, sharding.state_sharding(mesh, shapes))
    totals = with_shardings(jax.eval_shape(Totals.zero), sharding.replicated(mesh))
    return compilation.compile_train_step(run, train_feed, state, totals), (state, totals)


def with_shardings(shapes, shardings):
    """shapes with these shardings: a tree of them, or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def describe(step, num_donated: int, memory_size: int) -> dict:
    """The numbers of a compiled step. num_donated: arrays that it takes over. memory_size: bytes of the device."""
    memory = step.memory_analysis()
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = state + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = {"state_mb": state / 1e6, "temporary_mb": temporary / 1e6, "memory_share": peak / memory_size}
    return hlo.describe(step.as_text()) | {"bytes": accessed_bytes(step), "donated": num_donated} | sizes


def accessed_bytes(step) -> float | None:
    """Bytes that the instructions of a program read and write. None for programs of which XLA keeps no module."""
    from jax._src.lib import _jax

    try:
        (module,) = step.runtime_executable().hlo_modules()
        return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)["bytes accessed"]
    except Exception:  # XLA's error types differ between versions
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="h100, h100:8, or a topology of v5e or v6e such as v5e:2x2")
    parser.add_argument("--config", required=True, help="FILE.py:model; --config.key=value changes a key")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of %(default)s; ratios are to the first")
    parser.add_argument("--without-options", action="store_true", help="omit the compiler options of a run")
    parser.add_argument("--hlo", type=pathlib.Path, help="folder for the texts of the programs")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to add to")
    arguments, overrides = split_overrides(sys.argv[1:])
    args = parser.parse_args(arguments)
    if args.target.partition(":")[0] not in MEMORY:
        parser.error(f"--target must begin with one of {', '.join(MEMORY)}, found {args.target!r}.")
    jax.config.update("jax_platforms", "cpu")  # for this process only; the compilers need no device
    without_options = mock.patch.dict(compilation.COMPILER_OPTIONS, clear=True)
    compiler_options = without_options if args.without_options else contextlib.nullcontext()
    memory_size, records = MEMORY[args.target.partition(":")[0]], []
    for variant in args.variants.split(","):
        config_variant, run_class = VARIANTS[variant]
        config = check_config(read_config_file(f"{args.config},{config_variant}", overrides))
        case = {
            "target": args.target,
            "dataset": config.dataset,
            "model": config.model,
            "batch": config.batch_size,
            "dtype": config.dtype,
            "fsdp": config.mesh.fsdp,
            "options": not args.without_options,
            "variant": variant,
        }
        with compiler_options:
            step, donated = compile_step(config, make_mesh(args.target, config.mesh.fsdp), run_class)
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{'-'.join(map(str, case.values()))}.txt").write_text(step.as_text())
        records.append({"group": "aot", **case, **describe(step, len(jax.tree.leaves(donated)), memory_size)})
        print(json.dumps(records[-1]), flush=True)
        if args.out:
            add_record(args.out, case, records[-1])
    print(f"\n{(report.collectives if records[0]['collectives'] else report.aot)(records)}")


def add_record(path: pathlib.Path, case: dict, record: dict) -> None:
    """Adds a record to a JSON file, instead of an older one of the same case."""
    old = json.loads(path.read_text())["records"] if path.exists() else []
    others = [other for other in old if any(other.get(key) != value for key, value in case.items())]
    write_json(path, {"records": [*others, record]})


if __name__ == "__main__":
    main()
