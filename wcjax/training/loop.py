"""A run from its configuration to its summary."""

import collections
import contextlib
import functools
import itertools
import logging
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from wcjax import processes, run_folder
from wcjax.checks import path_str
from wcjax.config import check_config
from wcjax.config.build import learning_rate_schedule, load_dataset, make_model, make_optimizer, make_psi
from wcjax.data import image_shape
from wcjax.errors import DivergedError, InitialWeightsError, InputError
from wcjax.files import check_writable, run_path, saving
from wcjax.params import fold, is_weight, reparameterize
from wcjax.psi import Psi
from wcjax.run_folder.checkpoints import Checkpoints, save_tree
from wcjax.run_folder.data import check_data
from wcjax.run_folder.forms import QUANTILES, RECORD, RECORD_WITHIN
from wcjax.run_folder.lock import alone_in
from wcjax.run_folder.metrics import MetricsWriter, NoMetrics
from wcjax.training import feed
from wcjax.training import mesh as meshes
from wcjax.training import step as steps
from wcjax.training.evaluate import IN_FLIGHT, evaluate, evaluate_folded
from wcjax.training.log import Progress
from wcjax.training.preemption import interruption, signals_noticed
from wcjax.training.weights import describe_layers

log = logging.getLogger(__name__)

MIDWAY = "midway"  # the folder of checkpoints within epochs, gone when the run is finished


def train(config, workdir) -> dict:
    """Trains the network of config and leaves a run folder; called again on the same folder, goes on where it stopped.

    Args:
      config: a mapping with the keys of `wcjax.training.default_config()`; missing keys get their defaults.
      workdir: the run folder. It gets config.json, metrics.jsonl, weights.jsonl, tensorboard/, checkpoints/, folded/
        and summary.json. Many processes must all see it; the first writes, checkpoints are written by all.

    Returns:
      What summary.json holds: 'best_epoch', 'best_val_accuracy', 'test_accuracy', 'images_per_second' and more.

    Raises:
      InputError: a bad config, data set or workdir, before any work is done; InUseError if another run is at work in
        workdir; later on, data that can no longer be read.
      DivergedError: the loss or the weights became nan or inf.
      LoaderError: a process that decodes images is gone.
      SaveError: something cannot be written.
      Preempted: SIGTERM came to this process or to one that shares the run, and the run has been saved.
      KeyboardInterrupt: the same after Ctrl-C, in a run of one process.
    """
    config = check_config(config)
    workdir = run_path(workdir, "workdir")
    mesh = meshes.make_mesh(config)
    run_folder.check(workdir, config)
    processes.wait_for_all("the workdir is checked")
    if (summary := run_folder.read(workdir, "summary.json")) is not None:
        log.info("%s is finished; nothing to do.", workdir)
        return summary
    check_writable(workdir, "workdir")

    dataset, data = check_data(workdir, load_dataset(config))
    steps_per_epoch = dataset.train.num_images // config.batch_size
    model = make_model(config, dataset.num_classes)
    tx = make_optimizer(config, steps_per_epoch)
    log.info(
        "%s, Ψ: %s, %s: %d training, %d val and %d test images, on %s. Compiling ...",
        *(config.model, make_psi(config) or "none", config.dataset),
        *(split.num_images for split in dataset[:3]),
        f"{mesh.size} x {jax.devices()[0].device_kind}" if mesh.size > 1 else jax.devices()[0].device_kind,
    )
    state = steps.init_state(model, tx, image_shape(config.dataset, config.image_size), config.seed, mesh)
    _check_initial_weights(state, config, dataset)

    with saving(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with alone_in(workdir), signals_noticed() as stop:
        if processes.is_first_process():
            run_folder.write(workdir, "data.json", data)  # first: a run with a config must have it
            run_folder.write(workdir, "config.json", config.to_dict())
        with (
            contextlib.closing(
                Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints, form=RECORD)
            ) as checkpoints,
            contextlib.closing(Checkpoints(workdir / MIDWAY, "step", form=RECORD_WITHIN)) as midway,
        ):
            start = _restore(checkpoints, midway, state, mesh)
            state, record, compile_seconds = _run_epochs(
                config, workdir, dataset, model, tx, start, checkpoints, midway, mesh, stop
            )
            if record["best_epoch"] != record["epoch"]:
                try:
                    state, _ = checkpoints.restore(record["best_epoch"], state)
                except InputError as error:
                    raise InputError(f"{error} It is the best one; train again in a new workdir.") from error
        return _finish(config, workdir, dataset, state, record, compile_seconds, mesh, stop)


