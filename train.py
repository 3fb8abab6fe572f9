"""Trains the network that a config file describes, or resumes its run.

python train.py --config configs/digits.py --workdir runs/digits
python train.py --config configs/cifar10.py:resnet18,plain --workdir runs/plain --config.seed=1 --config.data_dir=DIR

One process uses all devices that it sees. To train with several processes, give each the same command with
--distributed on a TPU pod, under Slurm or Open MPI; elsewhere also --coordinator_address, --num_processes and
--process_id.
"""

import os
import signal
import sys

START_AGAIN, INTERRUPTED = 75, 130  # exit codes after SIGTERM and Ctrl-C
signal.signal(signal.SIGTERM, lambda *_: os._exit(START_AGAIN))  # until wcjax.training.preemption is imported
signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

import json  # noqa: E402
import logging  # noqa: E402

from absl import app, flags  # noqa: E402

CONFIG = flags.DEFINE_string("config", None, "Config file: FILE.py or FILE.py:model,variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: made if missing, resumed if it holds this run.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one process of several (TPU pod, Slurm, MPI).")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; implies --distributed.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Needed if it is not detected.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "From 0 on; needed if it is not detected.", lower_bound=0)
flags.mark_flags_as_required(["config", "workdir"])


def with_huge_pages():
    """Starts this process again, so that glibc asks Linux for huge pages: a step on a CPU takes 0.7 of its time."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        tuned = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned)


def parse(argv):
    """(config, unknown arguments) of a command line. A mistake is an error of one line."""
    from wcjax.config.command_line import read_config_file, split_overrides
    from wcjax.errors import InputError, use_plain_letters

    use_plain_letters()
    try:
        argv, overrides = split_overrides(flags.FLAGS.read_flags_from_files(argv))
        try:
            unknown = flags.FLAGS(argv)[1:]
        except SystemExit:
            sys.exit(0)  # absl ends with 1 after --help
        return read_config_file(CONFIG.value, overrides), unknown
    except (flags.Error, InputError) as error:
        sys.exit(f"error: {error}")


def main(parsed):
    config, unknown = parsed
    if unknown:
        sys.exit(f"error: unknown arguments {unknown}; see --help.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs a traceback for each thread that cannot write
    from wcjax import processes
    from wcjax.errors import DivergedError, Preempted, told
    from wcjax.training import mesh, train
    from wcjax.training.preemption import leave_at_once

    leave_at_once()
    try:
        if DISTRIBUTED.value or COORDINATOR.value or NUM_PROCESSES.value or PROCESS_ID.value is not None:
            join_processes()
        mesh.devices()
        logging.getLogger("wcjax").setLevel(logging.INFO if processes.is_first() else logging.WARNING)
        summary = train(config, WORKDIR.value)
    except DivergedError as error:
        sys.exit(f"diverged: {error}")
    except Preempted as notice:
        print(f"stopped: {notice}; run the same command to resume.", file=sys.stderr)
        sys.exit(START_AGAIN)
    except KeyboardInterrupt as notice:
        print(f"stopped: {notice}; run the same command to resume.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (line := told(error)) is None:
            raise
        sys.exit(f"error: {line}")
    if processes.is_first():
        print(json.dumps(summary, indent=2))


def join_processes():
    """Makes this process one of several, before JAX looks for devices. Blocks until all have joined."""
    import jax

    try:
        # If one process fails, the others wait this long for it, then exit.
        jax.distributed.initialize(
            COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, shutdown_timeout_seconds=60
        )
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"error: the processes cannot find each other ({str(error).splitlines()[0]}). Outside TPU pods, Slurm and "
            "Open MPI give --coordinator_address=HOST:PORT, --num_processes and --process_id."
        )


if __name__ == "__main__":
    with_huge_pages()  # before anything slow is imported
    app.run(main, flags_parser=parse)
