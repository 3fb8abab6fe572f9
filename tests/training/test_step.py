"""The jitted work of a run: which images it sees, what it counts, and what it leaves to the device."""

import functools
import types
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wcjax
from tests.training import runs
from wcjax import training
from wcjax.config.build import make_model, make_psi
from wcjax.training import evaluate, loop
from wcjax.training import step as steps

N, BATCH = 23, 5  # four batches of 5 in an epoch, and three images left out
STEPS = 718 // 64  # in an epoch of runs.tiny()


class Recorder(nn.Module):
    """Counts how often it was shown each image, whose first pixel is its number."""

    @nn.compact
    def __call__(self, images, train):
        shown = self.variable("batch_stats", "shown", lambda: jnp.zeros(N, jnp.int32))
        if train:
            shown.value = shown.value.at[jnp.round(images[:, 0, 0, 0] * 255).astype(int)].add(1)
        return jnp.zeros((len(images), 2)) + self.param("logits", nn.initializers.zeros, (2,))


def start(seed):
    return steps.init_state(Recorder(), optax.sgd(0.1), (2, 2, 1), seed)


def order(state):
    return np.asarray(steps.start_epoch(state, N, N // BATCH)[0])


def in_epoch(state, epoch):
    """state at the first step of an epoch, counted from 0."""
    return state._replace(step=jnp.int32(epoch * (N // BATCH)))


def test_the_order_of_each_epoch_is_a_permutation_of_its_own_which_only_the_seed_decides():
    orders = [order(in_epoch(start(seed), epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    for found in orders:
        np.testing.assert_array_equal(np.sort(found), np.arange(N))
    assert len({found.tobytes() for found in orders}) == 6
    again = [order(in_epoch(start(seed), epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    np.testing.assert_array_equal(orders, again)


def test_the_order_does_not_change_within_an_epoch():
    first = in_epoch(start(0), 1)
    for step in range(1, N // BATCH):
        np.testing.assert_array_equal(order(first._replace(step=first.step + step)), order(first))


def test_an_epoch_shows_each_image_of_its_order_once_but_for_those_that_fill_no_batch():
    images = np.zeros((N, 2, 2, 1), np.uint8) + np.arange(N, dtype=np.uint8)[:, None, None, None]
    images = steps.Images(jnp.asarray(images), jnp.zeros(N, jnp.int32))
    config = types.SimpleNamespace(batch_size=BATCH, dtype="float32", augment={"padding": 0, "flip": True})
    fixed = {"model": Recorder(), "tx": optax.sgd(0.1), "config": config, "mean": 0.0, "std": 1.0}
    train_step = jax.jit(functools.partial(steps.train_step, **fixed))
    state, expected = start(0), np.zeros(N)
    for _ in range(2):
        permutation, totals = order(state), steps.Totals.zero()
        for _ in range(N // BATCH):
            state, totals, _ = train_step(state, totals, images, permutation)
        expected[permutation[: N - N % BATCH]] += 1
        assert int(totals.seen) == N - N % BATCH
    np.testing.assert_array_equal(state.batch_stats["shown"], expected)


class Keeper(nn.Module):
    """Keeps the images that it was shown last."""

    @nn.compact
    def __call__(self, images, train):
        self.variable("batch_stats", "images", lambda: jnp.zeros((BATCH, 6, 6, 1))).value = images
        return jnp.zeros((len(images), 2)) + self.param("logits", nn.initializers.zeros, (2,))


def test_augmentation_is_drawn_anew_in_each_step_and_only_seed_and_step_decide_it():
    image = np.random.default_rng(0).integers(1, 256, (1, 6, 6, 1), np.uint8)
    images = steps.Images(jnp.asarray(np.repeat(image, N, axis=0)), jnp.zeros(N, jnp.int32))
    config = types.SimpleNamespace(batch_size=BATCH, dtype="float32", augment={"padding": 2, "flip": True})
    fixed = {"model": Keeper(), "tx": optax.sgd(0.1), "config": config, "mean": 0.0, "std": 1.0}
    train_step = jax.jit(functools.partial(steps.train_step, **fixed))

    def shown(seed, step):
        state = steps.init_state(Keeper(), optax.sgd(0.1), (6, 6, 1), seed)
        state = state._replace(step=jnp.int32(step), batch_stats={"images": jnp.zeros((BATCH, 6, 6, 1))})
        state, _, _ = train_step(state, steps.Totals.zero(), images, jnp.arange(N))
        return np.asarray(state.batch_stats["images"]).tobytes()

    cases = [(seed, step) for seed in (0, 1) for step in (0, 1, 4, 5)]  # 4 and 5: the same batches an epoch later
    found = [shown(*case) for case in cases]
    assert len(set(found)) == len(cases)
    assert found == [shown(*case) for case in cases]


class Lookup(nn.Module):
    """Reads its logits from the pixels: an arbitrary network whose answers are known."""

    @nn.compact
    def __call__(self, images, train):
        return images[:, 0, :, 0] * 5


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_evaluation_counts_every_image_once_also_in_a_short_last_batch(batch_size):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (N, 1, 4, 1), np.uint8), rng.integers(0, 4, N, np.int32)
    mean, std = np.float32([0.4]), np.float32([0.2])
    dataset = types.SimpleNamespace(mean=mean, std=std)
    config = types.SimpleNamespace(batch_size=batch_size, dtype="float32")
    split = steps.Images(jnp.asarray(pixels), jnp.asarray(labels))
    eval_step = steps.compile_eval_step(Lookup(), config, dataset, {}, {}, split)
    found = evaluate.evaluate(eval_step, {}, {}, split, batch_size)

    logits = 5 * (np.float64(pixels[:, 0, :, 0]) / 255 - mean) / std
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(N), labels]
    assert found["accuracy"] == np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)


def test_the_learning_rate_is_times_the_factor_from_the_first_step_after_each_milestone():
    config = training.check_config({"learning_rate": 0.4, "schedule": {"milestones": (2, 5), "factor": 0.1}})
    schedule = steps.learning_rate_schedule(config, steps_per_epoch=10)
    expected = {0: 0.4, 19: 0.4, 20: 0.04, 49: 0.04, 50: 0.004, 1000: 0.004}
    np.testing.assert_allclose([schedule(step) for step in expected], list(expected.values()), rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("reparam", ["arctan", "arctan, fine", "arctan, channel", "weightnorm", "none"])
def test_biases_and_norms_decay_unless_the_config_says_that_they_do_not(reparam, optimizer):
    name, _, learn = reparam.partition(", ")
    moved = {}
    for decays in (True, False):
        settings = {"name": name, "learn": learn or "none"}
        config = {"optimizer": optimizer, "decay_norm_and_bias": decays, "reparam": settings}
        config = training.check_config(config | {"weight_decay": 0.1})
        params = {
            "conv": {"kernel": jnp.full((3, 3, 1, 2), 0.5)},
            "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 0.3)},
            "head": {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.3)},
        }
        if name != "none":
            params = wcjax.reparameterize(params, make_psi(config), learn=settings["learn"])
        tx = steps.make_optimizer(config, steps_per_epoch=1)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        flat = jax.tree_util.tree_leaves_with_path(updates)
        moved[decays] = {jax.tree_util.keystr(path) for path, update in flat if np.any(update)}
        assert all(np.all(np.asarray(update) <= 0) for _, update in flat), "decay is towards zero"
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    norms = {path for path in everything if path.endswith("psi.g")}
    assert moved[True] == {path for path in everything if "psi" not in path} | norms, "a and b never decay"
    assert moved[False] == {path for path in everything if path.endswith((".v", "['kernel']"))}


def test_the_config_decides_decay_rate_and_momentum_of_sgd():
    config = {"learning_rate": 0.2, "momentum": 0.5, "weight_decay": 0.1, "reparam": {"a": 0.7, "b": 0.6}}
    config = training.check_config(config)
    tx = steps.make_optimizer(config, steps_per_epoch=1)
    v, bias, g = np.float64([[0.4, -0.2]]), np.float64([0.3, 0.1]), 0.05
    kernel = wcjax.Reparameterized(jnp.asarray(v, jnp.float32), wcjax.Arctan(0.7, 0.6))
    params = {"kernel": kernel, "bias": jnp.asarray(bias, jnp.float32)}
    grads, state = jax.tree.map(lambda p: jnp.full_like(p, g), params), tx.init(params)
    first, state = tx.update(grads, state, params)
    second, state = tx.update(grads, state, params)
    w, slope = 0.7 * np.arctan(v / 0.6), 0.7 * 0.6 / (0.6**2 + v**2)
    for update, factor in ((first, 1), (second, 1.5)):
        np.testing.assert_allclose(update["kernel"].v, -0.2 * factor * (g + 0.1 * w * slope), rtol=1e-5)
        np.testing.assert_allclose(update["bias"], -0.2 * factor * (g + 0.1 * bias), rtol=1e-5)


@pytest.mark.parametrize("learn", ["fine", "channel"])
def test_the_learned_model_of_the_config_is_companded_and_the_plain_one_is_not(learn):
    config = training.check_config(runs.tiny(reparam__learn=learn, reparam__b=0.7))
    shape = {"fine": (1, 1), "channel": (1, 10)}[learn]
    kernels = {}
    for plain in (False, True):
        model = make_model(config, 10, plain=plain)
        head = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]["head"]
        assert set(head) == {"kernel", "bias"}
        kernels[plain] = head["kernel"]
    assert kernels[True] == jax.ShapeDtypeStruct((8, 10), jnp.float32)
    assert kernels[False] == wcjax.Reparameterized(
        kernels[True], wcjax.Arctan(*[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)
    )


def test_nothing_moves_between_host_and_device_inside_an_epoch(monkeypatch, tmp_path):
    train_epoch, guarded = loop._train_epoch, []

    def read(_):
        raise AssertionError("a number is read back within an epoch")

    def watched(*args):
        guarded.append(True)
        # The guard lets a CPU's memory be read, so what float(), bool() and jax.device_get ask for is replaced as well.
        with jax.transfer_guard("disallow"), mock.patch.object(type(args[2].step), "_value", property(read)):
            return train_epoch(*args)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    training.train(runs.tiny(epochs=2), tmp_path / "run")
    assert len(guarded) == 2


def test_every_step_takes_over_the_buffers_of_the_state_before(monkeypatch, tmp_path):
    compile_all, kept = loop._compile, []

    def watched(*args):
        compiled = compile_all(*args)

        def step(state, *more):
            result = compiled.train(state, *more)
            kept.append([leaf for leaf in jax.tree.leaves(state) if not leaf.is_deleted()])
            return result

        return compiled._replace(train=step)

    monkeypatch.setattr(loop, "_compile", watched)
    training.train(runs.tiny(epochs=2), tmp_path / "run")
    first = [0, STEPS]  # the checkpoint of the state before the first step of an epoch may still be on its way to disk
    assert len(kept) == 2 * STEPS
    assert not any(leaves for step, leaves in enumerate(kept) if step not in first)


def test_training_and_evaluation_are_traced_once_for_the_whole_run(monkeypatch, tmp_path):
    traces = {"train_step": 0, "eval_step": 0}

    def counted(name, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            traces[name] += 1
            return function(*args, **kwargs)

        return wrapper

    for name in traces:
        monkeypatch.setattr(steps, name, counted(name, getattr(steps, name)))
    monkeypatch.setattr(loop, "evaluate_folded", lambda *_, **__: {"test": {"accuracy": 0.0, "loss": 0.0}})
    training.train(runs.tiny(epochs=3), tmp_path / "run")
    assert traces == {"train_step": 1, "eval_step": 1}