def _finish(config, workdir, dataset, state, record, compile_seconds, mesh, stop) -> dict:
    """Folds the best state, evaluates it on test and writes the summary, which it returns.

    stop: from `signals_noticed`.
    """
    params = meshes.gather(mesh, state.params)
    params = params if config.reparam.name == "none" else fold(params)
    save_tree(workdir / "folded", {"params": params, "batch_stats": state.batch_stats})
    if processes.is_first_process():
        shutil.rmtree(workdir / MIDWAY, ignore_errors=True)

    num_steps = dataset.train.num_images // config.batch_size * config.epochs

    def stop_now():
        if name := stop():
            raise interruption(name, f"step {num_steps} (after the last epoch)")

    tested = evaluate_folded(workdir, dataset, splits=("test",), mesh=mesh, after_batch=stop_now)
    summary = {
        "best_epoch": record["best_epoch"],
        "best_val_accuracy": record["best_val_accuracy"],
        "test_accuracy": tested["test"]["accuracy"],
        "test_loss": tested["test"]["loss"],
        "epochs": config.epochs,
        "images_per_second": num_steps * config.batch_size / record["train_seconds"],
        "train_seconds": record["train_seconds"],
        "compile_seconds": compile_seconds,
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "device": jax.devices()[0].device_kind,
        "num_devices": mesh.size,
        "jax_version": jax.__version__,
    }
    if processes.is_first_process():
        run_folder.write(workdir, "summary.json", summary)
    processes.wait_for_all("the summary is written")
    return summary


class _Start(NamedTuple):
    """Where a session begins."""

    state: steps.TrainState
    record: dict  # of the last finished epoch
    totals: steps.Totals | None = None  # of the part of the epoch that is done, None at its beginning
    seconds: float = 0.0  # that the part of the epoch took


def _restore(checkpoints, midway, state, mesh) -> _Start:
    """What was saved last, or the beginning with state."""
    record = {"epoch": 0, "best_epoch": 0, "best_val_accuracy": -1.0, "train_seconds": 0.0}
    start = _Start(*(checkpoints.restore_newest(state) or (state, record)))
    found = midway.restore_newest({"state": state, "totals": steps.zero_totals(mesh)})
    # One of an earlier epoch is done with; one of a later goes with a checkpoint that cannot be read any more.
    if found is None or found[1]["epoch"] != start.record["epoch"]:
        midway.delete_all()
        return start
    saved, record = found
    seconds = record.pop("seconds")
    return _Start(saved["state"], record, saved["totals"], seconds)


