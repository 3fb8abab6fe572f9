"""Trains the network of a config file, or goes on with it where it stopped.

python train.py --config configs/digits.py --workdir runs/digits
python train.py --config configs/cifar10.py:resnet18,plain --workdir runs/plain --config.seed=1 --config.data_dir=DIR

One process uses all devices that it sees. For many processes give each the same command with --distributed, on a TPU
pod, under Slurm or Open MPI; elsewhere also --coordinator_address, --num_processes and --process_id.
"""

import json
import logging
import os
import signal
import sys

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file: FILE.py or FILE.py:model,variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: made if missing, continued if it holds this run.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Be one of many processes; found out on TPU pods, Slurm, MPI.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; implies --distributed.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Where it cannot be found out.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "From 0 on; where it cannot be found out.", lower_bound=0)
flags.mark_flags_as_required(["config", "workdir"])


def with_huge_pages():
    """Starts this process again, so that glibc asks Linux for huge pages: a step on a CPU takes 0.7 of its time."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        tuned = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned)


def parse(argv):
    """absl's parser, but with an error of one line."""
    from wcjax.training.command_line import CONFIG_ERRORS, check_overrides, reason

    try:
        check_overrides(argv)
        remaining = flags.FLAGS(argv)
        CONFIG.value.lock()  # where the file was not found, only a use of the config raises
    except CONFIG_ERRORS as error:
        sys.exit(f"error: {reason(error)}")
    return remaining


def main(argv):
    if len(argv) > 1:
        sys.exit(f"error: unknown arguments {argv[1:]}; see --help.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs a traceback for each thread that cannot write
    if DISTRIBUTED.value or COORDINATOR.value or NUM_PROCESSES.value or PROCESS_ID.value is not None:
        join_processes()
    import jax

    is_first = jax.process_index() == 0
    logging.getLogger("wcjax").setLevel(logging.INFO if is_first else logging.WARNING)
    from wcjax.errors import DivergedError, InputError, LoaderError, Preempted, SaveError
    from wcjax.training import train
    from wcjax.training.preemption import START_AGAIN, stop_at_once

    if jax.process_count() == 1:  # else JAX holds SIGTERM back
        signal.signal(signal.SIGTERM, stop_at_once)
    try:
        summary = train(CONFIG.value, WORKDIR.value)
    except (InputError, LoaderError, SaveError) as error:
        sys.exit(f"error: {error}")
    except DivergedError as error:
        sys.exit(f"diverged: {error}")
    except Preempted as notice:
        print(f"stopped: {notice}; the same command goes on from there.", file=sys.stderr)
        sys.exit(START_AGAIN)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on after the last checkpoint.")
    if is_first:
        print(json.dumps(summary, indent=2))


def join_processes():
    """Makes this one of many processes, before JAX looks for devices. Waits until all have come."""
    import jax

    try:
        # Where one ends with an error, the others wait so long for it and end too.
        jax.distributed.initialize(
            COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, shutdown_timeout_seconds=60
        )
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"error: the processes do not find each other ({str(error).splitlines()[0]}). Outside TPU pods, Slurm and "
            "Open MPI give --coordinator_address=HOST:PORT, --num_processes and --process_id."
        )


if __name__ == "__main__":
    with_huge_pages()  # before anything slow is imported
    app.run(main, flags_parser=parse)
