"""The experiment of docs/results: small networks on few images of CIFAR-10, hundreds of runs in minutes on one GPU.

    python -m benchmarks.small_data --minutes 30 --out runs/small_data --config.data_dir=DIR

`benchmarks.whole_run` trains the runs. A finished run is not repeated, so the same command continues where the minutes
ended it. `--part bounds` trains 57 more runs, which take 90 minutes on one CPU core.
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
SEEDS = range(10)  # of the runs that are compared; trials have seed 100
PAPER = {"learning_rate": 0.1, "weight_decay": 1e-4}


def grid(first: str, firsts, second: str, seconds) -> list[dict]:
    return [{first: x, second: y} for x, y in itertools.product(firsts, seconds)]


RATES = grid("learning_rate", (0.05, 0.1, 0.2, 0.4), "weight_decay", (2.5e-3, 5e-3, 1e-2, 2e-2))
FEW_RATES = grid("learning_rate", (0.05, 0.1), "weight_decay", (5e-3, 1e-2, 2e-2))
AB = [{"reparam.a": a, "reparam.b": b} for a, b in ((1.0, 1.0), (1.0, 0.6), (0.6, 1.0), (0.6, 0.6))]
BOUND_RATES = grid("learning_rate", (0.025, 0.05, 0.1), "weight_decay", (0.01, 0.02, 0.04))
LEARNED_AB = [{"reparam.a": a, "reparam.b": b} for a, b in ((0.5, 1.0), (1.0, 1.0), (1.0, 0.6), (0.5, 0.5))]


class Method(NamedTuple):
    """A variant of the config file, and its own values that are tried."""

    variant: str
    own: list[dict] = [{}]


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

    def compile(self, methods, num_own):
        """Begins to compile the programs of tuning."""
        for method in methods:
            for own in METHODS[method].own[:num_own]:
                self.trainer.compile(self.config(method, 0, own))

    def tune(self, methods, rates, num_own, others) -> dict[str, dict]:
        """{method: its best values on val}.

        Plain, which comes first, and wn are tried at all rates. Each other method is tried with num_own of its own
        values at the best rates of plain, and then with the best of them at the rates `others(best)`.
        """
        best = {}
        for method in methods:
            trials = rates
            if len(METHODS[method].own) > 1:
                own = self.best(method, [best["plain"] | values for values in METHODS[method].own[:num_own]])
                trials = [own | values for values in others(best["plain"])]
            best[method] = self.best(method, trials)
        return best

    def best(self, method, trials):
        """The trial whose run has the highest accuracy on val."""
        label = lambda trial: "_".join(f"{key.rpartition('.')[2]}{value:g}" for key, value in trial.items())
        trial_of = {f"{self.name}/tune/{method}/{label(trial)}": trial for trial in trials}
        configs = {name: self.config(method, 100, trial) for name, trial in trial_of.items()}
        accuracies = self.trainer.train(f"{self.name} {method}", configs)
        return trial_of[max(accuracies, key=accuracies.get)]

    def train_seeds(self, values_of, folder="final"):
        """Trains the runs that are compared. values_of: {method: values}, or {label: (method, values)}."""
        for label, values in values_of.items():
            method, values = values if isinstance(values, tuple) else (label, values)
            configs = {f"{self.name}/{folder}/{label}/seed{seed}": self.config(method, seed, values) for seed in SEEDS}
            self.trainer.train(f"{self.name} {folder} {label} {values}", configs)


def compare_methods(trainer, overrides):
    """All methods, each tuned, the most important first."""
    few = Experiment(trainer, "resnet8_2500", "resnet8", 2500, overrides)
    few.compile(METHODS, num_own=4)
    fast = PAPER | {"learning_rate": 0.3}
    few.train_seeds({"plain": PAPER, "wc": PAPER | AB[1], "plain0.3": ("plain", fast)}, "paper")
    few.train_seeds(few.tune(METHODS, RATES, 4, others=lambda best: RATES[:12]))
    for name, model, images in (("resnet8_5000", "resnet8", 5000), ("resnet20_2500", "resnet20", 2500)):
        other = Experiment(trainer, name, model, images, overrides)
        other.compile(("plain", "wc"), num_own=2)
        other.train_seeds(other.tune(("plain", "wc"), FEW_RATES, 2, others=nearest))


def compare_bounds(trainer, overrides):
    """WC with a and b far below 1, where Ψ is less linear, and plain, each with the best of the same nine rates.

    The weights start as in PyTorch, because He's are larger than the bound of a = 0.2, which is 0.31.
    """
    few = Experiment(trainer, "resnet8_2500_bounds", "resnet8", 2500, ["--config.kernel_init=torch", *overrides])
    own = {"plain": {}} | {f"wc{a:g}": {"reparam.a": a, "reparam.b": a} for a in (0.2, 0.4)}
    for label, values in own.items():
        method = "wc" if values else "plain"
        few.train_seeds({label: (method, few.best(method, [values | rates for rates in BOUND_RATES]))})


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