def _run_epochs(config, workdir, dataset, model, tx, start, checkpoints, midway, mesh, stop):
    """Trains from start to config.epochs; returns the last state and record, and the seconds to compile.

    stop: from `signals_noticed`.
    """
    state, record, totals, seconds = start
    first_step = int(state.step)
    steps_per_epoch = dataset.train.num_images // config.batch_size
    images_per_epoch = steps_per_epoch * config.batch_size
    schedule = learning_rate_schedule(config, steps_per_epoch)

    done_epochs = record["epoch"] if first_step else -1
    writer = MetricsWriter(workdir, done_epochs) if processes.is_first_process() else NoMetrics()
    with (
        contextlib.closing(writer),
        feed.training(dataset.train, config, first_step, mesh) as train_data,
        feed.evaluation(dataset.val, config, mesh) as val_data,
        contextlib.closing(Progress(config.epochs * images_per_epoch, first_step * config.batch_size)) as progress,
    ):
        compiled = _compile(config, dataset, model, tx, state, train_data, val_data, mesh)
        if first_step:
            log.info("Going on after %s.", _place(record["epoch"], first_step, steps_per_epoch))
        else:
            writer.write_weights(0, describe_layers(meshes.gather(mesh, state.params), config))
        if name := stop():  # from here on there is something to save, and a signal waits for the end of the step
            raise interruption(name, f"step {first_step} (epoch {record['epoch'] + 1})")
        for epoch in range(record["epoch"] + 1, config.epochs + 1):
            began = time.perf_counter() - seconds
            save = functools.partial(_save_midway, midway, stop, record, began, schedule)
            last_step = epoch * steps_per_epoch
            state, totals = _train_epoch(config, compiled, state, totals, first_step, last_step, progress, save)
            trained = totals.means()
            train_seconds = time.perf_counter() - began
            _check_finite(state, totals, schedule, epoch)
            stop_now = functools.partial(save, last_step, state, totals)
            val = evaluate(
                compiled.evaluate, state.params, state.batch_stats, val_data, config.batch_size, mesh, stop_now
            )
            if not np.isfinite(val["loss"]):
                raise _diverged("loss became nan or inf at", last_step - 1, schedule, epoch)

            record = record | {"epoch": epoch, "train_seconds": record["train_seconds"] + train_seconds}
            if val["accuracy"] > record["best_val_accuracy"]:
                record |= {"best_epoch": epoch, "best_val_accuracy": val["accuracy"]}
            line = {
                "epoch": epoch,
                "step": last_step,
                "train_loss": trained["loss"],
                "train_accuracy": trained["accuracy"],
                "val_loss": val["loss"],
                "val_accuracy": val["accuracy"],
                "learning_rate": float(schedule(last_step - 1)),
                "images_per_second": images_per_epoch / train_seconds,
                "seconds": time.perf_counter() - began,
            }
            if config.reparam.learn != "none":
                line["pairs"] = learned_pairs(state.params)
            writer.write(line)
            writer.write_weights(epoch, describe_layers(meshes.gather(mesh, state.params), config))
            checkpoints.save(epoch, state, record, val["accuracy"])
            totals, seconds, first_step = None, 0.0, last_step
            progress.say(
                f"epoch {epoch}/{config.epochs}   "
                f"train loss {trained['loss']:.4f} accuracy {trained['accuracy']:.2%}   "
                f"val loss {val['loss']:.4f} accuracy {val['accuracy']:.2%}   {line['images_per_second']:,.0f} images/s"
            )
    return state, record, compiled.seconds


def _save_midway(midway, stop, record, began, schedule, step, state, totals, due=False) -> None:
    """Saves within an epoch if that is due, or if a signal asks the run to stop; then it raises `interruption`."""
    name = stop()
    if due or name:
        epoch = record["epoch"] + 1
        _check_finite(state, totals, schedule, epoch)
        midway.save(step, {"state": state, "totals": totals}, record | {"seconds": time.perf_counter() - began})
    if name:
        raise interruption(name, f"step {step} (epoch {epoch})")


def _place(epoch, step, steps_per_epoch) -> str:
    """'epoch 3', or 'step 70, in epoch 4'."""
    return f"epoch {epoch}" if step == epoch * steps_per_epoch else f"step {step}, in epoch {epoch + 1}"


class _Compiled(NamedTuple):
    start_epoch: Callable  # state -> (zero totals, iterator over what train takes after state and totals)
    train: Callable
    evaluate: Callable
    seconds: float  # to trace and compile all three


