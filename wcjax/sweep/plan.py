"""The runs of a sweep: a grid over config keys, or networks × variants × seeds."""

import itertools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from wcjax.config import check_config
from wcjax.config.command_line import read_config_file
from wcjax.errors import InputError
from wcjax.reparam import BY_NAME, Scaled

PAPER_GRID = {f"reparam.{x}": ["0.5", "0.6", "0.7", "0.8", "0.9", "1.0"] for x in "ab"}


class SweepOptions(NamedTuple):
    """Where and how the runs of a sweep are trained. Times are in seconds.

    Attributes:
      out: the folder of the run folders.
      storage: the address of the database that holds the study. None: sweep.db in `out`.
      jobs: the number of runs at a time.
      poll: the time between two checks of the database and the run folders.
      slow: how long the database may take to answer before the table says so.
      patience: how long SQLite waits for a lock.
      heartbeat: the time between two heartbeats of a worker.
      grace: how long a worker may be silent before others may take its run.
      pause: the time before a run that was stopped, or that another process trains, is started again.
    """

    out: pathlib.Path
    storage: str | None = None
    jobs: int = 1
    poll: float = 1.0
    slow: float = 5.0
    patience: float = 600.0
    heartbeat: int = 5
    grace: int = 30
    pause: float = 30.0

    @property
    def database(self):
        """The address or file of the database."""
        return self.storage or self.out / "sweep.db"


class Plan(NamedTuple):
    """One run for every point of a grid.

    Attributes:
      kind: 'grid', 'best' or 'runs'.
      space: {key: its values}.
      names: {values of a point: name of its run folder}.
      configs: {name of a run folder: the complete config of the run}.
    """

    kind: str
    space: dict[str, list]
    names: dict[tuple, str]
    configs: dict[str, ConfigDict]

    def name(self, point: dict) -> str:
        """The name of the run folder of a point."""
        return self.names[tuple(point[key] for key in self.space)]


def plan_grid(config_file: str, overrides: list[str], space: dict[str, list], seed: int) -> Plan:
    """Every point of space, {key: its values as texts}, with one seed."""
    return make_plan("grid", space, lambda point: grid_run(config_file, overrides, point, seed))


def plan_best(config_file: str, overrides: list[str], best: dict[str, str], seeds: list[int]) -> Plan:
    """The point `best` of the grid, with each of the seeds."""
    return make_plan("best", {"seed": seeds}, lambda point: grid_run(config_file, overrides, best, point["seed"]))


def grid_run(config_file, overrides, point, seed) -> tuple[str, ConfigDict]:
    """(name, config) of one run of a grid. The name contains the values of point, {key: text}."""
    config = read_config_file(config_file, [*overrides, *(f"--config.{key}={text}" for key, text in point.items())])
    psi = config.reparam.name
    if point.keys() & PAPER_GRID.keys() and not issubclass(BY_NAME.get(psi, object), Scaled):
        raise InputError(
            f"the grid varies a and b, and reparam {psi!r} has neither. Choose wc, arsinh or erf, or give --over "
            "another key."
        )
    config.seed = seed
    return "_".join([*(key.rpartition(".")[2] + text for key, text in point.items()), f"seed{seed}"]), config


def plan_runs(config_file: str, overrides: list[str], models: list[str], variants: list[str], seeds: list[int]) -> Plan:
    """All of models × variants × seeds."""
    if ":" in config_file:
        raise InputError(
            f"--config {config_file}: give FILE alone; --models and --variants replace the part after the ':'."
        )

    def configure(point):
        model, variant, seed = point["model"], point["variant"], point["seed"]
        config = read_config_file(f"{config_file}:{model},{variant}", overrides)
        config.seed = seed
        return f"{model}_{variant}_seed{seed}", config

    return make_plan("runs", {"model": models, "variant": variants, "seed": seeds}, configure)


def make_plan(kind: str, space: dict[str, list], configure: Callable[[dict], tuple[str, ConfigDict]]) -> Plan:
    """The plan of every point of space. configure: point -> (name, config).

    Raises InputError for a name that is not safe for a folder, a config that is not valid, and two equal runs.
    """
    names, configs = {}, {}
    for values in itertools.product(*space.values()):
        name, config = configure(dict(zip(space, values, strict=True)))
        if not re.fullmatch(r"\w[\w.,=+-]*", name):  # a config file need not check the model that it is called with
            raise InputError(
                f"a run folder would be called {name!r}: its name may contain only letters, digits and _ . , = + -."
            )
        names[values] = name
        configs[name] = check_config(config)
    if len({config.to_json(sort_keys=True) for config in configs.values()}) != len(names):
        raise InputError("two runs of the sweep are the same; give each value once.")
    return Plan(kind, space, names, configs)
