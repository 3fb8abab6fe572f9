"""Measures what docs/performance.md shows; writes one JSON file.

    python -m benchmarks --out benchmarks/results/NAME.json         all that fits this device, some 25 minutes on a CPU
    python -m benchmarks --out FILE --only steps,torch              some of the groups: steps, forward, torch, epoch,
                                                                    save, convolutions, scan, growth, start, imports
    python -m benchmarks.report                                       tables and plots of docs/performance.md

Everything that is compared runs in turn in one process; ratios are what counts. The file is written after each case.
"""

import argparse
import json
import pathlib
import time

import jax

from benchmarks import against_torch, runs, steps, timing
from wcjax.training.metrics import write_json


def cases(args):
    """(group, generator of records) of all that is to be measured, the most telling first."""
    gpu = jax.default_backend() == "gpu"
    names = ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50")
    size = args.repeats
    for case in against_torch.GPU if gpu else against_torch.CPU:
        yield "torch", against_torch.measure(*case, max(3, size // 3))
    for i, case in enumerate(steps.GPU if gpu else steps.CPU):
        yield "steps", steps.measure_steps(*case, size, full=i == 0 or case[0] == "resnet18")
    for case in [] if gpu else steps.CONVOLUTIONS:
        yield "convolutions", steps.measure_convolutions(*case, max(3, size // 3))
    for case in (steps.GPU if gpu else steps.CPU)[:4]:
        yield "forward", steps.measure_forward(*case, size)
    model, dtype = ("resnet18", "bfloat16") if gpu else ("resnet8", "float32")
    yield "epoch", runs.measure_epoch(model, 128, dtype, 351 if gpu else 60)
    for name in ("resnet8", "resnet18"):
        yield "save", runs.measure_saving(name, 128 if gpu else 16, dtype, max(3, size // 2))
    yield "scan", runs.measure_scan(model, 128 if gpu else 16, dtype, max(3, size // 2))
    batches = (16, 32, 64, 128, 256, 512, 1024)
    yield "growth", runs.measure_growth(names, batches, dtype, 3)
    for name in ("resnet8", "resnet18"):
        yield "start", runs.measure_start(name)
    yield "imports", runs.measure_imports()


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--only", help="groups, like steps,torch; all where left out")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of a step of each variant")
    parser.add_argument("--minutes", type=float, default=60, help="start no further case after that")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None

    began, found = time.perf_counter(), {"machine": timing.machine(), "repeats": args.repeats, "records": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for group, records in cases(args):
        if only and group not in only:
            continue
        if time.perf_counter() - began > 60 * args.minutes:
            print(f"{args.minutes:g} minutes are over: the rest is left out.")
            break
        for record in records:
            found["records"].append(record)
            print(json.dumps(record), flush=True)
        write_json(args.out, found)


if __name__ == "__main__":
    main()
