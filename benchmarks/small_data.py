"""The experiment of docs/results: small networks on few images of CIFAR-10, hundreds of runs in minutes on one GPU.

    python -m benchmarks.small_data --minutes 10 --out runs/small_data --config.data_dir=DIR

A run is one compiled program: every step of training, the evaluation on val after each epoch, and the test of the best
epoch. The steps are those of `train.py`, with the same initial weights, order of images and results up to rounding.
Each run leaves a run folder that `wcjax.analysis` reads, without checkpoints to resume from. A finished run is not
repeated, so the same command continues where the minutes ended it.
"""

import argparse
import concurrent.futures
import itertools
import json
import pathlib
import sys
import threading
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.__main__ import end_after
from wcjax import run_folder
from wcjax.config import check_config
from wcjax.config.build import load_dataset, make_model, make_optimizer
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.data.dataset import Split
from wcjax.files import write_text
from wcjax.params import fold, is_weight
from wcjax.psi import Psi
from wcjax.run_folder.checkpoints import save_tree
from wcjax.run_folder.data import check_data
from wcjax.run_folder.forms import QUANTILES
from wcjax.training import feed
from wcjax.training import mesh as meshes
from wcjax.training import step as steps
from wcjax.training.run import Run
from wcjax.training.weights import describe, layer_weights

THREADS = 8  # that compile
SETTING = {
    "train_images": 2500,
    "val_fraction": 0.04,
    "augment.padding": 0,
    "augment.flip": False,
    "epochs": 50,
    "schedule.milestones": (37, 45),
}
RATES = tuple(
    {"learning_rate": rate, "weight_decay": decay}
    for rate, decay in itertools.product((0.05, 0.1, 0.2, 0.4), (2.5e-3, 5e-3, 1e-2, 2e-2))
)
TRIALS = len(RATES)  # of each method
PAPER = {"learning_rate": 0.1, "weight_decay": 1e-4}
AB = tuple({"reparam.a": a, "reparam.b": b} for a, b in ((1.0, 1.0), (1.0, 0.6), (0.6, 1.0), (0.6, 0.6)))
LEARNED_AB = tuple({"reparam.a": a, "reparam.b": b} for a, b in ((0.5, 1.0), (1.0, 1.0), (1.0, 0.6), (0.5, 0.5)))


class Method(NamedTuple):
    """A variant of the config file, and its own values: the first are the values before tuning."""

    variant: str
    own: tuple[dict, ...] = ({},)


METHODS = {
    "plain": Method("plain"),
    "wc": Method("wc", AB),
    "smooth": Method("plain", tuple({"label_smoothing": x} for x in (0.1, 0.05, 0.2, 0.4))),
    "learned": Method("learned", LEARNED_AB),
    "wn": Method("wn"),
    "pp": Method("pp", tuple({"reparam.alpha": x} for x in (2.0, 1.25, 1.5, 3.0))),
    "erf": Method("erf", AB),
    "arsinh": Method("arsinh", AB),
    "channel": Method("channel", LEARNED_AB),
}


