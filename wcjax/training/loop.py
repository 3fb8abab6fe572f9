"""A run from its configuration to its summary. The functions are in the order in which they run."""

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from wcjax import processes, run_folder
from wcjax.config import check_config
from wcjax.config.build import load_dataset, make_model
from wcjax.errors import InitialWeightsError, InputError
from wcjax.files import check_writable, run_path, saving
from wcjax.params import Reparameterized, fold, reparameterize
from wcjax.run_folder.checkpoints import save_tree
from wcjax.run_folder.data import check_data
from wcjax.run_folder.lock import alone_in
from wcjax.run_folder.metrics import MetricsWriter, NoMetrics
from wcjax.training import feed, sharding, steps
from wcjax.training.display import Display
from wcjax.training.evaluate import evaluate, evaluate_folded
from wcjax.training.in_flight import InFlight
from wcjax.training.preemption import Interrupted, interruption, signals_noticed
from wcjax.training.progress import MIDWAY, Progress, Saves
from wcjax.training.run import Run
from wcjax.training.weights import describe_layers, learned_pairs
from wcjax.trees import instances

log = logging.getLogger(__name__)


def train(
    config,
    workdir,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[dict], None] = lambda row: None,
) -> dict:
    """Trains the network that config describes and leaves a run folder, or resumes the run in that folder.

    Args:
      config: a mapping with the keys of `wcjax.config.default_config()`; missing keys get their defaults.
      workdir: the run folder. It gets config.json, data.json, metrics.jsonl, weights.jsonl, tensorboard/, checkpoints/,
        folded/ and summary.json. All processes of a run must see it. The first one writes, and all write checkpoints.
      on_step: called with the `Progress` after each training step. Its arrays may not be computed yet: reading them
        waits for the device, and the next step deletes them.
      on_epoch: called after each epoch with its row of metrics.jsonl, for example to send it to another tracker. An
        epoch that is repeated because the process was killed is reported again.

    Returns:
      The content of summary.json: 'best_epoch', 'best_val_accuracy', 'test_accuracy', 'images_per_second' and more.

    Raises:
      InputError: the config, the data set or the workdir cannot be used (raised before any work), or the data can no
        longer be read. InUseError: another run is training in workdir.
      DivergedError: the loss or the weights became nan or inf.
      LoaderError: a decoding process has died.
      SaveError: a file or a checkpoint cannot be written.
      Preempted: this process, or one that shares the run, got SIGTERM. The run is saved.
      KeyboardInterrupt: Ctrl-C in a single-process run. The run is saved.
    """
    config, folder = check_config(config), run_path(workdir, "workdir")
    mesh = sharding.make_mesh(config)
    run_folder.check(folder, config)
    processes.wait_for_all("the workdir is checked")
    if (summary := run_folder.read(folder, "summary.json")) is not None:
        log.info("%s is finished; nothing to do.", folder)
        return summary
    check_writable(folder, "workdir")

    dataset, data = check_data(folder, load_dataset(config))
    run = Run(config, folder, mesh, dataset)
    _announce(run)
    progress = Progress.start(run)
    _check_initial_weights(run, progress)

    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder), signals_noticed() as stop:
        _write_config(run, data)
        return _train(run, progress, _Callbacks(on_step, on_epoch, stop))


class _Callbacks(NamedTuple):
    on_step: Callable[[Progress], None]
    on_epoch: Callable[[dict], None]
    stop: Callable[[], str]  # from `signals_noticed`

    def check_stop(self) -> None:
        """Raises Interrupted after a signal."""
        if name := self.stop():
            raise Interrupted(name)


def _announce(run) -> None:
    config, device = run.config, jax.devices()[0].device_kind
    log.info(
        "%s, Ψ: %s, %s: %d training, %d val and %d test images, on %s. Compiling ...",
        *(config.model, run.psi or "none", config.dataset),
        *(split.num_images for split in run.dataset[:3]),
        f"{run.mesh.size} x {device}" if run.mesh.size > 1 else device,
    )
    if late := [epoch for epoch in config.schedule.milestones if epoch >= config.epochs]:
        log.warning("The run ends after epoch %d, before schedule.milestones %s.", config.epochs, late)


