"""Where the time of a training step goes on a CPU: the operations of the compiled step, by kind.

    taskset -c 0 python -m benchmarks.profile_step resnet18 32

Read from JAX's profiler; on one core, so that the times of operations add up to that of the step.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import tempfile

import jax

from benchmarks import steps
from wcjax import models

STEPS = 5


def kind(line: str) -> str:
    """What an operation is for. line: its line in the compiled program, where convolutions are in branches."""
    name = re.search(r'op_name="([^"]*)"', line)
    name = name[1] if name else ""
    backward = "transpose(" in name
    if "cond/branch" in name:
        computes = re.search(r"(ffi_call|dot_general|conv_general_dilated)$", name)
        what = "convolutions" if computes else "layouts and sums for convolutions"
        return f"{what}, {'backward' if backward else 'forward'}"
    if "reduce" in name:
        return "sums of batch norm"
    return "elementwise, backward" if backward else "elementwise, forward, and the update"


def profile(name: str, batch: int) -> dict[str, float]:
    """{kind: milliseconds in a step} of the plain network in float32."""
    images, labels = steps.batch_of(batch)
    tx = steps.variants(full=False)["plain"][2]
    stepper = steps.Stepper(*steps.compile_train_step(models.create(name, 10), tx, images, labels), images, labels)
    jax.block_until_ready(stepper())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(stepper())
        (trace,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    program = stepper.step.as_text()
    lines = {name: line for line, name in re.findall(r"^ *(?:ROOT )?%((\S+) = .*)$", program, re.MULTILINE)}
    milliseconds = collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op", "").removesuffix("__onednn$convolution")
        if operation in lines and not re.search(r" (conditional|call|while)\(", lines[operation]):
            milliseconds[kind(lines[operation])] += event["dur"] / 1e3 / STEPS
    return milliseconds


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    args = parser.parse_args()
    milliseconds = profile(args.model, args.batch)
    total = sum(milliseconds.values())
    print(f"| {args.model}, batch {args.batch} | ms a step | share |\n| --- | --- | --- |")
    for what, ms in milliseconds.most_common():
        print(f"| {what} | {ms:.1f} | {ms / total:.0%} |")
    print(f"| all | {total:.1f} | 100% |")


if __name__ == "__main__":
    main()
