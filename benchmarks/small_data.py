"""The experiment of docs/results: small networks on few images of CIFAR-10, hundreds of runs in minutes on one GPU.

    python -m benchmarks.small_data --minutes 30 --out runs/small_data --config.data_dir=DIR

`benchmarks.whole_run` trains the runs. A finished run is not repeated, so the same command continues where the minutes
ended it. `--part bounds` trains 67 more runs, which take 105 minutes on one CPU core.
"""

import argparse
import itertools
import math
import pathlib
import sys
from typing import NamedTuple

from benchmarks.timing import end_after
from benchmarks.whole_run import Trainer
from wcjax.commands import command
from wcjax.config import check_config
from wcjax.config.command_line import read_config_file, split_overrides

SETTING = {
    "val_fraction": 0.04,
    "augment.padding": 0,
    "augment.flip": False,
    "epochs": 50,
    "schedule.milestones": (37, 45),
}
SEEDS = range(10)  # of the runs that are compared
TUNING_SEED = 100
PAPER = {"learning_rate": 0.1, "weight_decay": 1e-4}


def grid(key: str, values, other_key: str, other_values) -> list[dict]:
    return [{key: x, other_key: y} for x, y in itertools.product(values, other_values)]


RATES = grid("learning_rate", (0.05, 0.1, 0.2, 0.4), "weight_decay", (2.5e-3, 5e-3, 1e-2, 2e-2))
LOWER_RATES = [rates for rates in RATES if rates["learning_rate"] < 0.4]
FEW_RATES = grid("learning_rate", (0.05, 0.1), "weight_decay", (5e-3, 1e-2, 2e-2))
BOUND_RATES = grid("learning_rate", (0.025, 0.05, 0.1), "weight_decay", (0.01, 0.02, 0.04))


def pair(a: float, b: float) -> dict:
    return {"reparam.a": a, "reparam.b": b}


PAPER_AB = pair(1.0, 0.6)  # of ResNet18
AB = [pair(1.0, 1.0), PAPER_AB, pair(0.6, 1.0), pair(0.6, 0.6)]
LEARNED_AB = [pair(0.5, 1.0), pair(1.0, 1.0), pair(1.0, 0.6), pair(0.5, 0.5)]


class Method(NamedTuple):
    """A variant of the config file, and the values of its own keys that are tried."""

    variant: str
    values: list[dict] = [{}]


METHODS = {
    "plain": Method("plain"),
    "wc": Method("wc", AB),
    "smooth": Method("plain", [{"label_smoothing": x} for x in (0.1, 0.05, 0.2, 0.4)]),
    "learned": Method("learned", LEARNED_AB),
    "wn": Method("wn"),
    "pp": Method("pp", [{"reparam.alpha": x} for x in (2.0, 1.25, 1.5, 3.0)]),
    "erf": Method("erf", AB),
    "arsinh": Method("arsinh", AB),
    "channel": Method("channel", LEARNED_AB),
}


