"""Many runs, each in a folder and a process of its own: a grid over config keys, or networks × variants × seeds.

    python -m wcjax.sweep grid --config configs/cifar10.py:resnet18 --out DIR --seeds 0-4 --jobs 2 --config.data_dir=DIR
    python -m wcjax.sweep runs --config configs/digits.py --models resnet8 --variants plain,wc,pp --seeds 0-4 --out DIR

grid: every (a, b), or every point of --over, with the first seed, then the point that is best on val with the other
seeds. Both may be stopped or killed at any moment; the same command goes on, and repeats no run that is finished. After
SIGTERM the runs save within their epoch, and the exit code is START_AGAIN, 75. With --storage, an address of a database
like postgresql://..., the same command on several machines shares the work; DIR should be one for all of them.
"""

import argparse
import json
import logging
import pathlib
import re
import sys

import jax

from wcjax import run_folder
from wcjax.errors import DivergedError, InitialWeightsError, InputError, InUseError, Preempted, command
from wcjax.files import run_path
from wcjax.sweep.plan import PAPERS_GRID, plan_best, plan_grid, plan_runs
from wcjax.training.preemption import START_AGAIN, leave_at_once

CANNOT_FINISH = 3  # exit code of a run that has a failed.json


def sweep(args, overrides) -> int:
    """Does what is left to do; the exit code is 0 if every run has an end, be it a failure that is its own."""
    try:
        from wcjax.sweep import workers
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError(f"a sweep needs Optuna ({error}): pip install 'wcjax[sweep]'.") from error
    from wcjax.config.command_line import overridden

    jax.config.update("jax_platforms", "cpu")  # of this process; a TPU can be held by one process, which is a run
    if args.command == "grid":
        given = args.over or list(PAPERS_GRID.items())
        args.over = dict(given)
        if "seed" in args.over or len(args.over) < len(given):
            raise InputError("--over takes every key once, and seeds are given by --seeds.")
    for argument in overrides:
        key = overridden(argument)
        if key is None:
            raise InputError(f"unknown argument {argument!r}; see --help.")
        if key == "seed":
            raise InputError("config.seed is set by --seeds.")
        if args.command == "grid" and key in args.over:
            raise InputError(f"config.{key} is set by the grid; --over says by which values.")
    if args.command == "runs":
        if ":" in args.config:
            raise InputError(
                f"--config {args.config}: give FILE alone; --models and --variants say what follows the ':'."
            )
        return workers.work(plan_runs(args, overrides), args.out, args.storage, args.jobs).exit_code()
    grid = workers.work(plan_grid(args, overrides), args.out, args.storage, args.jobs)
    best = grid.best()
    if best is None:
        raise InputError(f"no point of the grid has a finished run; see {args.out / 'logs'}.")
    print(f"\nBest on val: {', '.join(f'{key}={text}' for key, text in best.items())}.")
    if grid.exit_code() or len(args.seeds) == 1:
        return grid.exit_code()
    return workers.work(plan_best(args, overrides, best), args.out, args.storage, args.jobs).exit_code()


def train_one(folder: pathlib.Path, config: dict) -> int:
    """One run in this process; START_AGAIN if it was stopped, or if another process is at it, which may be killed."""
    from wcjax.training import train

    try:
        train(config, folder)
    except (DivergedError, InitialWeightsError) as error:
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write(folder, "failed.json", {"reason": str(error), "config": config})
        return CANNOT_FINISH
    except (InUseError, Preempted, KeyboardInterrupt):
        return START_AGAIN
    return 0


def over(text: str) -> tuple[str, list[str]]:
    """'learning_rate=0.1,0.2' -> ('learning_rate', ['0.1', '0.2'])"""
    key, values = text.split("=")
    return key, names(values)


def seeds(text: str) -> list[int]:
    """'0-4' -> [0, 1, 2, 3, 4]; '3,7-9' -> [3, 7, 8, 9]"""
    found = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
            raise ValueError
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return unique(found)


def names(text: str) -> list[str]:
    """'plain,wc' -> ['plain', 'wc']"""
    return unique(text.split(","))


def unique(values):
    if not values or len(set(values)) != len(values):
        raise ValueError
    return values


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m wcjax.sweep", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    grid = commands.add_parser("grid", help="every point of a grid with the first seed, the best with the other seeds")
    grid.add_argument(
        "--over",
        type=over,
        action="append",
        metavar="KEY=VALUES",
        help="a key of the config, like learning_rate=0.1,0.2; once for each key; the paper's (a, b) where left out",
    )
    runs = commands.add_parser("runs", help="networks × variants × seeds")
    runs.add_argument("--models", type=names, required=True, help="like resnet18,resnet34")
    runs.add_argument("--variants", type=names, required=True, help="like plain,wc,pp")
    for each in (grid, runs):
        each.add_argument("--config", required=True, help="config file; for grid FILE.py:model,variant")
        each.add_argument("--out", required=True, metavar="DIR", help="where the run folders go")
        each.add_argument("--seeds", type=seeds, default=list(range(5)), help="like 0-4 or 3,7-9; 0-4 where left out")
        each.add_argument("--jobs", type=int, default=1, help="runs at a time on this machine")
        each.add_argument("--storage", help="address of a database for Optuna; DIR/sweep.db (SQLite) where left out")
    one = commands.add_parser("one", help="one run, with its config as JSON on the standard input; used by the others")
    one.add_argument("folder", type=pathlib.Path)
    return top


@command
def main(argv=None):
    args, overrides = parser().parse_known_args(argv)
    try:
        if args.command == "one":
            logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
            logging.getLogger("wcjax").setLevel(logging.INFO)
            return train_one(args.folder, json.load(sys.stdin))
        if args.jobs < 1:
            raise InputError(f"--jobs must be 1 or more, found {args.jobs}.")
        args.out = run_path(args.out, "--out")
        return sweep(args, overrides)
    except Preempted:
        print("stopped by SIGTERM; the same command goes on.", file=sys.stderr)
        return START_AGAIN
    except KeyboardInterrupt:
        print("stopped; the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    leave_at_once()
    sys.exit(main())
