"""Runs that resume with another number of devices or another version of JAX: the same course, to rounding."""

import itertools
import json
import os
import subprocess

import jax
import pytest

from tests.faults import attempts
from tests.training import runs

pytestmark = pytest.mark.long

OTHER_PYTHON = os.environ.get("WCJAX_OTHER_PYTHON")


def two_devices():
    jax.config.update("jax_num_cpu_devices", 2)


def test_a_run_resumes_with_another_number_of_devices(unbroken, tmp_path, chance):
    def stop_and_change(attempt, run):
        struck = attempts.stop(attempt, run)
        if not (run / "summary.json").exists():
            attempts.finish(run, changes=(two_devices,))
        return struck

    same_course = lambda run: runs.assert_same_course(run, unbroken.run)
    attempts.strike(tmp_path, chance, unbroken.seconds, stop_and_change, same_course)


@pytest.mark.skipif(not OTHER_PYTHON, reason="set WCJAX_OTHER_PYTHON to a Python with another version of JAX")
def test_a_run_resumes_with_another_version_of_jax(unbroken, tmp_path, chance):
    stopped, numbers = [], itertools.count()
    while len(stopped) < chance.times:
        run, moment = tmp_path / str(next(numbers)), chance.random.uniform(0, unbroken.seconds)
        attempt = attempts.train(run)
        print(f"stopped at {moment:.3f} s")
        attempt.wait_for((run / "config.json").exists)
        attempt.process.join(moment)
        attempts.stop(attempt, run)
        if not (run / "summary.json").exists():
            stopped.append({"config": json.loads((run / "config.json").read_text()), "workdir": str(run)})
    command = [OTHER_PYTHON, "-m", "tests.training.worker", json.dumps({"runs": stopped})]
    ended = subprocess.run(command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    for task in stopped:
        run = runs.ROOT / task["workdir"]
        assert runs.summary(run)["jax_version"] != jax.__version__
        runs.assert_same_course(run, unbroken.run)
