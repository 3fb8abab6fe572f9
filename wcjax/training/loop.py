"""A run from its configuration to its summary."""

import collections
import contextlib
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from wcjax.errors import DivergedError, InitialWeightsError, InputError
from wcjax.params import fold, name_of, path_str, reparameterize
from wcjax.training import step as steps
from wcjax.training.checkpoint import Checkpoints, save_tree
from wcjax.training.config import check_config, load_dataset, make_model, make_psi, read_config
from wcjax.training.evaluate import evaluate, evaluate_folded
from wcjax.training.metrics import MetricsWriter, Progress, write_json
from wcjax.training.weights import describe_layers

log = logging.getLogger(__name__)

# Steps that may be on their way to the device at once: enough that it never waits, few enough for an honest bar.
IN_FLIGHT = 8


def train(config, workdir) -> dict:
    """Trains the network of config and leaves a run folder; called again on the same folder, goes on where it stopped.

    Args:
      config: a mapping with the keys of `wcjax.training.default_config()`; missing keys get their defaults.
      workdir: the run folder. It gets config.json, metrics.jsonl, weights.jsonl, tensorboard/, checkpoints/, folded/
        and summary.json.

    Returns:
      What summary.json holds: 'best_epoch', 'best_val_accuracy', 'test_accuracy', 'images_per_second' and more.

    Raises:
      InputError: a bad config, data set or workdir, before any work is done.
      DivergedError: the loss became nan or inf.
    """
    config = check_config(config)
    workdir = pathlib.Path(workdir)
    check_workdir(workdir, config)
    if (workdir / "summary.json").exists():
        log.info("%s is finished; nothing to do.", workdir)
        return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))

    dataset = load_dataset(config)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    model = make_model(config, dataset.num_classes)
    tx = steps.make_optimizer(config, make_psi(config), steps_per_epoch)
    log.info(
        "%s, Ψ: %s, %s: %d training, %d val and %d test images, on %s. Compiling ...",
        *(config.model, make_psi(config) or "none", config.dataset),
        *(len(split.labels) for split in dataset[:3]),
        jax.devices()[0].device_kind,
    )
    state = steps.init_state(model, tx, dataset.train.images.shape[1:], config.seed)
    _check_initial_weights(state, config, dataset)

    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        state, record = checkpoints.restore_newest(state) or (
            state,
            {"epoch": 0, "best_epoch": 0, "best_val_accuracy": -1.0, "train_seconds": 0.0},
        )
        state, record, compile_seconds = _run_epochs(config, workdir, dataset, model, tx, state, record, checkpoints)
        if record["best_epoch"] != record["epoch"]:
            state, _ = checkpoints.restore(record["best_epoch"], state)
    params = state.params if config.reparam.name == "none" else fold(state.params, make_psi(config))
    save_tree(workdir / "folded", {"params": params, "batch_stats": state.batch_stats})

    tested = evaluate_folded(workdir, dataset, splits=("test",))
    summary = {
        "best_epoch": record["best_epoch"],
        "best_val_accuracy": record["best_val_accuracy"],
        "test_accuracy": tested["test"]["accuracy"],
        "test_loss": tested["test"]["loss"],
        "epochs": config.epochs,
        "images_per_second": config.epochs * steps_per_epoch * config.batch_size / record["train_seconds"],
        "train_seconds": record["train_seconds"],
        "compile_seconds": compile_seconds,
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "device": jax.devices()[0].device_kind,
        "jax_version": jax.__version__,
    }
    write_json(workdir / "summary.json", summary)
    return summary


def _run_epochs(config, workdir, dataset, model, tx, state, record, checkpoints):
    """Trains from record['epoch'] to config.epochs; returns the last state and record, and the seconds to compile."""
    train_data, val_data = (jax.device_put(steps.Images(*split)) for split in (dataset.train, dataset.val))
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    images_per_epoch = steps_per_epoch * config.batch_size
    compiled = _compile(config, dataset, model, tx, state, train_data, val_data)
    schedule = steps.learning_rate_schedule(config, steps_per_epoch)

    if record["epoch"]:
        log.info("Going on after epoch %d.", record["epoch"])
    with (
        contextlib.closing(MetricsWriter(workdir, record["epoch"])) as writer,
        contextlib.closing(Progress(config.epochs * images_per_epoch, record["epoch"] * images_per_epoch)) as progress,
    ):
        if not record["epoch"]:
            writer.write_weights(0, describe_layers(state.params, config))
        for epoch in range(record["epoch"] + 1, config.epochs + 1):
            began = time.perf_counter()
            state, totals = _train_epoch(config, compiled, state, train_data, steps_per_epoch, progress)
            trained = totals.means()
            train_seconds = time.perf_counter() - began
            _check_finite(int(totals.first_bad_step), schedule, epoch)
            val = evaluate(compiled.evaluate, state.params, state.batch_stats, val_data, config.batch_size)
            if not np.isfinite(val["loss"]):
                _check_finite(epoch * steps_per_epoch - 1, schedule, epoch)

            record = record | {"epoch": epoch, "train_seconds": record["train_seconds"] + train_seconds}
            if val["accuracy"] > record["best_val_accuracy"]:
                record |= {"best_epoch": epoch, "best_val_accuracy": val["accuracy"]}
            line = {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "train_loss": trained["loss"],
                "train_accuracy": trained["accuracy"],
                "val_loss": val["loss"],
                "val_accuracy": val["accuracy"],
                "learning_rate": float(schedule(epoch * steps_per_epoch - 1)),
                "images_per_second": images_per_epoch / train_seconds,
                "seconds": time.perf_counter() - began,
            }
            if config.reparam.learn != "none":
                line["pairs"] = learned_pairs(state.params)
            writer.write(line)
            writer.write_weights(epoch, describe_layers(state.params, config))
            checkpoints.save(epoch, state, record, val["accuracy"])
            progress.say(
                f"epoch {epoch}/{config.epochs}   "
                f"train loss {trained['loss']:.4f} accuracy {trained['accuracy']:.2%}   "
                f"val loss {val['loss']:.4f} accuracy {val['accuracy']:.2%}   {line['images_per_second']:,.0f} images/s"
            )
    return state, record, compiled.seconds


