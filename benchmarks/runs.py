"""The step of a run as `train.py` compiles it, alone and in a whole run."""

import functools
import json
import pathlib
import tempfile
import time
from unittest import mock

import jax
import numpy as np
import optax

import wcjax
from benchmarks.steps import sizes
from benchmarks.timing import in_turn, summary
from wcjax.config import check_config, default_config, with_variant
from wcjax.config.build import learning_rate_schedule, load_dataset
from wcjax.training import compilation, feed, sharding, steps, train
from wcjax.training.evaluate import evaluate
from wcjax.training.progress import Progress
from wcjax.training.run import Run

GPU = [  # (network, batch, dtype), the most telling first
    (name, 128, dtype)
    for names in (("resnet18", "resnet50"), ("resnet8", "vgg16_bn", "wrn28_10"))
    for dtype in ("bfloat16", "float32")
    for name in names
]


class CompandRun(Run):
    """A run whose optimizer is `wcjax.compand`; its network is plain. `train.py` has layers instead."""

    @functools.cached_property
    def tx(self):
        config = self.config
        inner = optax.sgd(learning_rate_schedule(config, self.steps_per_epoch), momentum=config.momentum)
        return wcjax.compand(inner, wcjax.Arctan(1.0, 1.0), weight_decay=config.weight_decay)


VARIANTS = {
    "plain": ("plain", Run),
    "layers": ("wc", Run),
    "compand": ("plain", CompandRun),
    "learned": ("learned", Run),
}
"""{name: (variant of a config, class of the run)}"""


def run_config(model, batch, dtype, folder, images):
    """A config on random 32x32 images with batches enough for a stretch that can be timed."""
    path = pathlib.Path(folder, "cifar10.npz")
    if not path.exists():
        rng = np.random.default_rng(0)
        pixels = lambda n: rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        label = lambda n: rng.integers(0, 10, n)
        np.savez(path, x_train=pixels(images), y_train=label(images), x_test=pixels(batch), y_test=label(batch))
    config = default_config()
    config.update({"model": model, "dataset": "cifar10", "data_dir": str(folder), "batch_size": batch, "dtype": dtype})
    config.update({"epochs": 3, "learning_rate": 1e-3})
    return check_config(config)


class BareSteps:
    """The compiled step of a run on its own, with the state that it moves, as a call without arguments."""

    def __init__(self, config, run_class=Run, step=steps.train_step):
        """step: what is compiled instead of `steps.train_step`."""
        self.run = run = run_class(config, None, sharding.make_mesh(config), load_dataset(config))
        self.progress, self.steps_per_epoch = Progress.start(run), run.steps_per_epoch
        state, totals = self.state, self.progress.totals
        self.feed = feed.OnDevice(run.dataset.train, run.dataset, config, run.mesh)
        self.inputs = next(self.feed.epoch(state, 1))
        with mock.patch.object(steps, "train_step", step):
            self.step = compilation.compile_train_step(run, self.feed, state, totals)
        self.progress.arrays = jax.device_put(self.progress.arrays, self.step.input_formats[0][0])

    @property
    def state(self):
        return self.progress.state

    def __call__(self):
        self.progress.arrays, means = self.step(self.progress.arrays, self.inputs)
        return means

    @functools.cached_property
    def eval_step(self):
        return compilation.compile_eval_step(self.run.model, self.feed, self.state.params, self.state.batch_stats)

    def evaluate(self):
        evaluate(self.eval_step, self.state.params, self.state.batch_stats, self.feed)


def measure_run_steps(model, batch, dtype, repeats):
    """One record for the step of a run of each variant, as `train.py` compiles it for this device."""
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (variant, run_class) in VARIANTS.items():  # not in threads: on a GPU, to compile is to measure
            config = with_variant(run_config(model, batch, dtype, folder, 4 * batch), f"{model},{variant}")
            calls[name] = BareSteps(config, run_class=run_class)
        times = summary(in_turn(calls, repeats))
    for variant, bare in calls.items():
        case = {"group": "steps", "model": model, "batch": batch, "dtype": dtype, "variant": variant}
        yield case | times[variant] | sizes(bare.step, bare.state.params)


def measure_epoch(model, batch, dtype, num_steps):
    """Images/s of bare steps, of the fastest epoch of a run after its first, and of evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(model, batch, dtype, folder, round(batch * num_steps / 0.9) + 1)
        bare = BareSteps(config)

        def stretch():
            for _ in range(bare.steps_per_epoch):
                means = bare()
            return means

        jax.block_until_ready((stretch(), bare.evaluate()))
        seconds = []
        for turn in range(2):
            began = time.perf_counter()
            jax.block_until_ready(stretch())
            seconds.append(time.perf_counter() - began)
            if turn == 0:
                train(config, pathlib.Path(folder, "run"))
        lines = [json.loads(x) for x in pathlib.Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        images = bare.steps_per_epoch * batch
        began = time.perf_counter()
        bare.evaluate()  # which waits for the result
        evaluation = bare.feed.num_images / (time.perf_counter() - began)
    case = {"group": "epoch", "model": model, "batch": batch, "dtype": dtype, "steps": bare.steps_per_epoch}
    in_run = max(line["images_per_second"] for line in lines[1:])
    rates = {"bare steps": images / min(seconds), "run": in_run, "evaluation": evaluation}
    for variant, rate in rates.items():
        yield case | {"variant": variant, "images_per_second": rate, "ratio": rate / rates["bare steps"]}


def measure_dispatch(model, batch, dtype, repeats):
    """The time that the host takes for a step of each variant, measured with a step that computes nothing."""

    def empty_step(run, feed, state, totals, inputs):
        totals = totals._replace(loss=totals.loss + 1)
        return state._replace(step=state.step + 1), totals, totals.loss

    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (variant, run_class) in VARIANTS.items():
            config = with_variant(run_config(model, batch, dtype, folder, 4 * batch), f"{model},{variant}")
            calls[name] = BareSteps(config, run_class, empty_step)
    for variant, times in summary(in_turn(calls, repeats)).items():
        yield {"group": "dispatch", "model": model, "batch": batch, "dtype": dtype, "variant": variant} | times