class Epochs(NamedTuple):
    """What a run reports of each epoch, the first axis."""

    train: steps.Totals
    val: steps.Totals
    weights: Any  # of `describe`, {layer: its numbers}
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
    weights = lambda params: {layer: describe.__wrapped__(w) for layer, w in layer_weights(params, is_plain).items()}

    def evaluate(model, data, split, variables):
        step = lambda _, totals: steps.eval_step(model, data, *variables, totals, split)
        return jax.lax.fori_loop(0, -(-data.num_images // run.config.batch_size), step, steps.Totals.zero())

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
        return carry, Epochs(totals, on_val, weights(state.params), pairs(state.params))

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
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: is_weight(x) or isinstance(x, Psi)):
        psi = getattr(x, "psi", x)
        if isinstance(psi, Psi) and psi.learned:
            quantiles = lambda x: x.ravel()[0] if x.size == 1 else jnp.quantile(x, jnp.array(QUANTILES))
            layer = "/".join(key.key for key in path[:-1] if hasattr(key, "key"))
            found[layer] = {name: quantiles(getattr(psi, name)) for name in psi.learned}
    return found


class Trainer:
    """Trains runs: programs are compiled in threads, runs follow one another on the device, folders are written after.

    Runs that differ in seed, learning rate and decay share a program.
    """

    def __init__(self, out: pathlib.Path):
        self.out, self.began = out, time.monotonic()
        self._compiler = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._writer = concurrent.futures.ThreadPoolExecutor(4)
        self._programs, self._datasets = {}, {}
        self._in_flight = threading.Semaphore(3)

    def dataset(self, config):
        key = config.data_dir, config.val_fraction, config.train_images
        if key not in self._datasets:
            dataset = load_dataset(config)
            self._datasets[key] = dataset, check_data(self.out, dataset)[1]
        return self._datasets[key]

    def program(self, config):
        """A future of (run, program), which is compiled once for all configs that share it."""
        shared = config.copy_and_resolve_references()
        shared.update({"seed": 0} | PAPER)
        key = json.dumps(shared.to_dict(), sort_keys=True)
        if key not in self._programs:
            self._programs[key] = self._compiler.submit(self._compile, shared, self.dataset(shared)[0])
        return self._programs[key]

    def _compile(self, config, dataset):
        run = Run(config, None, meshes.one_device(), dataset)
        splits = dataset[:3]
        feeds = [feed.OnDevice(split, dataset, config, run.mesh) for split in splits]
        place = lambda split: Split(split.images.reshape(len(split.labels), -1), split.labels)
        splits = meshes.replicate(run.mesh, [feed.Images(*place(split)) for split in splits])
        call = jax.jit(lambda seed, rates, splits: whole_run(run, feeds, seed, rates, splits))
        rates = {name: jnp.float32(0) for name in PAPER}
        return run, call.lower(jnp.int32(0), rates, splits).compile(), splits

    def train(self, stage: str, configs: dict) -> dict[str, float]:
        """{name: accuracy on val} of configs, {name: config}; -1 for runs that diverged. Folders are OUT/name."""
        began = time.monotonic()
        for config in configs.values():
            self.program(config)
        futures = {name: self._start(self.out / name, config) for name, config in configs.items()}
        accuracies = {name: future.result() for name, future in futures.items()}
        now = time.monotonic()
        best = max(accuracies, key=accuracies.get)
        print(
            f"{now - self.began:6.1f} s  {stage}: {len(configs)} runs in {now - began:.1f} s, best {best} "
            f"{accuracies[best]:.2%}",
            flush=True,
        )
        return accuracies

    def _start(self, folder, config):
        """A future of the accuracy on val."""
        if (folder / "summary.json").exists() or (folder / "failed.json").exists():
            return self._writer.submit(read, folder)
        run, program, splits = self.program(config).result()
        self._in_flight.acquire()
        rates = {name: jnp.float32(config[name]) for name in PAPER}
        result = program(jnp.int32(config.seed), rates, splits)
        return self._writer.submit(self._write, folder, config, run, result)

    def _write(self, folder, config, run, result):
        began = time.monotonic()
        try:
            result = jax.device_get(jax.block_until_ready(result))
        finally:
            self._in_flight.release()
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write(folder, "config.json", config.to_dict())
        run_folder.write(folder, "data.json", self.dataset(config)[1])
        return write(folder, config, run, result, time.monotonic() - began)


def read(folder) -> float:
    """The accuracy on val of a run that is finished."""
    summary = run_folder.read(folder, "summary.json")
    return -1.0 if summary is None else summary["best_val_accuracy"]


def write(folder, config, run, result: Result, seconds: float) -> float:
    """Writes the results to the run folder, and returns the accuracy on val."""
    lists = lambda tree: jax.tree.map(lambda x: x.tolist(), tree)
    take = lambda i: lists(jax.tree.map(lambda x: x[i], result.epochs))
    epochs = [take(i) for i in range(config.epochs)]
    bad = [e.train.first_bad_step for e in epochs if e.train.first_bad_step >= 0]
    if bad or not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.folded)):
        reason = f"the loss became nan or inf at step {bad[0]}" if bad else "weights are nan or inf"
        run_folder.write(folder, "failed.json", {"reason": reason, "config": config.to_dict()})
        return -1.0
    schedule = Run(config, None, run.mesh, run.dataset).schedule
    lines, weights = [], [{"epoch": 0, "layers": lists(result.before)}]
    for number, e in enumerate(epochs, start=1):
        line = {"epoch": number, "step": number * run.steps_per_epoch}
        for split, totals in (("train", e.train), ("val", e.val)):
            line |= {f"{split}_loss": totals.loss / totals.seen, f"{split}_accuracy": totals.correct / totals.seen}
        line["learning_rate"] = float(schedule(line["step"] - 1))
        line["seconds"] = seconds / config.epochs
        lines.append(line | ({"pairs": e.pairs} if e.pairs else {}))
        weights.append({"epoch": number, "layers": e.weights})
    for name, content in (("metrics.jsonl", lines), ("weights.jsonl", weights)):
        write_text(folder / name, "".join(json.dumps(line) + "\n" for line in content))
    save_tree(folder / "folded", result.folded)
    best_epoch, test = int(result.best_epoch), lists(result.test)
    best = lines[best_epoch - 1]
    summary = {
        "best_epoch": best_epoch,
        "best_val_accuracy": best["val_accuracy"],
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
    return summary["best_val_accuracy"]


class Experiment:
    """The stages of the experiment. model, setting: of all of its runs; name: the folder of all of its runs."""

    def __init__(self, trainer, name, overrides, model="resnet8", setting=SETTING):
        self.trainer, self.name, self.overrides, self.model, self.setting = trainer, name, overrides, model, setting

    def config(self, method, seed, keys):
        flags = [f"--config.{key}={value}" for key, value in (self.setting | keys | {"seed": seed}).items()]
        file = f"configs/cifar10.py:{self.model},{METHODS[method].variant}"
        return check_config(read_config_file(file, [*flags, *self.overrides]))

    def compile(self, methods):
        """Begins to compile the programs of tuning."""
        for method in methods:
            for own in METHODS[method].own:
                self.trainer.program(self.config(method, 0, own))

    def tune(self, methods) -> dict[str, dict]:
        """{method: its best values on val}, from as many trials for each method.

        Plain, the first, and wn: learning rate and decay. Others: their own values at plain's best learning rate and
        decay, and then these, at the best of their own.
        """
        chosen = {}
        for method in methods:
            at, own = {}, METHODS[method].own
            if len(own) > 1:
                at = self._best(method, [chosen["plain"] | values for values in own])
            num_left = TRIALS - (len(own) if len(own) > 1 else 0)
            chosen[method] = self._best(method, [at | values for values in RATES[:num_left]])
        return chosen

    def _best(self, method, points):
        """The point whose run has the highest accuracy on val."""
        label = lambda point: "_".join(f"{key.rpartition('.')[2]}{value:g}" for key, value in point.items())
        points = {f"{self.name}/tune/{method}/{label(point)}": point for point in points}
        runs = {name: self.config(method, 100, point) for name, point in points.items()}
        accuracies = self.trainer.train(f"{self.name} {method}", runs)
        return points[max(accuracies, key=accuracies.get)]

    def final(self, chosen, seeds, folder="final"):
        """The runs that are compared. chosen: {method: values}, or {label: (method, values)}."""
        for label, values in chosen.items():
            method, values = values if isinstance(values, tuple) else (label, values)
            runs = {f"{self.name}/{folder}/{label}/seed{seed}": self.config(method, seed, values) for seed in seeds}
            self.trainer.train(f"{self.name} {folder} {label} {values}", runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="ends after that")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the run folders")
    arguments, overrides = split_overrides(sys.argv[1:])
    args = parser.parse_args(arguments)
    end_after(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    experiment(Trainer(args.out), overrides)


def experiment(trainer, overrides):
    """Everything, the most important first."""
    few = Experiment(trainer, "resnet8_2500", overrides)
    few.compile(METHODS)
    few.final(
        {"plain": PAPER, "wc": PAPER | AB[1], "plain0.3": ("plain", PAPER | {"learning_rate": 0.3})}, range(10), "paper"
    )
    chosen = few.tune(METHODS)
    few.final(chosen, range(10))
    more = Experiment(trainer, "resnet8_5000", overrides, setting=SETTING | {"train_images": 5000})
    deep = Experiment(trainer, "resnet20_2500", overrides, "resnet20")
    for other in (more, deep):
        other.compile(("plain", "wc"))
    for other in (more, deep):
        other.final(other.tune(("plain", "wc")), range(10))


if __name__ == "__main__":
    main()
