"""Which images a step gets: in which order, and augmented how."""

import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.data import pictures
from tests.processes import python
from wcjax.config import default_config
from wcjax.data import Split
from wcjax.training import feed, sharding, steps
from wcjax.training.train_state import Totals

N, BATCH = 23, 5  # four batches in an epoch, and three images left over
STEPS = N // BATCH
MEAN, STD = np.float32([0.4]), np.float32([0.2])


def on_device(images, labels, **augment):
    config = types.SimpleNamespace(batch_size=BATCH, dtype="float32", augment=augment)
    dataset = types.SimpleNamespace(mean=MEAN, std=STD)
    return feed.OnDevice(Split(images, np.int32(labels)), dataset, config, sharding.one_device())


def normalized(images):
    return (images / 255 - MEAN) / STD


def test_a_batch_is_gathered_without_a_copy_of_all_images():
    train_feed = on_device(np.zeros((N, 4, 4, 3), np.uint8), np.zeros(N), padding=1, flip=True)
    for batch, *arguments in (
        (train_feed.train_batch, train_feed.train_input_shapes(), 0, jax.random.key(0)),
        (train_feed.eval_batch, train_feed.eval_input_shapes(), 0),
    ):
        program = jax.jit(batch).lower(*arguments).as_text()
        whole, others = f"tensor<{N}x48xui8>", re.findall(rf"-> \(?tensor<{N}x[^>]*ui8>", program)
        assert whole in program, "a TPU would copy images of more axes than one, in each step, to gather from them"
        assert not others, "no operation makes an array of all images"


def test_each_epoch_has_an_order_that_only_the_seed_decides():
    pixels = np.random.default_rng(0).integers(0, 256, (N, 2, 2, 1), np.uint8)
    train_feed = on_device(pixels, np.arange(N), padding=0, flip=False)
    batch_of = jax.jit(train_feed.train_batch)

    with jax.enable_x64(True):
        assert train_feed.draw_order(jax.random.key_data(jax.random.key(0)), 0).dtype == jnp.int32

    def epoch(seed, number):
        """The numbers of the images that an epoch shows."""
        key = jax.random.key_data(jax.random.key(seed))
        first, shown = number * STEPS, []
        inputs = train_feed.epoch(types.SimpleNamespace(step=jnp.int32(first), key=key), STEPS)
        for step, step_inputs in zip(range(first, first + STEPS), inputs, strict=True):
            images, labels = batch_of(step_inputs, step, jax.random.key(step))
            np.testing.assert_allclose(images, normalized(pixels[labels]), rtol=1e-5)
            shown += labels.tolist()
        return tuple(shown)

    epochs = [epoch(seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    assert all(len(set(shown)) == STEPS * BATCH for shown in epochs), "no image twice"
    assert len(set(epochs)) == 6
    assert epochs == [epoch(seed, number) for seed in (0, 1) for number in (0, 1, 2)]


class Keeper(nn.Module):
    """Keeps the images that it was shown last."""

    @nn.compact
    def __call__(self, images, train):
        self.variable("batch_stats", "images", lambda: jnp.zeros((BATCH, 6, 6, 1))).value = images
        return jnp.zeros((len(images), 2)) + self.param("logits", nn.initializers.zeros, (2,))


def test_augmentation_is_drawn_anew_in_each_step():
    image = np.random.default_rng(0).integers(1, 256, (1, 6, 6, 1), np.uint8)
    train_feed = on_device(np.repeat(image, N, axis=0), np.zeros(N), padding=2, flip=True)
    run = types.SimpleNamespace(mesh=train_feed.mesh, model=Keeper(), tx=optax.sgd(0.1), config=default_config())
    train_step = jax.jit(functools.partial(steps.train_step, run, train_feed))
    start = {seed: steps.init_state(run.model, run.tx, (6, 6, 1), seed) for seed in (0, 1)}

    def shown(seed, step):
        state = start[seed]._replace(step=jnp.int32(step))
        state, _, _ = train_step(state, Totals.zero(), next(train_feed.epoch(state, 1)))
        return np.asarray(state.batch_stats["images"]).tobytes()

    cases = [(seed, step) for seed in (0, 1) for step in (0, 1, 4, 5)]  # 4 and 5: the same batches an epoch later
    batches = [shown(*case) for case in cases]
    assert len(set(batches)) == len(cases)
    assert batches == [shown(*case) for case in cases], "seed and step alone decide it"


READ_ALL = """
import sys
from wcjax.config import build, check_config
from wcjax.errors import InputError
from wcjax.training import feed, sharding
from wcjax.training.run import Run
config = {"dataset": "imagenet", "data_dir": sys.argv[1], "image_size": 64, "batch_size": 4, "data_workers": 1}
config = check_config(config)
try:
    with feed.training(Run(config, None, sharding.make_mesh(config), build.load_dataset(config)), 0) as images:
        sys.exit(f"{len(list(images.epoch(None, 9)))} batches of all 36 images, and no error")
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.long
def test_a_broken_image_in_a_worker_leaves_no_shared_memory(tmp_path):
    images = pictures.class_folders(tmp_path / "set", num_train=12)
    (images / "train" / "n00000001" / "train_11.JPEG").write_bytes(b"")
    ended = python("-c", READ_ALL, images, code=1)
    *warnings, line = ended.stderr.splitlines()
    assert re.match(r"error: .*/train_11\.JPEG: not an image that can be decoded \(it is empty\)", line)
    assert not any("shared_memory" in warning for warning in warnings), warnings


@pytest.mark.parametrize("code, cure", [(-9, "smaller config.data_workers"), (1, "under `if __name__ == '__main__':`")])
def test_a_killed_worker_and_a_failed_one_get_different_advice(code, cure):
    def batches():
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs above.")
        yield

    with pytest.raises(RuntimeError, match=rf"^a process that decodes images .* \(exit code {code}\).* {cure}"):
        next(feed._device_batches(batches(), mesh=None))
