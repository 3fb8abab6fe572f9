"""Calls timed in turn, so that a noisy machine is equally noisy for each; what counts is the ratio to the first."""

import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping

import jax

VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "GLIBC_TUNABLES")
FLAGS += ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")  # limits of the width of vectors
VECTORS = {"AVX-512": "avx512f", "AVX2": "avx2"}  # and the flag of each
SHORTEST_ON_CPU, SHORTEST = 0.02, 0.5  # seconds that a measurement takes at least
LONGEST = 60  # seconds after which no further repeat begins, once there are 3


def on_one_core() -> bool:
    """Whether this process may use one core only, as under `taskset -c 0`."""
    return jax.default_backend() == "cpu" and len(os.sched_getaffinity(0)) == 1


def clock() -> float:
    """Seconds of CPU time on one core, where other programs do not count; otherwise seconds."""
    return time.process_time() if on_one_core() else time.perf_counter()


def in_turn(calls: Mapping[str, Callable[[], object]], repeats: int, pause: float = 0.0) -> dict[str, list[float]]:
    """{name: seconds a call, one for each repeat}. A call returns something to wait for, or has waited already.

    repeats: at most. No repeat begins after LONGEST seconds, except for the first 3.
    pause: seconds of sleep before each call if libraries take turns, because idle threads of one disturb the other.

    Before each measurement one call is not timed. It gets from the system the memory that other calls gave back, which
    a step of a run does not have to do. On a CPU, each number is the least of 3 consecutive measurements, because in a
    virtual machine later calls, too, sometimes wait for memory of the host, which made a step 1.7 times as long.
    """
    on_cpu = jax.default_backend() == "cpu"
    shortest, tries = (SHORTEST_ON_CPU, 3) if on_cpu else (SHORTEST, 1)
    times = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        times[name] = math.ceil(shortest / _seconds(call, 1))
    seconds = {name: [] for name in calls}
    first = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - first > LONGEST:
            break
        for name, call in calls.items():
            time.sleep(pause)
            jax.block_until_ready(call())
            seconds[name].append(min(_seconds(call, times[name]) for _ in range(tries)))
    return seconds


def _seconds(call, times):
    """Seconds for one call, as the mean of `times` calls."""
    began = clock()
    for _ in range(times):
        last = call()
    jax.block_until_ready(last)
    return (clock() - began) / times


def summary(seconds: Mapping[str, list[float]], base: str | None = None) -> dict[str, dict]:
    """{name: {'seconds', 'ratio', 'low', 'high', 'repeats'}}: median time; median and quartiles of the ratio to base.

    A ratio is of two measurements of the same repeat. base: the first by default.
    """
    base = base or next(iter(seconds))
    statistics_by_name = {}
    for name, times in seconds.items():
        ratios = [x / y for x, y in zip(times, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        quartiles = {"ratio": middle, "low": low, "high": high}
        statistics_by_name[name] = {"seconds": statistics.median(times), **quartiles, "repeats": len(times)}
    return statistics_by_name


def end_after(minutes: float) -> None:
    """Ends this process after that time, whatever it does: a compiler or a device that hangs does not listen."""

    def end():
        print(f"{minutes:g} minutes are over: the rest is omitted.", flush=True)
        os._exit(0)

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()


def _processor() -> str:
    """Name and widest vectors of the processor, where Linux tells them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    vectors = next((name for name, flag in VECTORS.items() if flag in flags), "neither AVX-512 nor AVX2")
    return f"{facts.get('model name', 'unknown')} with {vectors}"


def machine() -> dict:
    """What the numbers depend on: device, cores, versions and flags."""
    device = jax.devices()[0]
    installed = {}
    for name in VERSIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": f"{_processor()}, {platform.machine()}",
        "clock": "CPU time" if on_one_core() else "time",
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": installed,
        "flags": {k: v for k, v in os.environ.items() if k in FLAGS},
    }
