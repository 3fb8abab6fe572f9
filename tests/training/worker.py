"""Runs in a process of their own, which may have several devices or be one of several processes.

    python -m tests.training.worker '{"runs": [[config, workdir], ...], "distributed": {...}}'

JAX_NUM_CPU_DEVICES says how many devices the process has. distributed: arguments of jax.distributed.initialize.
"""

import json
import os
import socket
import subprocess
import sys

import jax

from tests.training import runs


def start(tasks, *, devices=1, processes=1):
    """Starts processes that do tasks, [(config, workdir), ...], together; `finish` waits for them.

    devices: of all processes together.
    """
    job = {"runs": [(config, str(workdir)) for config, workdir in tasks]}
    # One thread each: the machine has few cores, and gradients of convolutions may depend on the number of threads.
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices // processes), "JAX_PLATFORMS": "cpu"}
    started = []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for i in range(processes):
        if processes > 1:
            job["distributed"] = {
                "coordinator_address": f"localhost:{port}",
                "num_processes": processes,
                "process_id": i,
            }
        command = [sys.executable, "-m", "tests.training.worker", json.dumps(job)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=runs.ROOT, env=env, **output))
    return started


def finish(started) -> list[str]:
    """Waits for the processes and returns what each said; fails where one of them failed."""
    said = [process.communicate()[0] for process in started]
    for process, output in zip(started, said, strict=True):
        assert process.returncode == 0, output
    return said


def train(tasks, **machine) -> list[str]:
    return finish(start(tasks, **machine))


def main(job):
    if "distributed" in job:
        jax.distributed.initialize(**job["distributed"])
    from wcjax import models, training
    from wcjax.training import mesh

    models._NETWORKS["tiny"] = runs.TINY
    models.NAMES = (*models.NAMES, "tiny")
    mesh.MIN_FSDP_SIZE = 64  # the tiny network has no larger arrays
    for config, workdir in job["runs"]:
        training.train(config, workdir)
        print("done:", workdir, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
