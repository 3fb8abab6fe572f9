"""Trains many runs, each in its own folder and process: a grid over config keys, or networks × variants × seeds.

    python -m wcjax.sweep grid --config configs/cifar10.py:resnet18 --out DIR --seeds 0-4 --jobs 2 --config.data_dir=DIR
    python -m wcjax.sweep runs --config configs/digits.py --models resnet8 --variants plain,wc,pp --seeds 0-4 --out DIR

`grid` trains every (a, b), or every point of --over, with the first seed. Then it trains the point with the highest val
accuracy with the other seeds. A sweep may be stopped or killed at any moment. Run the same command to resume; finished
runs are not repeated. After SIGTERM the runs save within their epoch, and the exit code is 75. With
--storage, the address of a database such as postgresql://..., several machines that run the same command share the
work. They must all see the folder DIR.
"""

import argparse
import collections
import functools
import json
import logging
import pathlib
import re
import sys

import jax

from wcjax.commands import command, program
from wcjax.config.command_line import override_key, split_overrides
from wcjax.errors import InputError, Preempted
from wcjax.sweep.plan import PAPER_GRID, SweepOptions, plan_best, plan_grid, plan_runs
from wcjax.sweep.process import check_devices_of_runs, start_run, train_one
from wcjax.system.paths import run_path
from wcjax.training.preemption import exit_on_signal
from wcjax.training.start import EXIT_INTERRUPTED, EXIT_PREEMPTED

MAX_SEEDS = 10_000


@command
def main(argv=None) -> int:
    if argv is None:  # this process is the command
        exit_on_signal()
    return run_command(argv)


def run_command(argv=None, start=start_run, **times) -> int:
    """Runs a command line and returns its exit code.

    Args:
      start: starts the process of a run, see `process.start_run`.
      times: seconds to replace those of `SweepOptions`.
    """
    argv, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args, unknown = argument_parser().parse_known_args(argv)
    try:
        if unknown:
            raise InputError(f"unknown argument {unknown[0]!r}; see --help.")
        if args.command == "one":
            logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
            logging.getLogger("wcjax").setLevel(logging.INFO)
            return train_one(args.folder, json.load(sys.stdin))
        if args.jobs < 1:
            raise InputError(f"--jobs must be 1 or more, found {args.jobs}.")
        options = SweepOptions(run_path(args.out, "--out"), args.storage, args.jobs, **times)
        return sweep(args, overrides, options, start)
    except Preempted:
        print("stopped by SIGTERM; run the same command to resume.", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("stopped; run the same command to resume.", file=sys.stderr)
        return EXIT_INTERRUPTED


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program("wcjax.sweep"), description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    about_grid = "train every point of a grid with the first seed, then the best one with the other seeds"
    about_runs = "train networks × variants × seeds"
    grid = commands.add_parser("grid", help=about_grid, description=f"{about_grid.capitalize()}.")
    runs = commands.add_parser("runs", help=about_runs, description=f"{about_runs.capitalize()}.")
    grid.add_argument(
        "--over",
        type=axis,
        action="append",
        metavar="KEY=VALUES",
        help="config key to vary, for example learning_rate=0.1,0.2; repeat for more keys (default: the paper's a, b)",
    )
    runs.add_argument("--models", type=names, required=True, help="for example resnet18,resnet34")
    runs.add_argument("--variants", type=names, required=True, help="for example plain,wc,pp")
    for kind, form in ((grid, "FILE.py:model,variant"), (runs, "FILE.py")):
        kind.add_argument(
            "--config", required=True, metavar=form, help="config file, or the name of one that comes with wcjax"
        )
        kind.add_argument(
            "--config.KEY", metavar="VALUE", help="value of a config key, for all runs; repeat for more keys"
        )
        kind.add_argument("--out", required=True, metavar="DIR", help="folder for the run folders")
        kind.add_argument("--seeds", type=seeds, default=list(range(5)), help="0-4 (the default) or 3,7-9")
        kind.add_argument("--jobs", type=int, default=1, help="number of runs at a time on this machine (default: 1)")
        kind.add_argument(
            "--storage", metavar="URL", help="address of Optuna's database (default: DIR/sweep.db, SQLite)"
        )
    one = commands.add_parser("one", help="train one run, with its config as JSON on standard input (internal)")
    one.add_argument("folder", type=pathlib.Path)
    return parser


def axis(text: str) -> tuple[str, list[str]]:
    """An axis of the grid: 'learning_rate=0.1,0.2' -> ('learning_rate', ['0.1', '0.2'])"""
    key, equals, values = text.partition("=")
    if not equals or "=" in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUES; give for example learning_rate=0.1,0.2.")
    if re.search(r"[][(){}/]", values):
        raise argparse.ArgumentTypeError(
            f"{text!r}: values are separated by commas, and name run folders, so they cannot contain brackets or '/'. "
            "Give such values in variants of the config file, and compare them by `runs --variants`."
        )
    return key, require_unique(values.split(","), text)


def names(text: str) -> list[str]:
    """'plain,wc' -> ['plain', 'wc']"""
    return require_unique(text.split(","), text)


def seeds(text: str) -> list[int]:
    """'0-4' -> [0, 1, 2, 3, 4]; '3,7-9' -> [3, 7, 8, 9]"""
    numbers = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
            raise argparse.ArgumentTypeError(f"{part!r} is not a seed or a range; give for example 0-4 or 3,7-9.")
        if not (part_seeds := range(int(ends[1]), int(ends[2] or ends[1]) + 1)):
            raise argparse.ArgumentTypeError(f"{part!r} is empty; give the lower seed first, for example 0-4.")
        numbers += part_seeds[: MAX_SEEDS + 1]
    if len(numbers) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"at most {MAX_SEEDS:,} seeds are allowed, found {text!r}.")
    return require_unique(numbers, text)


