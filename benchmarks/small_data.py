"""The experiment of docs/results: small networks on few images of CIFAR-10, hundreds of runs in minutes on one GPU.

    python -m benchmarks.small_data --minutes 30 --out runs/small_data --config.data_dir=DIR

A run is one compiled program: every step of training, the evaluation on val after each epoch, and the test of the best
epoch. The steps are those of `train.py`, with the same initial weights, order of images and results up to rounding.
Each run leaves a run folder that `wcjax.analysis` reads, without checkpoints to resume from. A finished run is not
repeated, so the same command continues where the minutes ended it.
"""

import argparse
import concurrent.futures
import itertools
import json
import math
import pathlib
import sys
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.__main__ import end_after
from wcjax import run_folder
from wcjax.config import check_config
from wcjax.config.build import learning_rate_schedule, load_dataset, make_model, make_optimizer
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.data.dataset import num_batches
from wcjax.errors import command
from wcjax.files import write_text
from wcjax.params import fold
from wcjax.run_folder.checkpoints import save_tree
from wcjax.run_folder.data import check_data
from wcjax.run_folder.forms import QUANTILES
from wcjax.training import feed, sharding, steps
from wcjax.training.run import Run
from wcjax.training.weights import layer_weights, learned_psis, weight_statistics

THREADS = 4  # that compile, and as many that write
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


class Epochs(NamedTuple):
    """What a run reports of each epoch, the first axis."""

    train: steps.Totals
    val: steps.Totals
    weights: Any  # of `weight_statistics`, {layer: its numbers}
    pairs: Any  # {layer: {'a', 'b'}} of learned ones


class Result(NamedTuple):
    """What a run reports."""

    before: Any  # the weights before the first epoch, as in Epochs
    epochs: Epochs
    best_epoch: jax.Array  # from 1
    test: steps.Totals  # of the folded network of the best epoch
    folded: dict  # its variables


def whole_run(run, feeds, seed, rates, splits) -> Result:
    """All of a run, for one program. rates: {'learning_rate', 'weight_decay'}; these and seed replace the config's."""
    train, val, test = feeds
    config = run.config.copy_and_resolve_references()
    with config.ignore_type():
        config.update(rates)
    tuned = types.SimpleNamespace(
        config=config, mesh=run.mesh, model=run.model, tx=make_optimizer(config, run.steps_per_epoch)
    )
    is_plain = run.psi is None
    state = steps.initializer(run.model, tuned.tx, run.image_shape)(jax.random.key(seed))
    weights = lambda params: {
        layer: weight_statistics.__wrapped__(w) for layer, w in layer_weights(params, is_plain).items()
    }

    def evaluate(model, data, split, variables):
        step = lambda _, totals: steps.eval_step(model, data, *variables, totals, split)
        return jax.lax.fori_loop(0, num_batches(data.num_images, run.config.batch_size), step, steps.Totals.zero())

    def epoch(carry, number):
        state, best, best_correct, best_epoch = carry
        inputs = splits[0], train.draw_order(state.key, state.step)
        step = lambda _, carry: steps.train_step(tuned, train, *carry, inputs)[:2]
        state, totals = jax.lax.fori_loop(0, run.steps_per_epoch, step, (state, steps.Totals.zero()))
        variables = state.params, state.batch_stats
        on_val = evaluate(run.model, val, splits[1], variables)
        is_best = on_val.correct > best_correct
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), variables, best)
        carry = (state, best, jnp.maximum(on_val.correct, best_correct), jnp.where(is_best, number, best_epoch))
        learned = {} if run.config.reparam.learn == "none" else pairs(state.params)
        return carry, Epochs(totals, on_val, weights(state.params), learned)

    first = (state, (state.params, state.batch_stats), jnp.int32(-1), jnp.int32(0))
    (_, (params, batch_stats), _, best_epoch), epochs = jax.lax.scan(
        epoch, first, 1 + jnp.arange(run.config.epochs, dtype=jnp.int32)
    )
    params = params if is_plain else fold(params)
    plain = make_model(run.config, run.dataset.num_classes, plain=True)
    on_test = evaluate(plain, test, splits[2], (params, batch_stats))
    return Result(weights(state.params), epochs, best_epoch, on_test, {"params": params, "batch_stats": batch_stats})


