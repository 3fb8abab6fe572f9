"""Puts the numbers of benchmarks/results/*.json into the pages of docs that have tables of them.

    python -m benchmarks.report

A line <!-- NAME: GROUP --> in a page stands above what is made from that group of results/NAME.json, and
<!-- end --> below it; the text around is written by hand.
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (DOCS / "performance.md", DOCS / "performance_notes.md", DOCS / "scaling.md")
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- (?P<name>\w+): (?P<group>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def text(page: pathlib.Path) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{block(m['name'], m['group'])}\n{m[4]}", page.read_text(encoding="utf-8"))


def block(name, group) -> str:
    """The Markdown of one group of one file."""
    results = read(name)
    if group == "machine":
        return machine(results["machine"])
    records = [record for record in results["records"] if record["group"] == GROUP_OF_RECORDS.get(group, group)]
    if not records:
        return "Not measured yet."
    return TABLES[group](records)


def read(name) -> dict:
    """What benchmarks/results/<name>.json holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def machine(facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    flags = ", ".join(f"{k}={v}" for k, v in facts["flags"].items()) or "none"
    cores = "1 core" if facts["cores"] == 1 else f"{facts['cores']} cores"
    device = f"{facts['devices']} × {facts['device']} ({facts['processor']}), {cores}, {facts['clock']}"
    return f"{device}; Python {facts['python']}, {versions}; flags: {flags}."


def table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ratio(record):
    return f"{record['ratio']:.3f} ({record['low']:.3f} to {record['high']:.3f})"


def milliseconds(record):
    ms = 1e3 * record["seconds"]
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def case(record):
    network = f"{record['model']} ({record['dataset']})" if "dataset" in record else record["model"]
    return f"{network}, {record['batch']}, {record['dtype']}"


def steps(records):
    head = [
        "network, batch, dtype",
        "variant",
        "ratio to plain (quartiles)",
        "ms a step",
        "ns a weight",
        "temporary, MiB",
    ]
    rows, plain = [], {}
    for r in records:
        kind = (case(r), r["variant"].startswith("Adam"))
        base = plain.setdefault(kind, r)  # the plain network is the first of its kind
        overhead = (r["ratio"] - 1) * base["seconds"] / r["num_weights"]
        in_noise = r["low"] <= 1 <= r["high"]
        ns = "" if r is base else "in the noise" if in_noise else f"{1e9 * overhead:.2g}"
        rows.append([case(r), r["variant"], ratio(r), milliseconds(r), ns, f"{r['temporary_mib']:.1f}"])
    return table(head, rows)


def against_torch(records):
    """A line for training and one for evaluation of each case; ratios are to the faster of PyTorch's two times."""
    head = ["network, batch, dtype", "work", "PyTorch, ms", "compiled, ms", "wcjax, ms", "ratio", "layers", "compand"]
    rows, lines = [], {}
    for r in records:
        lines.setdefault((case(r), r["work"]), {})[r["variant"]] = r
    for (network, work), variants in lines.items():
        times = [milliseconds(variants[name]) if name in variants else "" for name in ("PyTorch", "PyTorch, compiled")]
        plain = variants.get("wcjax, plain", variants.get("wcjax, folded"))
        wc = [ratio(variants[name]) if name in variants else "" for name in ("wcjax, layers", "wcjax, compand")]
        rows.append([network, work, *times, milliseconds(plain), ratio(plain), *wc])
    return table(head, rows)


def dispatch(records):
    head = ["network", "variant", "ms a step", "ratio to plain (quartiles)"]
    return table(head, [[r["model"], r["variant"], milliseconds(r), ratio(r)] for r in records])


def aot(records):
    """Programs for one accelerator, with ratios to the first program of the same case, the plain one."""
    head = ["target", "network, batch, dtype", "variant", "kernels", "GB", "million cycles", "cycles in copies"]
    head += ["temporary, MB", "memory of the device"]
    rows, plain = [], {}
    for r in (record for record in records if not record["collectives"]):
        base = plain.setdefault((r["target"], case(r)), r)
        columns = (("kernels", 1, ",.0f"), ("bytes", 1e9, ".3f"), ("cycles", 1e6, ".2f"))
        sizes = [f"{r[key] / unit:{form}} ({r[key] / base[key]:.3f})" if r[key] else "" for key, unit, form in columns]
        copies = f"{r['cycles_of'].get('copies', 0) / r['cycles']:.1%}" if r["cycles"] else ""
        memory = [f"{r['temporary_mb']:.0f}", f"{r['memory_share']:.1%}"]
        rows.append([r["target"], case(r), r["variant"], *sizes, copies, *memory])
    return table(head, rows)


def collectives(records):
    """What the devices of programs for several accelerators send each other."""
    head = [
        "target",
        "network, batch, dtype",
        "variant",
        "fsdp",
        "options",
        "collective",
        "number",
        "MB",
        "overlapped",
        "MB overlapped",
    ]
    rows = []
    for r in records:
        for kind, x in sorted(r["collectives"].items()):
            program = [r["target"], case(r), r["variant"], r["fsdp"], "ours" if r["options"] else "default"]
            rows.append([*program, kind, x["number"], f"{x['mb']:.2f}", x["overlapped"], f"{x['overlapped_mb']:.2f}"])
    return table(head, rows)


TABLES = {"torch": against_torch, "steps": steps, "dispatch": dispatch, "aot": aot, "sent": collectives}
GROUP_OF_RECORDS = {"sent": "aot"}  # another table of the same records


def main():
    for page in PAGES:
        page.write_text(text(page), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
