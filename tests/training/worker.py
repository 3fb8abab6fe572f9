"""Runs in new processes, which have several devices or share a run.

    python -m tests.training.worker '{"runs": [{"config": ..., "workdir": ...}, ...], "distributed": {...}}'

A run with 'resume' first gets a copy of that run folder as it was after its third epoch. One with 'error' must end with
that InputError. '{process}' in its data_dir stands for the number of the process.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax

from tests.processes import ROOT
from tests.training import runs


def train(tasks, *, devices=1, processes=1) -> None:
    """Does tasks, dicts as above, one after the other in `processes` processes with `devices` devices together."""
    started = []
    for i, distributed in enumerate(addresses(processes)):
        job = {"runs": [{**task, **{k: str(task[k]) for k in ("workdir", "resume") if k in task}} for task in tasks]}
        if processes > 1:
            job["distributed"] = distributed | {"process_id": i}
        started.append(start_python("-m", "tests.training.worker", json.dumps(job), devices=devices // processes))
    for process, output in zip(started, [process.communicate()[0] for process in started], strict=True):
        assert process.returncode == 0, output


def addresses(processes) -> list[dict]:
    """Where each of several processes finds the first one, as keywords of jax.distributed.initialize."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [{"coordinator_address": address, "num_processes": processes}] * processes


def start_python(*arguments, devices=1):
    """A Python process with this many CPU devices, started in the folder of the repository."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, **output)


def main(job):
    if "distributed" in job:
        jax.distributed.initialize(**job["distributed"])
    from wcjax import training
    from wcjax.errors import InputError
    from wcjax.system import processes
    from wcjax.training import sharding

    runs.register_tiny()
    sharding.MIN_FSDP_SIZE = 64  # the tiny network has no larger arrays
    for run in job["runs"]:
        workdir = pathlib.Path(run["workdir"])
        run["config"]["data_dir"] = run["config"].get("data_dir", "").replace("{process}", str(jax.process_index()))
        if "resume" in run:
            if processes.is_first():
                runs.unfinished_copy(pathlib.Path(run["resume"]), workdir, epoch=3)
            processes.wait_for_all("the copy is made")
        try:
            training.train(run["config"], workdir)
        except InputError as error:
            assert str(error) == run.get("error"), error


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
