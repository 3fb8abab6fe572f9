"""Measures what docs/performance.md shows; writes one JSON file.

    python -m benchmarks --out benchmarks/results/NAME.json         all that fits this device, some 35 minutes on a CPU
    python -m benchmarks --out FILE --only steps,torch              some of the groups: steps, torch, forward, epoch,
                                                                    input, growth, devices, convolutions, scan, flags,
                                                                    save, start, imports
    python -m benchmarks.report                                       tables and plots of docs/performance.md

Everything that is compared runs in turn in one process; ratios are what counts. The file is written after each
measurement, so that it holds all that was measured when the minutes are over.
"""

import argparse
import json
import os
import pathlib
import threading

import jax

from benchmarks import against_torch, inputs, runs, steps, timing
from wcjax.files import write_json

MODELS = ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50")
BATCHES = (16, 32, 64, 128, 256, 512, 1024)


def on_cpu(repeats):
    """(group, generator of records) of all that is to be measured, the most telling first."""
    few = max(3, repeats // 3)
    for i, case in enumerate(steps.CPU):
        yield "steps", steps.measure_steps(*case, repeats, full=i < 2)
    for case in against_torch.CPU:
        yield "torch", against_torch.measure(*case, few)
    for case in steps.CPU[:4]:
        yield "forward", steps.measure_forward(*case, repeats)
    yield "epoch", runs.measure_epoch("resnet8", 128, "float32", 60)
    for name in ("resnet8", "resnet18"):
        yield "save", runs.measure_saving(name, 16, "float32", few)
    yield "input", inputs.measure(128, "float32", few)
    yield "growth", runs.measure_growth(MODELS, BATCHES, "float32", repeats)
    yield "devices", runs.measure_devices("resnet8", 128, "float32", (1, 2, 4, 8))
    for case in steps.CONVOLUTIONS:
        yield "convolutions", steps.measure_convolutions(*case, few)
    yield "scan", runs.measure_scan("resnet8", 16, "float32", few)
    for name in ("resnet8", "resnet18"):
        yield "start", runs.measure_start(name)
    yield "imports", runs.measure_imports()


def on_gpu(repeats):
    """The same on a GPU, where what comes last may not fit into the time."""
    few = max(3, repeats // 3)
    yield "steps", steps.measure_steps(*steps.GPU[0], repeats, full=True)
    yield "epoch", runs.measure_epoch("resnet18", 128, "bfloat16", 351)
    yield "torch", against_torch.measure(*against_torch.GPU[0], few)
    yield "save", runs.measure_saving("resnet18", 128, "bfloat16", few)
    yield "scan", runs.measure_scan("resnet18", 128, "bfloat16", few)
    yield "flags", steps.measure_flags("resnet18", 128, "bfloat16", few)
    yield "forward", steps.measure_forward(*steps.GPU[0], repeats)
    yield "input", inputs.measure(128, "bfloat16", few)
    for case in steps.GPU[1:]:
        yield "steps", steps.measure_steps(*case, repeats, full=False)
    for case in against_torch.GPU[1:]:
        yield "torch", against_torch.measure(*case, few)
    yield "growth", runs.measure_growth(MODELS, BATCHES, "bfloat16", 3)
    yield "imports", runs.measure_imports()


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--only", help="groups, like steps,torch; all where left out")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of a step of each variant")
    parser.add_argument("--minutes", type=float, default=60, help="ends after that (default: %(default)s)")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None

    found = {"machine": timing.machine(), "repeats": args.repeats, "records": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, found)
    end_after(args.minutes, args.out)
    on_device = on_gpu if jax.default_backend() == "gpu" else on_cpu
    for group, records in on_device(args.repeats):
        if only and group not in only:
            continue
        try:
            for record in records:
                found["records"].append(record)
                print(json.dumps(record), flush=True)
                write_json(args.out, found)
        except jax.errors.JaxRuntimeError as error:  # such as too little memory
            print(f"{group}: left out, {str(error).splitlines()[0]}", flush=True)


def end_after(minutes: float, out: pathlib.Path) -> None:
    """Ends this process after that time, whatever it does: a compiler cannot be interrupted in another way."""

    def end():
        print(f"{minutes:g} minutes are over: {out} holds what was measured.", flush=True)
        os._exit(0)

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
