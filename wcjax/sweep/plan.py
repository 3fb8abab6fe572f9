"""Which runs a sweep has: a grid over config keys, or networks × variants × seeds."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from wcjax.config.command_line import read_config_file
from wcjax.errors import InputError
from wcjax.reparam import BY_NAME, Sigmoid

PAPERS_GRID = {f"reparam.{x}": ["0.5", "0.6", "0.7", "0.8", "0.9", "1.0"] for x in "ab"}


class Plan(NamedTuple):
    """Runs for every point of a grid."""

    kind: str  # 'grid', 'best' or 'runs'
    space: dict[str, list]
    runs: dict[tuple, tuple[str, object]]  # {values of a point: (name of the run folder, config)}

    @classmethod
    def of(cls, kind: str, space: dict[str, list], configure: Callable[[dict], tuple[str, object]]):
        """configure: point -> (name, config)."""
        points = itertools.product(*space.values())
        return cls(kind, space, {values: configure(dict(zip(space, values, strict=True))) for values in points})

    def name(self, point: dict) -> str:
        """The run folder of a point."""
        return self.runs[tuple(point[key] for key in self.space)][0]


def plan_grid(args, overrides):
    """The Plan of every point of args.over with the first seed."""
    return Plan.of("grid", args.over, lambda point: grid_run(args, overrides, point, args.seeds[0]))


def plan_best(args, overrides, point):
    """The Plan of one point with the other seeds."""
    return Plan.of("best", {"seed": args.seeds[1:]}, lambda p: grid_run(args, overrides, point, p["seed"]))


def grid_run(args, overrides, point, seed):
    """(name, config) of one run of a grid; the name says the values of point, {key: text}."""
    config = read_config_file(args.config, [*overrides, *(f"--config.{key}={text}" for key, text in point.items())])
    psi = config.reparam.name
    if point.keys() & PAPERS_GRID.keys() and not issubclass(BY_NAME.get(psi, object), Sigmoid):
        raise InputError(f"a grid is over a and b, which {psi!r} has not; choose wc, arsinh or erf, or give --over.")
    config.seed = seed
    return "_".join([*(key.rpartition(".")[2] + text for key, text in point.items()), f"seed{seed}"]), config


def plan_runs(args, overrides):
    """The Plan of models × variants × seeds."""

    def configure(point):
        model, variant, seed = point["model"], point["variant"], point["seed"]
        config = read_config_file(f"{args.config}:{model},{variant}", overrides)
        config.seed = seed
        return f"{model}_{variant}_seed{seed}", config

    return Plan.of("runs", {"model": args.models, "variant": args.variants, "seed": args.seeds}, configure)
