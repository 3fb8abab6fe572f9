"""A run whose numbers are no longer finite ends before it saves them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import runs
from tests.training.runs import STEPS
from wcjax import training
from wcjax.errors import DivergedError, InitialWeightsError
from wcjax.models import layers
from wcjax.run_folder.checkpoints import load_tree


@pytest.mark.parametrize("seconds, saved", [(0, [1, 2]), (1000, [2])])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, seconds, saved):
    schedule = {"milestones": (2,), "factor": 1e30}
    run, config = tmp_path / "run", runs.tiny(schedule=schedule, checkpoint_seconds=seconds)
    for _ in range(2):  # the second time it resumes after epoch 2
        with pytest.raises(DivergedError, match=r"The checkpoint of epoch 2 is kept\. Try a lower l") as error:
            training.train(config, run)
        step = re.search(r"nan or inf at step (\d+) \(epoch 3\), learning rate 1e\+29\.", str(error.value))[1]
        assert 2 * STEPS + 1 < int(step) <= 3 * STEPS
        assert runs.saved(run) == saved
        assert [line["epoch"] for line in runs.metrics(run)] == [1, 2]
        assert not (run / "summary.json").exists()


AT_ITS_END = pytest.param(0, 2 * STEPS, marks=pytest.mark.long)


@pytest.mark.parametrize("every, bad_step", [(4, STEPS + 5), AT_ITS_END], ids=["within an epoch", "at its end"])
def test_weights_that_are_not_finite_are_not_saved(tiny_run, tmp_path, every, bad_step):
    run, config = tmp_path / "run", runs.tiny(checkpoint_every=every)

    def spoil(progress):  # as a gradient would that is not finite: the loss of this step is still finite
        if progress.step == bad_step:
            leaves, tree = jax.tree.flatten(progress.state.params)
            leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
            progress.state = progress.state._replace(params=jax.tree.unflatten(tree, leaves))

    with pytest.raises(DivergedError, match=rf"weights or moments .* step {bad_step} \(epoch 2\)"):
        training.train(config, run, spoil)
    assert len(runs.metrics(run)) == 1
    for state in (states := [*run.glob("checkpoints/*/state"), *run.glob("midway/*/state")]):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(load_tree(state)) if x.dtype == np.float32), state
    assert states
    training.train(config, run)
    runs.assert_same_run(run, tiny_run[0])


def test_a_loss_on_val_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("wcjax.training.loop.evaluate", lambda *_: {"loss": float("nan"), "accuracy": 0.1})
    place = rf"at step {STEPS} \(epoch 1\), learning rate 0\.1"
    message = rf"the loss on val is nan or inf {place}\. There is no checkpoint yet\. Try a lower"
    with pytest.raises(DivergedError, match=message):
        training.train(runs.tiny(), tmp_path / "run")
    assert runs.saved(tmp_path / "run") == runs.metrics(tmp_path / "run") == []


@pytest.mark.parametrize(
    "name, message",
    [("none", "the initial weights of the network tiny hold nan"), ("arctan", "head/kernel: .* holds nan")],
)
def test_initial_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(layers.KERNEL_INITS, "kaiming", jax.nn.initializers.constant(jnp.nan))
    with pytest.raises(InitialWeightsError, match=message):
        training.train(runs.tiny(reparam__name=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()
