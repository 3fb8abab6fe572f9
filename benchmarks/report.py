"""Puts the numbers of benchmarks/results/*.json into docs/performance.md and docs/scaling.md, and draws the plots.

    python -m benchmarks.report

A line <!-- NAME: GROUP --> in a page stands above what is made from that group of results/NAME.json, and
<!-- end --> below it; the text around is written by hand.
"""

import json
import pathlib
import re

from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (DOCS / "performance.md", DOCS / "scaling.md")
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (?P<name>\w+): (?P<group>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def text(page: pathlib.Path) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{block(m['name'], m['group'])}\n{m[4]}", page.read_text(encoding="utf-8"))


def block(name, group) -> str:
    """The Markdown of one group of one file."""
    found = read(name)
    if group == "machine":
        return machine(found["machine"])
    records = [record for record in found["records"] if record["group"] == SAME.get(group, group)]
    if not records:
        return "Not measured yet."
    plot = f"![{PLOTS[group][0]}]({PLOTS[group][1]}_{name}.png)\n\n" if group in PLOTS else ""
    return plot + MAKERS[group](records)


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
    head = ["network, batch, dtype", "measured", "images/s", "ratio to the bare step"]
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


def devices(records):
    head = ["network, batch, dtype", "devices", "ms a step", "images/s"]
    rows = [[case(r), r["devices"], milliseconds(r), f"{r['images_per_second']:,.0f}"] for r in records]
    return table(head, rows)


def inputs(records):
    rows = [[r["variant"], r["batch"], f"{r['images_per_second']:,.0f}"] for r in records]
    return table(["input", "batch", "images/s"], rows)


def start(records):
    head = [
        "network",
        "compilation cache",
        "s before the first step, with imports",
        "of these, s to compile the step and the evaluation",
    ]
    rows = [[r["model"], r["variant"], f"{r['seconds']:.1f}", f"{r['compile_seconds']:.1f}"] for r in records]
    return table(head, rows)


def save_costs(records):
    rows = [[case(r), f"{r['seconds']:.3f}", f"{r['epoch_seconds']:,.0f}", f"{r['share']:.2%}"] for r in records]
    return table(["network, batch, dtype", "s that a save adds to steps", "s an epoch of CIFAR-10", "share"], rows)


def aot(records):
    """Programs for one accelerator, with ratios to the first program of the same case, the plain one."""
    head = ["target", "network, batch, dtype", "variant", "kernels", "GB", "million cycles", "cycles in copies"]
    head += ["temporary, MB", "memory of the device"]
    rows, plain = [], {}
    for r in (record for record in records if not record["collectives"]):
        base = plain.setdefault((r["target"], case(r)), r)
        cell = lambda key, unit, form, r=r, base=base: (
            f"{r[key] / unit:{form}} ({r[key] / base[key]:.3f})" if r[key] else ""
        )
        sizes = [cell("kernels", 1, ",.0f"), cell("bytes", 1e9, ".3f"), cell("cycles", 1e6, ".2f")]
        copies = f"{r['cycles_of'].get('copies', 0) / r['cycles']:.1%}" if r["cycles"] else ""
        memory = [f"{r['temporary_mb']:.0f}", f"{r['memory_share']:.1%}"]
        rows.append([r["target"], case(r), r["variant"], *sizes, copies, *memory])
    return table(head, rows)


def sent(records):
    """What the devices of programs for several accelerators send each other."""
    head = ["target", "network, batch, dtype", "fsdp", "options", "collective", "number", "MB", "overlapped", "MB"]
    rows = []
    for r in records:
        for kind, x in sorted(r["collectives"].items()):
            program = [r["target"], case(r), r["fsdp"], "ours" if r["options"] else "default"]
            rows.append([*program, kind, x["number"], f"{x['mb']:.2f}", x["overlapped"], f"{x['overlapped_mb']:.2f}"])
    return table(head, rows)


def imports(records):
    return table(["import", "s"], [[f"`{r['variant']}`", f"{r['seconds']:.2f}"] for r in records])


MAKERS = {
    "torch": compared("plain PyTorch"),
    "steps": steps,
    "forward": compared("folded"),
    "convolutions": compared("XLA's"),
    "scan": compared("one a dispatch"),
    "flags": compared("none"),
    "input": inputs,
    "devices": devices,
    "epoch": epoch,
    "save": save_costs,
    "growth": growth,
    "start": start,
    "imports": imports,
    "aot": aot,
    "sent": sent,
}


def plot_overhead(name) -> pathlib.Path:
    """Ratio of a step with WC to the plain step, with quartiles, for each network: docs/overhead_<name>.png."""
    records = [r for r in read(name)["records"] if r["group"] == "steps"]
    cases = list(dict.fromkeys(map(case, records)))
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for shift, variant in ((-0.12, "layers"), (0.12, "compand")):
        of = [r for r in records if r["variant"] == variant]
        at = [cases.index(case(r)) + shift for r in of]
        ends = [[r["ratio"] - r["low"] for r in of], [r["high"] - r["ratio"] for r in of]]
        axes.errorbar([r["ratio"] for r in of], at, xerr=ends, fmt="o", label=variant)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(yticks=range(len(cases)), yticklabels=cases, xlabel="time of a step / time of a plain step")
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2)
    return save(figure, f"overhead_{name}.png")


def plot_growth(name) -> pathlib.Path:
    """Images/s over the batch, for each network and over the devices: docs/growth_<name>.png."""
    records = read(name)["records"]
    growth = [r for r in records if r["group"] == "growth"]
    over_devices = [r for r in records if r["group"] == "devices"]
    first, batch = growth[0]["model"], growth[0]["batch"]
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 3 if over_devices else 2)
    over_batch = [r for r in growth if r["model"] == first]
    line(panels[0], "batch", over_batch, first)
    networks = [r for r in growth if r["batch"] == batch]
    panels[1].bar([r["model"] for r in networks], [r["images_per_second"] for r in networks])
    panels[1].set(yscale="log", title=f"batch {batch}")
    panels[1].tick_params(axis="x", labelrotation=30)
    if over_devices:
        line(panels[2], "devices", over_devices, f"{over_devices[0]['model']}, batch {over_devices[0]['batch']}")
    panels[0].set(ylabel="images/s, WC layers")
    return save(figure, f"growth_{name}.png")


def line(axes, key, records, title):
    axes.plot([r[key] for r in records], [r["images_per_second"] for r in records], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks([r[key] for r in records], [r[key] for r in records], minor=False)
    axes.set(xlabel=key, ylim=(0, None), title=title)


def save(figure, file) -> pathlib.Path:
    figure.savefig(DOCS / file, dpi=120)
    return DOCS / file


SAME = {"sent": "aot"}  # another table of the same records

PLOTS = {  # group: (what it shows, name of the file, function)
    "steps": ("Ratio of a step with WC to the plain step", "overhead", plot_overhead),
    "growth": ("Images/s over batch, network and devices", "growth", plot_growth),
}


def main():
    for page in PAGES:
        made = text(page)
        page.write_text(made, encoding="utf-8")
        for name in sorted({m["name"] for m in BLOCK.finditer(made)}):
            measured = {record["group"] for record in read(name)["records"]}
            for group in PLOTS.keys() & measured:
                print(PLOTS[group][2](name))
        print(page)


if __name__ == "__main__":
    main()
