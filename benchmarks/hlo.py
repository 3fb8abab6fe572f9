"""What a compiled program consists of, read from the text of XLA."""

import collections
import math
import re
from typing import NamedTuple

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "pred": 1}
COLLECTIVE = re.compile(
    r"= (?P<result>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+|pred)\[(?P<shape>[\d,]*)\]")

NOT_KERNELS = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id"}
NOT_KERNELS |= {"copy-start", "slice-start"}  # a TPU fetches operands into its fast memory while it computes
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>\S+) = (?P<result>\(.*?\)|\S+) (?P<kind>[\w-]+)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>\S+) [^\n]*\{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL)


class Kernel(NamedTuple):
    """An instruction that a device executes in one launch: a fusion, a library call, a copy, a collective."""

    name: str
    kind: str
    result: str
    cycles: int  # the TPU compiler's estimate; 0 if it has none
    text: str  # of the instruction, and of the computation that it calls

    @property
    def does(self) -> str:
        """'convolutions' (or matrix products), 'copies', 'pads' or 'other'."""
        if re.search(r" (?:convolution|dot)\(|__cudnn\$conv|__cublas", self.text):
            return "convolutions"
        return {"copy": "copies", "pad": "pads"}.get(re.split(r"[._-]", self.name)[0], "other")


class Collective(NamedTuple):
    kind: str  # all-reduce, all-gather, reduce-scatter, ...
    bytes: int  # of the result on one device
    overlapped: bool  # whether the device computes a convolution or a product meanwhile


def kernels(hlo: str) -> list[Kernel]:
    """The kernels of a program in the order in which they run."""
    bodies = {m["name"]: m["body"] for m in COMPUTATION.finditer(hlo)}
    entry = re.search(r"^ENTRY %?(\S+)", hlo, re.MULTILINE)[1]
    program = []
    for line in bodies[entry].splitlines():
        if not (instruction := INSTRUCTION.match(line)):
            continue
        name, result, kind = instruction["name"], instruction["result"], instruction["kind"]
        if kind in NOT_KERNELS or (kind == "custom-call" and '"ConcatBitcast"' in line):
            continue
        callees = "".join(bodies.get(callee, "") for callee in re.findall(r"calls=%?([^\s,)]+)", line))
        cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
        program.append(Kernel(name, kind, result, cycles, f"{line}\n{callees}"))
    return program


def collectives(program: list[Kernel]) -> list[Collective]:
    """What the devices send each other. A TPU overlaps a collective with the computations among which it splits it."""
    by_channel = {}
    for i, kernel in enumerate(program):
        for line in kernel.text.splitlines():
            if not (operation := COLLECTIVE.search(line)):
                continue
            chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)  # the parts of one collective of a TPU
            key = (operation["kind"], *chain.groups()) if chain else kernel.name
            if key in by_channel:
                continue
            kind, result = operation["kind"], _result(line, operation)
            if "calls=%all-reduce-scatter" in kernel.text:  # the name of a reduce-scatter on a TPU
                kind, result = "reduce-scatter", kernel.result
            is_split = kernel.name.startswith("async-collective")
            overlapped = is_split or (kernel.kind.endswith("-start") and _computes_meanwhile(program, i))
            by_channel[key] = Collective(kind, num_bytes(result), overlapped)
    return list(by_channel.values())


def _result(line, operation):
    """The result of a collective without the operands that a GPU's all-gather-start has in its tuple as well."""
    arrays = [array[0] for array in ARRAY.finditer(operation["result"])]
    has_operands = f"{operation['kind']}-start(" in line and operation["kind"] != "all-reduce"
    return " ".join(arrays[len(arrays) // 2 :] if has_operands else arrays)


def _computes_meanwhile(program, start):
    """Whether a convolution or a matrix product runs between a '-start' and its '-done'."""
    for kernel in program[start + 1 :]:
        if kernel.kind.endswith("-done") and f"%{program[start].name})" in kernel.text:
            return False
        if kernel.does == "convolutions":
            return True
    return False


def collective_arrays(hlo: str) -> dict[tuple[str, str], tuple[int, int]]:
    """{(kind, what): (arrays, bytes of the results on one device)} of a compiled program.

    what: 'kernels' for arrays of two axes and more; for those of one axis, which are batch norm's but for the bias of
    the head, 'vectors, forward' (sums for mean and variance) or 'backward'; 'numbers' for the loss and what is counted.
    """
    totals = collections.defaultdict(lambda: (0, 0))
    for line in hlo.splitlines():
        if not (operation := COLLECTIVE.search(line)):
            continue
        backward = "transpose(" in line.partition("op_name=")[2]
        for array in ARRAY.finditer(operation["result"]):
            shape = [int(n) for n in array["shape"].split(",") if n]
            what = "kernels" if len(shape) > 1 else f"vectors, {'backward' if backward else 'forward'}"
            what = what if shape else "numbers"
            count, total = totals[operation["kind"], what]
            totals[operation["kind"], what] = (count + 1, total + math.prod(shape) * BYTES[array["dtype"]])
    return dict(totals)


def num_bytes(result: str) -> int:
    """Bytes of the result of an instruction, which may be a tuple."""
    return sum(
        math.prod(int(n) for n in array["shape"].split(",") if n) * BYTES.get(array["dtype"], 4)
        for array in ARRAY.finditer(result)
    )


def describe(hlo: str) -> dict:
    """The numbers of a program: kernels, convolutions, conditionals, copies, cycles, collectives, aliased buffers."""
    program = kernels(hlo)
    launches = [kernel for kernel in program if not kernel.kind.endswith("-done")]
    copies = [kernel for kernel in launches if kernel.does == "copies"]
    cycles = collections.Counter()
    for kernel in program:
        cycles[kernel.does] += kernel.cycles
    totals = {}
    for kind, size, overlapped in collectives(program):
        numbers = totals.setdefault(kind, {"number": 0, "mb": 0.0, "overlapped": 0, "overlapped_mb": 0.0})
        numbers["number"] += 1
        numbers["mb"] += size / 1e6
        numbers["overlapped"] += overlapped
        numbers["overlapped_mb"] += overlapped * size / 1e6
    head = hlo.partition("\n")[0]
    return {
        "kernels": len(launches),
        "convolutions": len(re.findall(r"__cudnn\$conv\w*|= \S+ convolution\(", hlo)),
        "conditionals": sum(kernel.kind == "conditional" for kernel in program),
        "copies": len(copies),
        "copied_mb": sum(num_bytes(kernel.result) for kernel in copies) / 1e6,
        "cycles": sum(cycles.values()) or None,
        "cycles_of": {name: n for name, n in cycles.items() if n},
        "collectives": totals,
        "aliased": head.count("may-alias") + head.count("must-alias"),
    }
