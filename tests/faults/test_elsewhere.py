"""Runs that resume with another number of devices or another version of JAX: the same history, to rounding."""

import json
import os
import subprocess

import jax
import pytest

from tests.faults import attempts
from tests.processes import ROOT
from tests.training import runs

OTHER_PYTHON = os.environ.get("WCJAX_OTHER_PYTHON")
needs_python = pytest.mark.skipif(not OTHER_PYTHON, reason="set WCJAX_OTHER_PYTHON to a Python with another JAX")


def two_devices():
    jax.config.update("jax_num_cpu_devices", 2)


def on_two_devices(run):
    attempts.finish(run, changes=(two_devices,))


def with_another_jax(run):
    job = {"runs": [{"config": json.loads((run / "config.json").read_text()), "workdir": str(run)}]}
    command = [OTHER_PYTHON, "-m", "tests.training.worker", json.dumps(job)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    assert runs.summary(run)["jax_version"] != jax.__version__


@pytest.mark.long
@pytest.mark.parametrize("finish", [on_two_devices, pytest.param(with_another_jax, marks=needs_python)])
def test_a_run_resumed_elsewhere_gives_the_same_losses(unbroken, tmp_path, chance, finish):
    def stop_and_move(attempt, run):
        struck = attempts.stop(attempt, run)
        if not (run / "summary.json").exists():
            finish(run)
        return struck

    same_history = lambda run: runs.assert_same_history(run, unbroken.run)
    attempts.strike(tmp_path, chance, unbroken.seconds, stop_and_move, same_history)