def _compile(config, dataset, model, tx, state, train_data, val_data, mesh) -> _Compiled:
    began = time.perf_counter()
    network, whole = steps.gathered_network(mesh, model)
    fixed = {"model": network, "whole": whole, "tx": tx, "config": config, "mean": dataset.mean, "std": dataset.std}
    if dataset.streamed:
        train, inputs = functools.partial(steps.train_step_on_batch, **fixed), (steps.streamed_batch(config, mesh),)

        def start_epoch(state):
            return steps.zero_totals(mesh), zip(train_data)
    else:
        num_images = dataset.train.num_images
        draw = functools.partial(
            steps.start_epoch, num_images=num_images, steps_per_epoch=num_images // config.batch_size
        )
        draw = jax.jit(draw, out_shardings=meshes.replicated(mesh)).lower(state).compile()
        train, inputs = functools.partial(steps.train_step, mesh=mesh, **fixed), (train_data, draw(state)[0])

        def start_epoch(state):
            order, totals = draw(state)
            return totals, itertools.repeat((train_data, order))

    train = steps.jit_train_step(train, mesh, state).lower(state, steps.zero_totals(mesh), *inputs).compile()
    evaluate = steps.compile_eval_step(model, config, dataset, state.params, state.batch_stats, val_data, mesh)
    return _Compiled(start_epoch, train, evaluate, time.perf_counter() - began)


def _train_epoch(config, compiled, state, totals, first_step, last_step, progress, save):
    """Does the steps of an epoch from first_step to last_step; calls save(step, state, totals, due) after each."""
    zero, inputs = compiled.start_epoch(state)
    totals = totals or zero
    in_flight = collections.deque()
    for done in range(first_step + 1, last_step + 1):
        state, totals, loss = compiled.train(state, totals, *next(inputs))
        in_flight.append(loss)
        if len(in_flight) > IN_FLIGHT:
            in_flight.popleft().block_until_ready()
            progress.advance(config.batch_size)
        due = config.checkpoint_every and done % config.checkpoint_every == 0 and done < last_step
        save(done, state, totals, due)
    jax.block_until_ready(totals)
    progress.advance(config.batch_size * len(in_flight))
    return state, totals


def _check_initial_weights(state, config, dataset) -> None:
    if steps.all_finite(state.params):
        return
    plain = make_model(config, dataset.num_classes, plain=True)
    shape = image_shape(config.dataset, config.image_size)
    weights = steps.init_state(plain, optax.identity(), shape, config.seed).params
    try:
        reparameterize(weights, make_psi(config))
    except ValueError as error:
        raise InitialWeightsError(f"initial weights: {error}") from error


def _check_finite(state, totals, schedule, epoch) -> None:
    """Raises DivergedError unless each loss of the epoch and all of state are finite, so that they may be saved.

    Gradients that are nan leave a finite loss if no step comes after them. A look waits for the device.
    """
    if (bad_step := int(totals.first_bad_step)) >= 0:
        raise _diverged("loss became nan or inf at", bad_step, schedule, epoch)
    if not steps.all_finite(state):
        raise _diverged("weights or moments are nan or inf after", int(state.step) - 1, schedule, epoch)


def _diverged(what, step, schedule, epoch) -> DivergedError:
    kept = f"The checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "There is no checkpoint yet"
    return DivergedError(
        f"the {what} step {step} (epoch {epoch}), learning rate {float(schedule(step)):g}. {kept}. "
        "Try a lower learning_rate, in a new workdir."
    )


def learned_pairs(params) -> dict[str, dict]:
    """{layer: {'a': a, 'b': b}} of a network that learns them: numbers, or for a pair per channel their `QUANTILES`."""
    named = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: is_weight(x) or isinstance(x, Psi)):
        psi = getattr(x, "psi", x)
        if isinstance(psi, Psi):  # of a weight, or the pair that all share
            arrays = {name: np.asarray(getattr(psi, name), np.float64) for name in psi.learned}
            named[path_str(path[:-1])] = {
                name: x.item() if x.size == 1 else np.quantile(x, QUANTILES).tolist() for name, x in arrays.items()
            }
    return named
