"""Real sweeps that are stopped or killed lose no run."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT
from tests.sweep.command_lines import RUNS
from wcjax.training.start import EXIT_PREEMPTED

START = """import sys
from wcjax.sweep.__main__ import run_command
sys.exit(run_command(sys.argv[1:], heartbeat=1, grace=4))"""


def start_sweep(out, *arguments):
    """A real sweep of plain ResNet-8 on digits, in its own process group."""
    command = [sys.executable, "-c", START, *RUNS, "--variants", "plain", "--out", str(out), *arguments]
    options = {"cwd": ROOT, "env": os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}}
    with (out / "log").open("w") as log:
        return subprocess.Popen(command, **options, stdout=log, stderr=log, start_new_session=True)


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, EXIT_PREEMPTED), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_saves_its_runs(tmp_path, number, code):
    started = start_sweep(tmp_path, "--seeds", "0", "--config.epochs=1000")  # more than it trains until it is stopped
    run = tmp_path / "resnet8_plain_seed0"
    wait_for(started, lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    started.send_signal(number)
    assert started.wait() == code
    assert not (run / "summary.json").exists()
    (step,) = (int(path.name) for path in (run / "midway").iterdir())
    assert step > 0


@pytest.mark.long
def test_a_sweep_that_is_killed_repeats_no_finished_run(tmp_path):
    def finished():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}

    arguments = ["--seeds", "0-2", "--jobs", "2", "--config.epochs=1"]
    started = start_sweep(tmp_path, *arguments)
    wait_for(started, finished)
    os.killpg(started.pid, signal.SIGKILL)  # the sweep and its runs at once, as when a machine fails
    started.wait()
    before = finished()
    assert 1 <= len(before) < 3

    assert start_sweep(tmp_path, *arguments).wait() == 0, (tmp_path / "log").read_text()
    after, log = finished(), (tmp_path / "log").read_text()
    assert before.items() <= after.items()
    assert "3 runs: 3 finished" in log
    for name in (f"resnet8_plain_seed{seed}" for seed in range(3)):
        accuracy = json.loads((tmp_path / name / "summary.json").read_text())["best_val_accuracy"]
        assert re.search(rf"\| {name} +\| finished +\| 1/1 +\| {accuracy:.2%} +\|  \|", log)
