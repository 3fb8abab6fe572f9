"""Input pipelines alone, without a network: batches from images on the device, and batches streamed from JPEGs."""

import functools
import itertools
import os
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import in_turn, summary
from wcjax.config import check_config, default_config
from wcjax.config.build import load_dataset
from wcjax.data import augment
from wcjax.training import feed, sharding
from wcjax.training.run import Run


def measure(batch, dtype, repeats):
    """One record for batches of CIFAR's size, and one for each number of workers that stream ImageNet's."""
    case = {"group": "input", "batch": batch, "dtype": dtype}
    for variant, seconds in itertools.chain(on_device(batch, dtype, repeats), streamed(batch, repeats)):
        yield case | {"variant": variant, "images_per_second": batch / seconds}


def on_device(batch, dtype, repeats, num_images=50_000):
    """(variant, seconds a batch) of lookup, crop, flip and normalization of images that are on the device."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8))

    @jax.jit
    def augmented(key):
        index = jax.random.randint(key, (batch,), 0, num_images)
        cropped = augment.random_crop_and_flip(key, images[index], padding=4, flip=True)
        return augment.normalize(cropped, np.full(3, 0.5), np.full(3, 0.25), jnp.dtype(dtype))

    calls = {"on the device, 32x32": functools.partial(augmented, jax.random.key(0))}
    for variant, times in summary(in_turn(calls, repeats)).items():
        yield variant, times["seconds"]


def streamed(batch, repeats, num_files=512):
    """(variant, seconds a batch) of batches that are read from JPEGs of ImageNet's size, without and with workers."""
    try:
        from benchmarks.decode_speed import random_jpeg
        from wcjax.data.streaming import batches as stream  # noqa: F401  optional dependencies
    except ImportError:
        return
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            class_folder = pathlib.Path(folder, split, "class")
            class_folder.mkdir(parents=True)
            content = [random_jpeg(rng, 375, 500) for _ in range(10)]
            for i in range(num_files if split == "train" else 1):
                (class_folder / f"{i}.jpg").write_bytes(content[i % len(content)])
        for workers in (0, len(os.sched_getaffinity(0))):
            config = default_config()
            config.update({"dataset": "imagenet", "data_dir": folder, "batch_size": batch, "data_workers": workers})
            config = check_config(config)
            run = Run(config, None, sharding.make_mesh(config), load_dataset(config))
            with feed.training(run, 0) as data:
                batches = data.epoch(None, sys.maxsize)  # the stream repeats the images for ever
                times = summary(in_turn({"batch": functools.partial(next, batches)}, repeats))["batch"]
            variant = f"streamed, 500x375 to {config.image_size}x{config.image_size}, {workers} workers"
            yield variant, times["seconds"]
