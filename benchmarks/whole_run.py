"""A run as one compiled program: every step of training, evaluation on val, and the test of the best epoch.

The steps are those of `train.py`, with the same initial weights, order of images and results up to rounding. Each run
leaves a run folder that `wcjax.analysis` reads, without checkpoints to resume from.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import run_folder
from wcjax.config.build import learning_rate_schedule, load_dataset, make_model
from wcjax.data.dataset import num_batches
from wcjax.params import fold
from wcjax.run_folder.checkpoints import save_tree
from wcjax.run_folder.fingerprint import checked_dataset
from wcjax.run_folder.schema import QUANTILES
from wcjax.system.files import write_text
from wcjax.training import feed, sharding, steps
from wcjax.training.run import Run
from wcjax.training.train_state import Totals
from wcjax.training.weights import layer_weights, learned_psis, weight_statistics

THREADS = 4  # that compile, and as many that write
# Keys of a config that are arguments of its program, as the seed is, so that runs that differ in them share one. These
# values stand in the config that is compiled and have no effect.
ARGUMENTS = {"learning_rate": 0.1, "weight_decay": 1e-4}


class Epochs(NamedTuple):
    """What a run reports of each epoch, the first axis."""

    train: Totals
    val: Totals
    weights: Any  # of `weight_statistics`, {layer: its numbers}
    pairs: Any  # {layer: {'a', 'b'}} of learned ones


class Result(NamedTuple):
    """What a run reports."""

    before: Any  # the weights before the first epoch, as in Epochs
    epochs: Epochs
    best_epoch: jax.Array  # from 1
    test: Totals  # of the folded network of the best epoch
    folded: dict  # its variables


def whole_run(run: Run, feeds: list[feed.Feed], seed, rates, splits) -> Result:
    """All of a run, for one program. rates: {'learning_rate', 'weight_decay'}; these and seed replace the config's."""
    train, val, test = feeds
    config = run.config.copy_and_resolve_references()
    with config.ignore_type():
        config.update(rates)
    tuned = dataclasses.replace(run, config=config)
    is_plain = run.psi is None
    state = steps.initializer(run.model, tuned.tx, run.image_shape)(jax.random.key(seed))
    layer_statistics = lambda params: {
        layer: weight_statistics(w) for layer, w in layer_weights(params, is_plain).items()
    }

    def evaluate(model, split_feed, split, variables):
        step = lambda _, totals: steps.eval_step(model, split_feed, *variables, totals, split)
        batches = num_batches(split_feed.num_images, run.config.batch_size)
        return jax.lax.fori_loop(0, batches, step, Totals.zero())

    def epoch(carry, number):
        state, best, best_correct, best_epoch = carry
        inputs = splits[0], train.draw_order(state.key, state.step)
        step = lambda _, carry: steps.train_step(tuned, train, *carry, inputs)[:2]
        state, totals = jax.lax.fori_loop(0, run.steps_per_epoch, step, (state, Totals.zero()))
        variables = state.params, state.batch_stats
        on_val = evaluate(run.model, val, splits[1], variables)
        is_best = on_val.correct > best_correct
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), variables, best)
        carry = (state, best, jnp.maximum(on_val.correct, best_correct), jnp.where(is_best, number, best_epoch))
        pairs = {} if run.config.reparam.learn == "none" else pair_quantiles(state.params)
        return carry, Epochs(totals, on_val, layer_statistics(state.params), pairs)

    start = (state, (state.params, state.batch_stats), jnp.int32(-1), jnp.int32(0))
    (_, (params, batch_stats), _, best_epoch), epochs = jax.lax.scan(
        epoch, start, 1 + jnp.arange(run.config.epochs, dtype=jnp.int32)
    )
    params = params if is_plain else fold(params)
    plain = make_model(run.config, run.dataset.num_classes, plain=True)
    on_test = evaluate(plain, test, splits[2], (params, batch_stats))
    return Result(
        layer_statistics(state.params), epochs, best_epoch, on_test, {"params": params, "batch_stats": batch_stats}
    )


def pair_quantiles(params) -> dict:
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
        """(data set, content of its data.json), read once."""
        key = config.data_dir, config.val_fraction, config.train_images
        if key not in self._datasets:
            dataset = load_dataset(config)
            self._datasets[key] = dataset, checked_dataset(self.out, dataset)[1]
        return self._datasets[key]

    def compile(self, config):
        """A future of (run, program, splits on the device)."""
        shared = config.copy_and_resolve_references()
        shared.update({"seed": 0} | ARGUMENTS)
        key = json.dumps(shared.to_dict(), sort_keys=True)
        if key not in self._programs:
            self._programs[key] = self._compiler.submit(_compile, shared, self._dataset(shared)[0])
        return self._programs[key]

    def train(self, stage: str, configs: dict) -> dict[str, float]:
        """{name: accuracy on val} of configs, {name: config}; -1 for runs that failed. Run folders are OUT/name."""
        began, todo = time.monotonic(), {}
        for name, config in configs.items():
            run_folder.check_matches(self.out / name, config)
            if not any((self.out / name / file).exists() for file in ("summary.json", "failed.json")):
                todo[name] = config, self.compile(config)
        writing = []
        for name, (config, compiled) in todo.items():
            run, program, splits = compiled.result()
            run_began = time.monotonic()
            rates = {key: jnp.float32(config[key]) for key in ARGUMENTS}
            result = jax.block_until_ready(program(jnp.int32(config.seed), rates, splits))
            seconds = time.monotonic() - run_began
            data_record = self._dataset(config)[1]
            writing.append(self._writer.submit(write, self.out / name, config, run, data_record, result, seconds))
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
    feeds = [feed.OnDevice(split, dataset, config, run.mesh) for split in dataset.splits]
    splits = [next(split_feed.one_pass()) for split_feed in feeds]
    call = jax.jit(lambda seed, rates, splits: whole_run(run, feeds, seed, rates, splits))
    rates = {name: jnp.float32(0) for name in ARGUMENTS}
    return run, call.lower(jnp.int32(0), rates, splits).compile(), splits


def val_accuracy(folder) -> float:
    """The accuracy on val of a run that has ended; -1 if it failed."""
    summary = run_folder.read(folder, "summary.json")
    return -1.0 if summary is None else summary["best_val_accuracy"]


def write(folder, config, run: Run, data_record: dict, result: Result, seconds: float) -> None:
    """Writes a run folder, with the files and fields that `wcjax.training.loop` writes."""
    result = jax.device_get(result)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write(folder, "config.json", config.to_dict())
    run_folder.write(folder, "data.json", data_record)
    lists = lambda tree: jax.tree.map(lambda x: x.tolist(), tree)
    take = lambda i: lists(jax.tree.map(lambda x: x[i], result.epochs))
    epochs = [take(i) for i in range(config.epochs)]
    bad = [e.train.first_bad_step for e in epochs if e.train.first_bad_step >= 0]
    if bad or not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.folded)):
        reason = f"the loss became nan or inf at step {bad[0] + 1}" if bad else "weights are nan or inf"
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