def _check_initial_weights(run, progress) -> None:
    """Raises InputError if no weight is companded, or, naming the weight, if Ψ⁻¹ of an initial weight is not finite."""
    if run.psi is not None and not instances(progress.state.params, Reparameterized):
        raise InputError(
            f"the network {run.config.model} has no companded layer, but config.reparam.name is "
            f"{run.config.reparam.name}. Make its layers with wcjax.linen, or set config.reparam.name to none."
        )
    if steps.all_finite(progress.state.params):
        return
    plain = make_model(run.config, run.dataset.num_classes, plain=True)
    weights = steps.init_state(plain, optax.identity(), run.image_shape, run.config.seed).params
    try:
        reparameterize(weights, run.psi)
    except ValueError as error:
        raise InitialWeightsError(f"initial weights: {error}") from error


def _write_config(run, data) -> None:
    if processes.is_first():
        run_folder.check(run.folder, run.config)  # again: another run may have begun here before this one had the lock
        run_folder.write(run.folder, "data.json", data)  # first: a run with a config must have it
        run_folder.write(run.folder, "config.json", run.config.to_dict())


def _train(run, progress, callbacks) -> dict:
    """Resumes a run at its newest checkpoint, trains it to its end and returns its summary."""
    with contextlib.closing(Saves(run)) as saves:
        saves.restore(progress)
        with contextlib.closing(_metrics_writer(run, progress)) as writer, _saved_on_signal(run, progress, saves):
            compile_seconds = _train_epochs(run, progress, saves, writer, callbacks)
            best = saves.best_state(progress)
            saves.close()  # a run is finished only if all its checkpoints are written
            return _finish(run, progress, best, compile_seconds, writer, callbacks.check_stop)


def _metrics_writer(run, progress):
    if not processes.is_first():
        return NoMetrics()
    return MetricsWriter(run.folder, run.config, done_epochs=progress.epoch if progress.step else -1)


@contextlib.contextmanager
def _saved_on_signal(run, progress, saves):
    """Turns Interrupted into Preempted or KeyboardInterrupt, after the run is saved."""
    try:
        yield
    except Interrupted as signal:
        if progress.step > progress.epoch * run.steps_per_epoch:  # else the epoch's checkpoint has it all
            saves.save_within(progress)
        raise interruption(signal.name, _place(run, progress)) from None


def _train_epochs(run, progress, saves, writer, callbacks) -> float:
    """Trains until all epochs are finished, and returns the seconds that compiling took."""
    config = run.config
    with (
        feed.training(run, progress.step) as train_data,
        feed.evaluation(run.dataset.val, run.dataset, config, run.mesh) as val_data,
        contextlib.closing(Display(run)) as display,
    ):
        programs = _compile(run, progress, train_data, val_data)
        if progress.step:
            log.info("Resuming at %s.", _place(run, progress))
        else:
            writer.write_weights(0, _describe_weights(run, progress))
        callbacks.check_stop()  # from here on there is something to save, and a signal waits for the end of the step
        after_step = functools.partial(_after_step, run, progress, saves, callbacks)
        while progress.epoch < config.epochs:
            began = time.perf_counter() - progress.seconds
            inputs = train_data.epoch(progress.state)
            display.begin_epoch(progress)
            in_flight = InFlight(on_done=display.finish_step)
            _train_epoch(run, programs.train, progress, inputs, in_flight, after_step)
            progress.check_finite(run.schedule)
            train_means = progress.totals.means()
            display.show_validation()
            state = progress.state
            val_means = evaluate(programs.evaluate, state.params, state.batch_stats, val_data, callbacks.check_stop)
            learning_rate = float(run.schedule(progress.step - 1))
            if not np.isfinite(val_means["loss"]):
                raise progress.diverged(f"the loss became nan or inf at step {progress.step - 1}", learning_rate)

            images_per_second = run.steps_per_epoch * config.batch_size / progress.seconds
            progress.finish_epoch(run, val_means["accuracy"])
            row = {
                "epoch": progress.epoch,
                "step": progress.step,
                **{f"train_{name}": value for name, value in train_means.items()},
                **{f"val_{name}": value for name, value in val_means.items()},
                "learning_rate": learning_rate,
                "images_per_second": images_per_second,
                "seconds": time.perf_counter() - began,
            }
            if config.reparam.learn != "none":
                row["pairs"] = learned_pairs(state.params)
            writer.write(row)
            writer.write_weights(progress.epoch, _describe_weights(run, progress))
            saves.save_epoch(progress, val_means["accuracy"])
            display.finish_epoch(row)
            callbacks.on_epoch(row)
    return programs.seconds


