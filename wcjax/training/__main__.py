"""Trains the network that a config file describes, or resumes its run.

    wcjax-train --config configs/digits.py --workdir runs/digits
    wcjax-train --config configs/cifar10.py:resnet18,plain --workdir runs/plain --config.seed=1 --config.data_dir=DIR

`python -m wcjax.training` is the same command, and in a checkout `python train.py`. One process uses all devices that
it sees. To train with several processes, give each the same command with --distributed on a TPU pod, under Slurm or
Open MPI; elsewhere also --coordinator_address, --num_processes and --process_id.
"""

import argparse
import json
import logging
import sys

from wcjax.commands import program, user_message
from wcjax.errors import DivergedError, InputError, Preempted
from wcjax.system.streams import discard, open_closed_streams, use_ascii_forms
from wcjax.training import start


def main(argv=None) -> None:
    if argv is None:  # this process is the command
        start.prepare()
        argv = sys.argv[1:]
    open_closed_streams()
    use_ascii_forms()
    try:
        train_and_print(*parse(argv))
    except DivergedError as error:
        sys.exit(f"diverged: {error}")
    except (Preempted, KeyboardInterrupt) as notice:
        print(f"stopped: {notice}; run the same command to resume.", file=sys.stderr)
        sys.exit(start.EXIT_PREEMPTED if isinstance(notice, Preempted) else start.EXIT_INTERRUPTED)
    except Exception as error:
        if (line := user_message(error)) is None:
            raise
        sys.exit(f"error: {line}")


def parse(argv):
    """(arguments, config) of a command line. Raises InputError for a config that cannot be used."""
    from wcjax.config.command_line import read_config_file, split_overrides

    argv, overrides = split_overrides(argv)
    args, unknown = argument_parser().parse_known_args(argv)
    config = read_config_file(args.config, overrides)
    if unknown:
        raise InputError(f"unknown arguments {unknown}; see --help.")
    return args, config


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program("wcjax.training"), description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--config",
        required=True,
        help="config file, or the name of one that comes with wcjax, as in my.py:resnet8,plain or cifar10:resnet18,wc",
    )
    parser.add_argument("--workdir", required=True, help="run folder: created if missing, resumed if it holds this run")
    parser.add_argument("--config.KEY", metavar="VALUE", help="value of a key of the config; repeat for more keys")
    group = parser.add_argument_group("one run in several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="run as one process of several, detected on TPU pods and under Slurm or Open MPI",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0; implies --distributed")
    group.add_argument("--num_processes", type=at_least(1), metavar="N", help="needed if it is not detected")
    group.add_argument("--process_id", type=at_least(0), metavar="N", help="from 0 on; needed if it is not detected")
    return parser


def at_least(lowest: int):
    """The type of an argument that is an integer of at least `lowest`."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, found {text}")
        return int(text)

    return number


def train_and_print(args: argparse.Namespace, config) -> None:
    """Trains the network that config describes, and prints the summary."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs a traceback for each thread that cannot write
    from wcjax.system import processes
    from wcjax.system.devices import check_devices
    from wcjax.training import train
    from wcjax.training.preemption import exit_on_signal

    exit_on_signal()
    if args.distributed or (args.coordinator_address, args.num_processes, args.process_id) != (None, None, None):
        join_processes(args)
    check_devices()
    logging.getLogger("wcjax").setLevel(logging.INFO if processes.is_first() else logging.WARNING)
    summary = train(config, args.workdir)
    if processes.is_first():
        try:
            print(json.dumps(summary, indent=2), flush=True)
        except OSError:  # nobody reads it, but it is in summary.json
            discard(sys.stdout)


def join_processes(args) -> None:
    """Makes this process one of several, before JAX looks for devices. Blocks until all have joined."""
    import jax

    try:
        # If one process fails, the others wait this long for it, then exit.
        jax.distributed.initialize(
            args.coordinator_address, args.num_processes, args.process_id, shutdown_timeout_seconds=60
        )
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"error: the processes cannot find each other ({str(error).splitlines()[0]}). Outside TPU pods, Slurm and "
            "Open MPI give --coordinator_address=HOST:PORT, --num_processes and --process_id."
        )


if __name__ == "__main__":
    main()