def require_unique(values: list, text: str) -> list:
    """Returns values. Raises ArgumentTypeError, which quotes `text`, if one of them is repeated."""
    if repeated := [value for value, count in collections.Counter(values).items() if count > 1]:
        raise argparse.ArgumentTypeError(f"{text!r} repeats {repeated[0]!r}; give each value once.")
    return values


def sweep(args, overrides, options: SweepOptions, start) -> int:
    """Trains the runs that have not ended yet. Returns the exit code: 0 if every run has finished or cannot finish."""
    from wcjax.sweep import workers  # here, because Optuna takes a second

    # For this process only: one process at a time can hold a TPU, and the runs need it.
    jax.config.update("jax_platforms", "cpu")
    space = grid_space(args.over) if args.command == "grid" else {}
    check_overrides(overrides, space)
    if args.command == "grid":
        plan = plan_grid(args.config, overrides, space, args.seeds[0])
    else:
        plan = plan_runs(args.config, overrides, args.models, args.variants, args.seeds)
    check_devices_of_runs()
    train_runs = functools.partial(workers.train_runs, options=options, start=start)
    outcome = train_runs(plan)
    if args.command == "runs":
        return outcome.exit_code()

    if (best := outcome.best()) is None:
        raise InputError(f"no point of the grid has a finished run; see {options.out / 'logs'}.")
    print(f"\nBest on val: {', '.join(f'{key}={text}' for key, text in best.items())}.")
    if outcome.exit_code() or len(args.seeds) == 1:
        return outcome.exit_code()
    return train_runs(plan_best(args.config, overrides, best, args.seeds[1:])).exit_code()


def grid_space(axes: list[tuple[str, list[str]]] | None) -> dict[str, list[str]]:
    """{key: its values} of the grid. axes: from --over; None: the paper's a and b."""
    if not axes:
        return PAPER_GRID
    space = dict(axes)
    if "seed" in space or len(space) < len(axes):
        raise InputError("--over takes each key once, and the seeds are given by --seeds.")
    return space


def check_overrides(overrides: list[str], space: dict[str, list[str]]) -> None:
    """Raises InputError for a --config.KEY that the sweep sets itself."""
    for key in map(override_key, overrides):
        if key == "seed":
            raise InputError("config.seed is set by --seeds.")
        if key in space:
            raise InputError(f"config.{key} is set by the grid; give its values with --over.")


if __name__ == "__main__":
    sys.exit(main())
