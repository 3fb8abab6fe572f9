"""Puts the numbers of benchmarks/results/*.json into docs/performance.md, and draws its plots.

    python -m benchmarks.report

A line <!-- NAME: GROUP --> in the page stands above what is made from that group of results/NAME.json, and
<!-- end --> below it; the text around is written by hand.
"""

import itertools
import json
import pathlib
import re

from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (?P<name>\w+): (?P<group>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page() -> str:
    """The text of docs/performance.md with its tables made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{block(m['name'], m['group'])}\n{m[4]}", PAGE.read_text(encoding="utf-8"))


def block(name, group) -> str:
    """The Markdown of one group of one file."""
    found = read(name)
    if group == "machine":
        return machine(found["machine"])
    records = [record for record in found["records"] if record["group"] == group]
    return MAKERS[group](records)


def read(name) -> dict:
    """What benchmarks/results/<name>.json holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def machine(of) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items() if version)
    flags = ", ".join(f"{k}={v}" for k, v in of["flags"].items()) or "none"
    device = f"{of['devices']} × {of['device']} ({of['platform']}), {of['cores']} cores"
    return f"{device}, Python {of['python']}, {versions}; flags: {flags}."


def table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ratio(record):
    return f"{record['ratio']:.3f} ({record['low']:.3f} to {record['high']:.3f})"


def milliseconds(record):
    return f"{1e3 * record['seconds']:.4g}"


def case(record):
    return f"{record['model']}, {record['batch']}, {record['dtype']}"


def steps(records):
    head = [
        "network, batch, dtype",
        "variant",
        "ratio to plain (quartiles)",
        "ms a step",
        "state, MiB",
        "temporary, MiB",
    ]
    return table(
        head,
        [
            [case(r), r["variant"], ratio(r), milliseconds(r), f"{r['arguments_mib']:.1f}", f"{r['temporary_mib']:.1f}"]
            for r in records
        ],
    )


def compared(base):
    def make(records):
        head = ["network, batch, dtype", "variant", f"ratio to {base} (quartiles)", "ms"]
        return table(head, [[case(r), r["variant"], ratio(r), milliseconds(r)] for r in records])

    return make


def epoch(records):
    head = ["network, batch, dtype", "what", "images/s", "ratio to the bare step"]
    return table(
        head, [[case(r), r["variant"], f"{r['images_per_second']:,.0f}", f"{r['ratio']:.3f}"] for r in records]
    )


def growth(records):
    head = ["network", "batch", "ms a step", "images/s", "s to load, initialize and compile"]
    rows = [
        [r["model"], r["batch"], milliseconds(r), f"{r['images_per_second']:,.0f}", f"{r['setup_seconds']:.1f}"]
        for r in records
    ]
    return table(head, rows)


def start(records):
    head = [
        "network",
        "compilation cache",
        "s before the first step, with imports",
        "s of them for the step and evaluation",
    ]
    rows = [[r["model"], r["variant"], f"{r['seconds']:.1f}", f"{r['compile_seconds']:.1f}"] for r in records]
    return table(head, rows)


def imports(records):
    return table(["import", "s"], [[f"`{r['variant']}`", f"{r['seconds']:.2f}"] for r in records])


MAKERS = {
    "torch": compared("plain PyTorch"),
    "steps": steps,
    "forward": compared("folded"),
    "convolutions": compared("XLA's"),
    "scan": compared("one a dispatch"),
    "epoch": epoch,
    "growth": growth,
    "start": start,
    "imports": imports,
}


def plot_growth(name) -> pathlib.Path:
    """Images/s over the batch, and time of a step over the networks: docs/growth_<name>.png."""
    records = [r for r in read(name)["records"] if r["group"] == "growth"]
    first, batch = records[0]["model"], records[0]["batch"]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    over_batch = [r for r in records if r["model"] == first]
    left.plot([r["batch"] for r in over_batch], [r["images_per_second"] for r in over_batch], marker="o")
    left.set(xscale="log", xlabel="batch", ylabel="images/s", ylim=(0, None), title=f"{first}, WC layers")
    of_batch = [r for r in records if r["batch"] == batch]
    right.bar([r["model"] for r in of_batch], [r["seconds"] for r in of_batch])
    right.set(yscale="log", ylabel="s a step", title=f"batch {batch}, WC layers")
    right.tick_params(axis="x", labelrotation=30)
    path = PAGE.parent / f"growth_{name}.png"
    figure.savefig(path, dpi=120)
    return path


def main():
    text = page()
    PAGE.write_text(text, encoding="utf-8")
    groups = itertools.groupby(sorted({(m["name"], m["group"]) for m in BLOCK.finditer(text)}), key=lambda x: x[0])
    for name, of in groups:
        if (name, "growth") in of:
            print(plot_growth(name))
    print(PAGE)


if __name__ == "__main__":
    main()
