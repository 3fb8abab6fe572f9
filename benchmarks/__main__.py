"""Measures what docs/performance.md shows; writes one JSON file.

    python -m benchmarks --out benchmarks/results/NAME.json         all that fits this CPU or GPU, within 60 minutes
    taskset -c 0 python -m benchmarks --out FILE                    CPU time on one core, which is the steadiest
    python -m benchmarks --out FILE --only steps,torch:resnet8      some groups and cases; the file keeps the others
    python -m benchmarks.report                                     tables of docs/performance.md

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
    """(name, generator of records) of all that is to be measured, the most telling first."""
    few = max(3, repeats // 3)
    yield from each("torch", against_torch.CPU, against_torch.measure, repeats)
    yield from each("steps", steps.CPU_FULL, steps.measure_steps, repeats, full=True)
    yield from each("steps", steps.CPU, steps.measure_steps, repeats, full=False)
    yield from each("forward", steps.CPU_FULL, steps.measure_forward, repeats)
    yield from each("convolutions", steps.CONVOLUTIONS, steps.measure_convolutions, few)
    yield from each("epoch", [("resnet8", 128, "float32")], runs.measure_epoch, 60)
    yield from each("dispatch", [("resnet18", 16, "float32")], runs.measure_dispatch, repeats)
    yield from each("save", [("resnet8", 16, "float32"), ("resnet18", 16, "float32")], runs.measure_saving, few)
    yield from each("input", [(128, "float32")], inputs.measure, few)
    yield from each("start", [("resnet8",), ("resnet18",)], runs.measure_start)


def on_gpu(repeats):
    """The same on a GPU, where what comes last may not fit into the time."""
    few = max(3, repeats // 3)
    resnet18 = [("resnet18", 128, "bfloat16")]
    yield from each("steps", runs.GPU[:4], runs.measure_run_steps, repeats)
    yield from each("epoch", resnet18, runs.measure_epoch, 351)
    yield from each("dispatch", resnet18, runs.measure_dispatch, repeats)
    yield from each("torch", against_torch.GPU[:1], against_torch.measure, few)
    yield from each("steps", runs.GPU[4:], runs.measure_run_steps, repeats)
    yield from each("save", resnet18, runs.measure_saving, few)
    yield from each("scan", resnet18, runs.measure_scan, few)
    yield from each("flags", resnet18, steps.measure_flags, few)
    yield from each("forward", resnet18, steps.measure_forward, repeats)
    yield from each("input", [(128, "bfloat16")], inputs.measure, few)
    yield from each("torch", against_torch.GPU[1:], against_torch.measure, few)
    yield "growth", runs.measure_growth(MODELS, BATCHES, "bfloat16", 3)
    yield "imports", runs.measure_imports()


def each(group, cases, measure, *arguments, **options):
    """For each case, its name, like torch:resnet8:128:float32, and its records, which are measured as they are read."""
    for case in cases:
        yield ":".join(map(str, (group, *case))), measure(*case, *arguments, **options)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--only", help="groups or cases, like steps,torch:resnet8; all if omitted")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of a step of each variant")
    parser.add_argument("--minutes", type=float, default=60, help="ends after that (default: %(default)s)")
    args = parser.parse_args()
    end_after(args.minutes)
    selection = args.only.split(",") if args.only else None

    results = {"machine": timing.machine(), "repeats": args.repeats, "records": []}
    if selection and args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8")) | {"repeats": args.repeats}
        if results["machine"] != timing.machine():
            parser.error(f"{args.out} is from another machine, other versions or other flags; name another file.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, results)
    on_device = on_gpu if jax.default_backend() == "gpu" else on_cpu
    for name, records in on_device(args.repeats):
        if selection and not any(f"{name}:".startswith(f"{start}:") for start in selection):
            continue
        results["records"] = [record for record in results["records"] if record["case"] != name]
        try:
            for record in records:
                results["records"].append({"case": name} | record)
                print(json.dumps(record), flush=True)
                write_json(args.out, results)
        except jax.errors.JaxRuntimeError as error:  # such as too little memory
            print(f"{name}: omitted, {str(error).splitlines()[0]}", flush=True)


def end_after(minutes: float) -> None:
    """Ends this process after that time, whatever it does: a compiler or a device that hangs does not listen."""

    def end():
        print(f"{minutes:g} minutes are over: the rest is omitted.", flush=True)
        os._exit(0)

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
