"""A run from its configuration to its summary. The functions are in the order in which they run."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from wcjax import run_folder
from wcjax.config import check_config
from wcjax.config.build import load_dataset, make_model
from wcjax.errors import DivergedError, InitialWeightsError, InputError
from wcjax.params import Reparameterized, reparameterize
from wcjax.run_folder.fingerprint import checked_dataset
from wcjax.run_folder.lock import run_lock
from wcjax.run_folder.metrics import MetricsWriter
from wcjax.system import processes
from wcjax.system.files import saving
from wcjax.system.paths import check_writable, run_path
from wcjax.training import compilation, feed, result, sharding, steps
from wcjax.training.display import Display
from wcjax.training.evaluate import evaluate, evaluate_folded
from wcjax.training.in_flight import InFlight
from wcjax.training.preemption import SharedStopSignals, StopRequested, StopSignals, interruption, stop_signals
from wcjax.training.progress import Progress
from wcjax.training.run import Run
from wcjax.training.run_checkpoints import RunCheckpoints
from wcjax.training.train_state import TrainState
from wcjax.training.weights import layer_statistics, learned_pairs
from wcjax.trees import instances

log = logging.getLogger(__name__)


def train(
    config: Mapping | ConfigDict,
    workdir: str | os.PathLike,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[dict], None] = lambda metrics: None,
) -> dict:
    """Trains the network that config describes and leaves a run folder, or resumes the run in that folder.

    Args:
      config: a mapping with the keys of `wcjax.config.default_config()`; missing keys get their defaults.
      workdir: the run folder. It gets config.json, data.json, metrics.jsonl, weights.jsonl, tensorboard/, checkpoints/,
        folded/ and summary.json. All processes of a run must see it. Only the first one writes its files, except for
        checkpoints, which all of them write.
      on_step: called with the `Progress` after each training step. Its arrays may not be computed yet: reading them
        waits for the device, and the next step deletes them. To change them, assign `progress.state`.
      on_epoch: called after each epoch with its metrics, the fields of metrics.jsonl, for example to send them to
        another tracker. An epoch that is repeated because the process was killed is reported again.

    Returns:
      The content of summary.json: 'best_epoch', 'best_val_accuracy', 'test_accuracy', 'images_per_second' and more.

    Raises:
      InputError: the config, the data set or the workdir cannot be used (raised before any work), or the data can no
        longer be read.
      InUseError: another run is training in workdir.
      DivergedError: the loss or the weights became nan or inf.
      LoaderError: a decoding process has died.
      SaveError: a file or a checkpoint cannot be written.
      Preempted: this process, or one that shares the run, got SIGTERM. The run is saved.
      KeyboardInterrupt: Ctrl-C in a single-process run. The run is saved.
    """
    config, folder = check_config(config), run_path(workdir, "workdir")
    mesh = sharding.make_mesh(config)
    run_folder.check_matches(folder, config)
    if (summary := run_folder.read(folder, "summary.json")) is not None:
        log.info("%s is finished; nothing to do.", folder)
        return summary
    check_writable(folder, "workdir")

    dataset, data_record = checked_dataset(folder, load_dataset(config))
    run = Run(config, folder, mesh, dataset)
    _announce(run)
    progress = Progress.start(run)
    _check_initial_weights(run, progress)

    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder), stop_signals() as signals:
        _write_config(run, data_record)
        return _train(run, progress, on_step, on_epoch, signals)


def _announce(run: Run) -> None:
    config, device = run.config, jax.devices()[0].device_kind
    devices = f"{run.mesh.size} x {device}" if run.mesh.size > 1 else device
    train, val, test = (split.num_images for split in run.dataset.splits)
    images = f"{train} training, {val} val and {test} test images"
    psi = run.psi or "none"
    log.info("%s, Ψ: %s, %s: %s, on %s. Compiling ...", config.model, psi, config.dataset, images, devices)
    late = [epoch for epoch in config.schedule.milestones if epoch >= config.epochs]
    if late and processes.is_first():
        log.warning("The run ends after epoch %d, before schedule.milestones %s.", config.epochs, late)


def _check_initial_weights(run: Run, progress: Progress) -> None:
    """Raises InputError if no weight is companded, or if an initial weight or its Ψ⁻¹ is not finite."""
    if run.psi is not None and not instances(progress.state.params, Reparameterized):
        raise InputError(
            f"the network {run.config.model} has no companded layer, but config.reparam.name is "
            f"{run.config.reparam.name}. Make its layers with wcjax.linen, or set config.reparam.name to none."
        )
    if steps.all_finite(progress.state.params):
        return
    if run.psi is not None:
        plain = make_model(run.config, run.dataset.num_classes, plain=True)
        weights = steps.init_state(plain, optax.identity(), run.image_shape, run.config.seed).params
        try:
            reparameterize(weights, run.psi)
        except ValueError as error:
            raise InitialWeightsError(f"initial weights: {error}") from error
    raise InitialWeightsError(f"the initial weights of the network {run.config.model} hold nan or inf.")


def _write_config(run: Run, data_record: dict) -> None:
    if processes.is_first():
        # Again, because another run may have begun here before this one had the lock.
        run_folder.check_matches(run.folder, run.config)
        run_folder.write(run.folder, "data.json", data_record)  # first: a run with a config must have it
        run_folder.write(run.folder, "config.json", run.config.to_dict())


def _train(
    run: Run,
    progress: Progress,
    on_step: Callable[[Progress], None],
    on_epoch: Callable[[dict], None],
    signals: StopSignals | SharedStopSignals,
) -> dict:
    """Resumes a run at its newest checkpoint, trains it to its end and returns its summary."""
    with contextlib.closing(RunCheckpoints(run)) as checkpoints:
        checkpoints.restore_into(progress)
        # -1: a run without a checkpoint has no finished lines, not even that of epoch 0, the initial weights.
        done_epochs = progress.epoch if progress.step else -1
        writer = MetricsWriter(run.folder, run.config, done_epochs)
        session = _Session(run, progress, checkpoints, writer, on_step, on_epoch, signals)
        with contextlib.closing(writer), _save_if_stopped(session):
            with (
                feed.training(run, progress.step) as train_feed,
                feed.evaluation(run.dataset.val, run.dataset, run.config, run.mesh) as val_feed,
            ):
                compiled = _compile(run, progress, train_feed, val_feed)
                if progress.step:
                    log.info("Resuming at %s.", progress.position(run))
                else:
                    writer.write_weights(0, _weight_statistics(run, progress))
                signals.arm()  # from here on there is something to save, and a signal waits for the end of the step
                session.check_stop()
                _train_epochs(session, compiled, train_feed, val_feed)
            best = checkpoints.best_state(progress)
            checkpoints.close()  # a run is finished only if all its checkpoints are written
            return _finish(session, best, compiled.seconds)


class _Session(NamedTuple):
    """What a process works with while it trains a run."""

    run: Run
    progress: Progress
    checkpoints: RunCheckpoints
    writer: MetricsWriter
    on_step: Callable[[Progress], None]
    on_epoch: Callable[[dict], None]
    signals: StopSignals | SharedStopSignals

    def check_stop(self) -> None:
        """Raises StopRequested after a signal."""
        if name := self.signals.pending():
            raise StopRequested(name)


@contextlib.contextmanager
def _save_if_stopped(session: _Session) -> Iterator[None]:
    """Saves the run if a signal stops it, and raises Preempted or KeyboardInterrupt.

    If the run diverges, its best epoch is saved. All processes of a run diverge together. Any other error may occur in
    one process, which cannot save alone.
    """
    run, progress = session.run, session.progress
    try:
        yield
    except DivergedError:
        session.checkpoints.save_best()
        raise
    except StopRequested as signal:
        if progress.step > progress.epoch * run.steps_per_epoch:  # else no step was done since the last checkpoint
            session.checkpoints.save_midway(progress)
        raise interruption(signal.name, progress.position(run)) from None


class _CompiledSteps(NamedTuple):
    """The compiled steps of a run.

    Attributes:
      train_step: from `compilation.compile_train_step`.
      eval_step: from `compilation.compile_eval_step`.
      seconds: how long it took to trace and compile both.
    """

    train_step: Callable
    eval_step: Callable
    seconds: float


def _compile(run: Run, progress: Progress, train_feed: feed.Feed, val_feed: feed.Feed) -> _CompiledSteps:
    """Compiles both steps, and puts progress into the memory layout that XLA chose for the training step."""
    began = time.perf_counter()
    train_step = compilation.compile_train_step(run, train_feed, progress.state, progress.totals)
    progress.arrays = jax.device_put(progress.arrays, train_step.input_formats[0][0])
    state = progress.state
    eval_step = compilation.compile_eval_step(run.model, val_feed, state.params, state.batch_stats)
    return _CompiledSteps(train_step, eval_step, time.perf_counter() - began)


def _train_epochs(session: _Session, compiled: _CompiledSteps, train_feed: feed.Feed, val_feed: feed.Feed) -> None:
    """Trains until all epochs are finished."""
    run, progress = session.run, session.progress
    with contextlib.closing(Display(run)) as display:
        while progress.epoch < run.config.epochs:
            # As if the part of the epoch before an interruption had just ended.
            epoch_began = time.perf_counter() - progress.seconds
            steps_left = (progress.epoch + 1) * run.steps_per_epoch - progress.step
            epoch_inputs = train_feed.epoch(progress.state, steps_left)
            display.begin_epoch(progress)
            _train_steps(session, compiled.train_step, epoch_inputs, InFlight(on_done=display.finish_step))
            progress.check_finite(run)
            display.show_validation()
            val_means = _validate(session, compiled.eval_step, val_feed)
            metrics = _epoch_metrics(run, progress, val_means, epoch_began)
            progress.finish_epoch(run, val_means["accuracy"])
            # The lines come before the checkpoint: a run that resumes can remove lines of an epoch, but not add them.
            session.writer.write_metrics(metrics)
            session.writer.write_weights(progress.epoch, _weight_statistics(run, progress))
            session.checkpoints.save_epoch(progress, val_means["accuracy"])
            display.finish_epoch(metrics)
            session.on_epoch(metrics)


def _train_steps(session: _Session, train_step: Callable, epoch_inputs: Iterator, in_flight: InFlight) -> None:
    """Runs the remaining steps of an epoch, whose inputs are epoch_inputs."""
    progress = session.progress
    steps_began = time.perf_counter() - progress.seconds  # as in _train_epochs
    for inputs in epoch_inputs:
        progress.arrays, means = train_step(progress.arrays, inputs)
        progress.step += 1
        progress.seconds = time.perf_counter() - steps_began
        in_flight.add(means)
        session.on_step(progress)
        _save_midway_if_due(session)
        session.check_stop()
    in_flight.drain()
    progress.seconds = time.perf_counter() - steps_began


def _save_midway_if_due(session: _Session) -> None:
    """Saves a checkpoint after each `config.checkpoint_every` steps, except at the end of an epoch."""
    run, progress = session.run, session.progress
    every, ends_epoch = run.config.checkpoint_every, progress.step % run.steps_per_epoch == 0
    if every and progress.step % every == 0 and not ends_epoch:
        session.checkpoints.save_midway(progress)


def _validate(session: _Session, eval_step: Callable, val_feed: feed.Feed) -> dict:
    """{'loss', 'accuracy'} on val. Raises DivergedError if the loss is not finite."""
    progress, state = session.progress, session.progress.state
    means = evaluate(eval_step, state.params, state.batch_stats, val_feed, session.check_stop)
    if not np.isfinite(means["loss"]):
        raise progress.divergence_error(session.run, "the loss on val is nan or inf", progress.step)
    return means


def _epoch_metrics(run: Run, progress: Progress, val_means: dict, epoch_began: float) -> dict:
    """The fields of metrics.jsonl for the epoch whose steps are done."""
    metrics = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        **{f"train_{name}": value for name, value in progress.totals.means().items()},
        **{f"val_{name}": value for name, value in val_means.items()},
        "learning_rate": float(run.schedule(progress.step - 1)),
        "images_per_second": run.steps_per_epoch * run.config.batch_size / progress.seconds,
        "seconds": time.perf_counter() - epoch_began,
    }
    if run.config.reparam.learn != "none":
        metrics["pairs"] = learned_pairs(progress.state.params)
    return metrics


def _weight_statistics(run: Run, progress: Progress) -> dict[str, dict]:
    return layer_statistics(sharding.unshard(run.mesh, progress.state.params), run.config)


def _finish(session: _Session, best: TrainState, compile_seconds: float) -> dict:
    """Folds the best state, evaluates it on test and writes the summary, which it returns."""
    run = session.run
    num_parameters = result.save_folded(run, best)
    if processes.is_first():
        session.checkpoints.delete_midway()
        (run.folder / "progress.json").unlink(missing_ok=True)
    # The weights are read back from the run folder, so that the accuracy is that of what is stored.
    means = evaluate_folded(run.folder, run.dataset, splits=("test",), mesh=run.mesh, after_batch=session.check_stop)
    summary = result.summary(run, session.progress, means["test"], compile_seconds, num_parameters)
    session.writer.write_summary(summary)
    if processes.is_first():
        run_folder.write(run.folder, "summary.json", summary)
    processes.wait_for_all("the summary is written")
    return summary