class Experiment:
    """The runs of one network on a number of images, in the folder `name`."""

    def __init__(self, trainer, name, model, images, overrides):
        self.trainer, self.name, self.model, self.overrides = trainer, name, model, overrides
        self.setting = SETTING | {"train_images": images}

    def config(self, method, seed, values):
        flags = [f"--config.{key}={value}" for key, value in (self.setting | values | {"seed": seed}).items()]
        file = f"configs/cifar10.py:{self.model},{METHODS[method].variant}"
        return check_config(read_config_file(file, [*flags, *self.overrides]))

    def compile(self, methods, num_values):
        """Begins to compile the programs of tuning."""
        for method in methods:
            for values in METHODS[method].values[:num_values]:
                self.trainer.compile(self.config(method, 0, values))

    def tune(self, methods, rates, num_values, other_rates) -> dict[str, dict]:
        """{method: its best trial}.

        Plain, which comes first, and wn are tried at all rates. Each other method is tried with num_values of its
        values at the best rates of plain, and then with the best of them at the rates `other_rates(best)`.
        """
        best = {}
        for method in methods:
            trials = rates
            if len(METHODS[method].values) > 1:
                at_plains_rates = [best["plain"] | values for values in METHODS[method].values[:num_values]]
                best_values = self.best(method, at_plains_rates)
                trials = [best_values | rates for rates in other_rates(best["plain"])]
            best[method] = self.best(method, trials)
        return best

    def best(self, method, trials):
        """The trial whose run has the highest accuracy on val."""
        label = lambda trial: "_".join(f"{key.rpartition('.')[2]}{value:g}" for key, value in trial.items())
        trials_by_name = {f"{self.name}/tune/{method}/{label(trial)}": trial for trial in trials}
        configs = {name: self.config(method, TUNING_SEED, trial) for name, trial in trials_by_name.items()}
        accuracies = self.trainer.train(f"{self.name} {method}", configs)
        return trials_by_name[max(accuracies, key=accuracies.get)]

    def train_seeds(self, values_by_method, folder="final"):
        """Trains the runs that are compared. values_by_method: {method: values}, or {label: (method, values)}."""
        for label, values in values_by_method.items():
            method, values = values if isinstance(values, tuple) else (label, values)
            configs = {f"{self.name}/{folder}/{label}/seed{seed}": self.config(method, seed, values) for seed in SEEDS}
            self.trainer.train(f"{self.name} {folder} {label} {values}", configs)


def compare_methods(trainer, overrides):
    """All methods, each tuned, the most important first."""
    few = Experiment(trainer, "resnet8_2500", "resnet8", 2500, overrides)
    few.compile(METHODS, num_values=4)
    fast = PAPER | {"learning_rate": 0.3}
    few.train_seeds({"plain": PAPER, "wc": PAPER | PAPER_AB, "plain0.3": ("plain", fast)}, "paper")
    few.train_seeds(few.tune(METHODS, RATES, 4, other_rates=lambda best: LOWER_RATES))
    for name, model, images in (("resnet8_5000", "resnet8", 5000), ("resnet20_2500", "resnet20", 2500)):
        other = Experiment(trainer, name, model, images, overrides)
        other.compile(("plain", "wc"), num_values=2)
        other.train_seeds(other.tune(("plain", "wc"), FEW_RATES, 2, other_rates=nearest))


def compare_bounds(trainer, overrides):
    """WC with a and b far below 1, where Ψ is less linear, and plain, each with the best of the same nine rates.

    The weights start as in PyTorch, because He's are larger than the bound of a = 0.2, which is 0.31.
    """
    few = Experiment(trainer, "resnet8_2500_bounds", "resnet8", 2500, ["--config.kernel_init=torch", *overrides])
    for label, method, values in (
        ("plain", "plain", {}),
        ("wc0.2", "wc", pair(0.2, 0.2)),
        ("wc0.4", "wc", pair(0.4, 0.4)),
    ):
        best = few.best(method, [values | rates for rates in BOUND_RATES])
        few.train_seeds({label: (method, best)})
    # The rates that turned out best for a = 0.4. These runs were added after the others.
    few.train_seeds({"plain0.05": ("plain", {"learning_rate": 0.05, "weight_decay": 0.02})})


def nearest(best) -> list[dict]:
    """The 5 of FEW_RATES that are nearest to the best, by logarithms."""
    return sorted(FEW_RATES, key=lambda rates: sum(abs(math.log(rates[key] / best[key])) for key in rates))[:5]


PARTS = {"methods": compare_methods, "bounds": compare_bounds}


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="ends after that")
    parser.add_argument("--part", choices=PARTS, default="methods", help="which runs")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the run folders")
    arguments, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    end_after(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](Trainer(args.out), overrides)


if __name__ == "__main__":
    sys.exit(main())