def pairs(params) -> dict:
    """`wcjax.training.weights.learned_pairs`, as arrays."""
    quantiles = lambda x: x.ravel()[0] if x.size == 1 else jnp.quantile(x, jnp.array(QUANTILES))
    return {
        layer: {name: quantiles(getattr(psi, name)) for name in psi.learned}
        for layer, psi in learned_psis(params).items()
    }


class Trainer:
    """Trains runs, one after the other. Programs are compiled in threads; runs that differ in seed, learning rate and
    decay share one."""

    def __init__(self, out: pathlib.Path):
        self.out, self.began = out, time.monotonic()
        self._compiler = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._writer = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._datasets, self._programs = {}, {}

    def _dataset(self, config):
        """(data set, content of data.json), read once."""
        key = config.data_dir, config.val_fraction, config.train_images
        if key not in self._datasets:
            dataset = load_dataset(config)
            self._datasets[key] = dataset, check_data(self.out, dataset)[1]
        return self._datasets[key]

    def compile(self, config):
        """A future of (run, program, splits on the device)."""
        shared = config.copy_and_resolve_references()
        shared.update({"seed": 0} | PAPER)
        key = json.dumps(shared.to_dict(), sort_keys=True)
        if key not in self._programs:
            self._programs[key] = self._compiler.submit(_compile, shared, self._dataset(shared)[0])
        return self._programs[key]

    def train(self, stage: str, configs: dict) -> dict[str, float]:
        """{name: accuracy on val} of configs, {name: config}; -1 for runs that failed. Run folders are OUT/name."""
        began, todo = time.monotonic(), {}
        for name, config in configs.items():
            run_folder.check(self.out / name, config)
            if not any((self.out / name / file).exists() for file in ("summary.json", "failed.json")):
                todo[name] = config, self.compile(config)
        writing = []
        for name, (config, compiled) in todo.items():
            run, program, splits = compiled.result()
            first = time.monotonic()
            rates = {key: jnp.float32(config[key]) for key in PAPER}
            result = jax.block_until_ready(program(jnp.int32(config.seed), rates, splits))
            seconds = time.monotonic() - first
            data = self._dataset(config)[1]
            writing.append(self._writer.submit(write, self.out / name, config, run, data, result, seconds))
        for future in writing:
            future.result()
        accuracies = {name: val_accuracy(self.out / name) for name in configs}
        best, now = max(accuracies, key=accuracies.get), time.monotonic()
        print(
            f"{now - self.began:6.1f} s  {stage}: {len(configs)} runs in {now - began:.1f} s, best {best} "
            f"{accuracies[best]:.2%}",
            flush=True,
        )
        return accuracies


def _compile(config, dataset):
    run = Run(config, None, sharding.one_device(), dataset)
    feeds = [feed.OnDevice(split, dataset, config, run.mesh) for split in dataset[:3]]
    splits = [next(data.one_pass()) for data in feeds]
    call = jax.jit(lambda seed, rates, splits: whole_run(run, feeds, seed, rates, splits))
    rates = {name: jnp.float32(0) for name in PAPER}
    return run, call.lower(jnp.int32(0), rates, splits).compile(), splits


def val_accuracy(folder) -> float:
    """The accuracy on val of a run that has ended; -1 if it failed."""
    summary = run_folder.read(folder, "summary.json")
    return -1.0 if summary is None else summary["best_val_accuracy"]