class _Compiled(NamedTuple):
    start_epoch: Callable
    train: Callable
    evaluate: Callable
    seconds: float  # to trace and compile all three


def _compile(config, dataset, model, tx, state, train_data, val_data) -> _Compiled:
    began = time.perf_counter()
    num_images = len(dataset.train.labels)
    statistics = {"mean": dataset.mean, "std": dataset.std}
    start_epoch = functools.partial(
        steps.start_epoch, num_images=num_images, steps_per_epoch=num_images // config.batch_size
    )
    start_epoch = jax.jit(start_epoch).lower(state).compile()
    order, totals = start_epoch(state)
    train = functools.partial(steps.train_step, model=model, tx=tx, config=config, **statistics)
    train = jax.jit(train, donate_argnums=(0, 1)).lower(state, totals, train_data, order).compile()
    evaluate = steps.compile_eval_step(model, config, dataset, state.params, state.batch_stats, val_data)
    return _Compiled(start_epoch, train, evaluate, time.perf_counter() - began)


def _train_epoch(config, compiled, state, data, steps_per_epoch, progress):
    order, totals = compiled.start_epoch(state)
    in_flight = collections.deque()
    for _ in range(steps_per_epoch):
        state, totals, loss = compiled.train(state, totals, data, order)
        in_flight.append(loss)
        if len(in_flight) > IN_FLIGHT:
            in_flight.popleft().block_until_ready()
            progress.advance(config.batch_size)
    jax.block_until_ready(totals)
    progress.advance(config.batch_size * len(in_flight))
    return state, totals


def check_workdir(workdir, config) -> None:
    """Raises InputError where workdir cannot be a run folder of config, with the difference to the config there."""
    workdir = pathlib.Path(workdir)
    existing = next(path for path in (workdir, *workdir.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"workdir {workdir}: {existing} is a file; give a folder.")
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise InputError(f"workdir {workdir} holds checkpoints but no config.json; give a new folder.")
        return
    configs = (read_config(path), json.loads(json.dumps(config.to_dict())))
    there, asked = (traverse_util.flatten_dict(c, sep=".") for c in configs)
    # The same data may lie elsewhere on another machine.
    differing = [k for k in sorted(there | asked) if k != "data_dir" and there.get(k) != asked.get(k)]
    if differing:
        rows = "\n".join(f"  {k}: {there.get(k)!r} in the folder, {asked.get(k)!r} asked for" for k in differing)
        raise InputError(
            f"workdir {workdir} holds a run with another config:\n{rows}\nGive a new folder, or that config."
        )


def _check_initial_weights(state, config, dataset) -> None:
    finite = jax.jit(lambda tree: jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])))
    if finite(state.params):
        return
    plain = make_model(config, dataset.num_classes, plain=True)
    weights = steps.init_state(plain, optax.identity(), dataset.train.images.shape[1:], config.seed).params
    try:
        reparameterize(weights, make_psi(config))
    except ValueError as error:
        raise InitialWeightsError(f"initial weights: {error}") from error


def _check_finite(bad_step, schedule, epoch) -> None:
    """Raises DivergedError unless bad_step is -1. Called once an epoch, because a look waits for the device."""
    if bad_step >= 0:
        kept = f"The checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "There is no checkpoint yet"
        raise DivergedError(
            f"the loss became nan or inf at step {bad_step} (epoch {epoch}), "
            f"learning rate {float(schedule(bad_step)):g}. {kept}. Try a lower learning_rate, in a new workdir."
        )


def learned_pairs(params) -> dict[str, dict[str, float]]:
    """{layer: {'a': a, 'b': b}} of a network that learns them."""
    pairs = collections.defaultdict(dict)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if name_of(path[-1]) in ("a", "b"):
            pairs[path_str(path[:-1])][name_of(path[-1])] = float(leaf)
    return dict(pairs)
