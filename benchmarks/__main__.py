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
import pathlib

import jax

from benchmarks import against_torch, runs, steps, timing
from wcjax.system.files import write_json


def cases_on_cpu(repeats):
    """(name, generator of records) of each case that is to be measured, the most telling first."""
    yield from cases("torch", against_torch.CPU, against_torch.measure, repeats)
    yield from cases("steps", steps.CPU_FULL, steps.measure_steps, repeats, full=True)
    yield from cases("steps", steps.CPU, steps.measure_steps, repeats, full=False)
    yield from cases("epoch", [("resnet8", 128, "float32")], runs.measure_epoch, 60)
    yield from cases("dispatch", [("resnet18", 16, "float32")], runs.measure_dispatch, repeats)


def cases_on_gpu(repeats):
    """The same for a GPU, on which the last cases may not fit into the time."""
    few = max(3, repeats // 3)
    resnet18 = [("resnet18", 128, "bfloat16")]
    yield from cases("steps", runs.GPU[:4], runs.measure_run_steps, repeats)
    yield from cases("epoch", resnet18, runs.measure_epoch, 351)
    yield from cases("dispatch", resnet18, runs.measure_dispatch, repeats)
    yield from cases("torch", against_torch.GPU[:1], against_torch.measure, few)
    yield from cases("steps", runs.GPU[4:], runs.measure_run_steps, repeats)
    yield from cases("torch", against_torch.GPU[1:], against_torch.measure, few)


def cases(group, settings, measure, *arguments, **options):
    """(name, generator of records) of a case for each setting; the name is like torch:resnet8:128:float32."""
    for setting in settings:
        yield ":".join(map(str, (group, *setting))), measure(*setting, *arguments, **options)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--only", help="groups or cases, like steps,torch:resnet8; all if omitted")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of a step of each variant")
    parser.add_argument("--minutes", type=float, default=60, help="ends after that (default: %(default)s)")
    args = parser.parse_args()
    timing.end_after(args.minutes)
    selection = args.only.split(",") if args.only else None

    results = {"machine": timing.machine(), "repeats": args.repeats, "records": []}
    if selection and args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8")) | {"repeats": args.repeats}
        if results["machine"] != timing.machine():
            parser.error(f"{args.out} is from another machine, other versions or other flags; name another file.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, results)
    cases_on_device = cases_on_gpu if jax.default_backend() == "gpu" else cases_on_cpu
    for name, records in cases_on_device(args.repeats):
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


if __name__ == "__main__":
    main()