def write(folder, config, run, data, result: Result, seconds: float) -> None:
    """Writes a run folder. data: the content of data.json."""
    result = jax.device_get(result)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write(folder, "config.json", config.to_dict())
    run_folder.write(folder, "data.json", data)
    lists = lambda tree: jax.tree.map(lambda x: x.tolist(), tree)
    take = lambda i: lists(jax.tree.map(lambda x: x[i], result.epochs))
    epochs = [take(i) for i in range(config.epochs)]
    bad = [e.train.first_bad_step for e in epochs if e.train.first_bad_step >= 0]
    if bad or not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.folded)):
        reason = f"the loss became nan or inf at step {bad[0]}" if bad else "weights are nan or inf"
        run_folder.write(folder, "failed.json", {"reason": reason, "config": config.to_dict()})
        return
    schedule = learning_rate_schedule(config, run.steps_per_epoch)
    lines, weights = [], [{"epoch": 0, "layers": lists(result.before)}]
    for number, e in enumerate(epochs, start=1):
        line = {"epoch": number, "step": number * run.steps_per_epoch}
        for split, totals in (("train", e.train), ("val", e.val)):
            line |= {f"{split}_loss": totals.loss / totals.seen, f"{split}_accuracy": totals.correct / totals.seen}
        line |= {"learning_rate": float(schedule(line["step"] - 1)), "seconds": seconds / config.epochs}
        lines.append(line | ({"pairs": e.pairs} if e.pairs else {}))
        weights.append({"epoch": number, "layers": e.weights})
    for name, content in (("metrics.jsonl", lines), ("weights.jsonl", weights)):
        write_text(folder / name, "".join(json.dumps(line) + "\n" for line in content))
    save_tree(folder / "folded", result.folded)
    best_epoch, test = int(result.best_epoch), lists(result.test)
    summary = {
        "best_epoch": best_epoch,
        "best_val_accuracy": lines[best_epoch - 1]["val_accuracy"],
        "test_accuracy": test.correct / test.seen,
        "test_loss": test.loss / test.seen,
        "epochs": config.epochs,
        "images_per_second": lines[-1]["step"] * config.batch_size / seconds,
        "train_seconds": seconds,
        "num_parameters": sum(x.size for x in jax.tree.leaves(result.folded["params"])),
        "device": jax.devices()[0].device_kind,
        "num_devices": 1,
        "jax_version": jax.__version__,
    }
    run_folder.write(folder, "summary.json", summary)


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
                own = self._best(method, [best["plain"] | values for values in METHODS[method].own[:num_own]])
                trials = [own | values for values in others(best["plain"])]
            best[method] = self._best(method, trials)
        return best

    def _best(self, method, points):
        """The point whose run has the highest accuracy on val."""
        label = lambda point: "_".join(f"{key.rpartition('.')[2]}{value:g}" for key, value in point.items())
        points = {f"{self.name}/tune/{method}/{label(point)}": point for point in points}
        runs = {name: self.config(method, 100, point) for name, point in points.items()}
        accuracies = self.trainer.train(f"{self.name} {method}", runs)
        return points[max(accuracies, key=accuracies.get)]

    def final(self, points, folder="final"):
        """The runs that are compared. points: {method: values}, or {label: (method, values)}."""
        for label, values in points.items():
            method, values = values if isinstance(values, tuple) else (label, values)
            runs = {f"{self.name}/{folder}/{label}/seed{seed}": self.config(method, seed, values) for seed in SEEDS}
            self.trainer.train(f"{self.name} {folder} {label} {values}", runs)


def experiment(trainer, overrides):
    """Everything, the most important first."""
    few = Experiment(trainer, "resnet8_2500", "resnet8", 2500, overrides)
    few.compile(METHODS, num_own=4)
    fast = PAPER | {"learning_rate": 0.3}
    few.final({"plain": PAPER, "wc": PAPER | AB[1], "plain0.3": ("plain", fast)}, "paper")
    few.final(few.tune(METHODS, RATES, 4, others=lambda best: RATES[:12]))
    for name, model, images in (("resnet8_5000", "resnet8", 5000), ("resnet20_2500", "resnet20", 2500)):
        other = Experiment(trainer, name, model, images, overrides)
        other.compile(("plain", "wc"), num_own=2)
        other.final(other.tune(("plain", "wc"), FEW_RATES, 2, others=nearest))


def nearest(best) -> list[dict]:
    """The 5 of FEW_RATES that are nearest to the best, by logarithms."""
    return sorted(FEW_RATES, key=lambda rates: sum(abs(math.log(rates[key] / best[key])) for key in rates))[:5]


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="ends after that")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the run folders")
    arguments, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    end_after(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    experiment(Trainer(args.out), overrides)


if __name__ == "__main__":
    sys.exit(main())