class _Programs(NamedTuple):
    train: Callable  # from `steps.compile_train_step`
    evaluate: Callable  # from `steps.compile_eval_step`
    seconds: float  # to trace and compile both


def _compile(run, progress, train_data, val_data) -> _Programs:
    began = time.perf_counter()
    state = progress.state
    train = steps.compile_train_step(run, train_data, state, progress.totals)
    progress.state = state = jax.device_put(state, train.input_formats[0][0])
    evaluate = steps.compile_eval_step(run.model, val_data, state.params, state.batch_stats)
    return _Programs(train, evaluate, time.perf_counter() - began)


def _train_epoch(run, program, progress, inputs, in_flight, after_step) -> None:
    """Does the steps that are left of an epoch, and calls after_step() after each."""
    began = time.perf_counter() - progress.seconds
    while progress.step < (progress.epoch + 1) * run.steps_per_epoch:
        progress.state, progress.totals, means = program(progress.state, progress.totals, next(inputs))
        progress.step += 1
        progress.seconds = time.perf_counter() - began
        in_flight.add(means)
        after_step()
    in_flight.drain()
    progress.seconds = time.perf_counter() - began


def _after_step(run, progress, saves, callbacks) -> None:
    callbacks.on_step(progress)
    every, is_last = run.config.checkpoint_every, progress.step % run.steps_per_epoch == 0
    if every and progress.step % every == 0 and not is_last:
        saves.save_within(progress)
    callbacks.check_stop()


def _describe_weights(run, progress):
    return describe_layers(sharding.gather(run.mesh, progress.state.params), run.config)


def _finish(run, progress, best, compile_seconds, writer, check_stop) -> dict:
    """Folds the best state, evaluates it on test and writes the summary, which it returns."""
    params = sharding.gather(run.mesh, best.params)
    params = params if run.psi is None else jax.jit(fold)(params)  # one program, not one for each operation
    save_tree(run.folder / "folded", {"params": params, "batch_stats": best.batch_stats})
    if processes.is_first():
        shutil.rmtree(run.folder / MIDWAY, ignore_errors=True)
        (run.folder / "progress.json").unlink(missing_ok=True)
    test = evaluate_folded(run.folder, run.dataset, splits=("test",), mesh=run.mesh, after_batch=check_stop)["test"]
    summary = {
        "best_epoch": progress.best_epoch,
        "best_val_accuracy": progress.best_val_accuracy,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "epochs": run.config.epochs,
        "images_per_second": progress.step * run.config.batch_size / progress.train_seconds,
        "train_seconds": progress.train_seconds,
        "compile_seconds": compile_seconds,
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "device": jax.devices()[0].device_kind,
        "num_devices": run.mesh.size,
        "jax_version": jax.__version__,
    }
    writer.write_summary(summary)
    if processes.is_first():
        run_folder.write(run.folder, "summary.json", summary)
    processes.wait_for_all("the summary is written")
    return summary


def _place(run, progress) -> str:
    """'step 70 (epoch 4)'"""
    is_trained = progress.epoch == run.config.epochs
    return f"step {progress.step} ({'after the last epoch' if is_trained else f'epoch {progress.epoch + 1}'})"
