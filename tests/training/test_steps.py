"""What a step takes over and leaves on the device: its buffers, its numbers and its program."""

import contextlib
import math
from unittest import mock

import jax
import numpy as np
import pytest
import scipy.special

from tests.training import runs
from tests.training.runs import STEPS
from wcjax import training
from wcjax.training import display
from wcjax.training.steps import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_smooth_labels(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), labels] += 1 - smoothing
    expected = -np.sum(targets * scipy.special.log_softmax(logits, axis=1)) / 6
    np.testing.assert_allclose(cross_entropy(np.float32(logits), labels, smoothing), expected, rtol=1e-6)


def test_a_step_reuses_the_buffers_of_the_old_state(tmp_path):
    leaves = []

    def on_step(progress):
        # The checkpoint of the state before the first step of an epoch may still be on its way to the disk.
        if progress.step % STEPS != 1:
            assert all(leaf.is_deleted() for leaf in leaves), progress.step
        leaves[:] = jax.tree.leaves((progress.state, progress.totals))

    training.train(runs.tiny(epochs=2), tmp_path / "run", on_step)


def test_no_number_moves_to_the_host_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "PROGRESS_SECONDS", math.inf)  # reads what is there already
    monkeypatch.setattr(display, "LINE_SECONDS", math.inf)

    def refuse(array):
        raise AssertionError("a number is read back within an epoch")

    guards = contextlib.ExitStack()

    def on_step(progress):
        if progress.step % STEPS == 1:
            guards.enter_context(jax.transfer_guard("disallow"))
            # The guard lets float() and bool() read the memory of a CPU.
            guards.enter_context(mock.patch.object(type(progress.state.step), "_value", property(refuse)))
        elif progress.step % STEPS == 0:
            guards.close()

    with guards:
        training.train(runs.tiny(epochs=2), tmp_path / "run", on_step)


@pytest.mark.parametrize("kind", ["tiny", "streamed"])
def test_nothing_is_compiled_after_the_first_epoch(request, tmp_path, caplog, kind):
    _, config = request.getfixturevalue(f"{kind}_run")
    logged = {}

    def on_step(progress):
        logged[progress.epoch] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]

    with jax.log_compiles():
        training.train(config | {"epochs": 3}, tmp_path / "run", on_step)
    assert logged[0]
    assert logged[2] == logged[1], "only what describes an epoch is compiled when the first one has ended"
