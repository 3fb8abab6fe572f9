"""Runs on streamed images: killed and resumed within an epoch, evaluated on every image once, broken files named."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import pictures
from tests.training import runs
from wcjax import data, training
from wcjax.data import augment, imagenet
from wcjax.data.streaming import decode
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import Checkpoints
from wcjax.training import loop
from wcjax.training import step as steps

STEPS = 42 // 8  # in an epoch


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.class_folders(tmp_path_factory.mktemp("pictures") / "set")


def streamed(folder, **changes):
    """A run of a second on 42 training and 15 val images; the last batch of each round over val is one short."""
    settings = {"dataset": "imagenet", "data_dir": str(folder), "image_size": 16, "batch_size": 8, "epochs": 3}
    return runs.tiny(**{**settings, "schedule": {"milestones": (2,), "factor": 0.5}, **changes})


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    """(folder, summary) of a finished run."""
    run = tmp_path_factory.mktemp("streamed") / "run"
    return run, training.train(streamed(folder), run)


def test_accuracies_are_those_of_every_val_image_counted_once(folder, unbroken):
    run, summary = unbroken
    val = data.load("imagenet", folder).val
    images = np.stack([decode.eval_image(*val[i][:2], 16) for i in range(val.num_images)])
    labels = np.array([val[i].label for i in range(val.num_images)])
    model, variables = training.load_folded(run)
    logits = model.apply(variables, augment.normalize(jnp.asarray(images), imagenet.MEAN, imagenet.STD), train=False)
    logits = np.float64(logits)
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(15), labels]
    assert summary["test_accuracy"] == np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(summary["test_loss"], losses.mean(), rtol=1e-4, atol=1e-6)
    assert summary["best_val_accuracy"] == summary["test_accuracy"], "val is the official split, and so is test"
    found = training.evaluate_folded(run)
    assert found["val"] == found["test"] == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}


def test_training_learns_the_classes(unbroken):
    first, *_, last = runs.metrics(unbroken[0])
    assert last["train_loss"] < first["train_loss"]
    assert unbroken[1]["best_val_accuracy"] > 0.5


@pytest.mark.long
def test_the_number_of_workers_changes_no_bit_and_the_folder_may_be_gone_on_with(folder, unbroken, tmp_path):
    run = tmp_path / "run"
    training.train(streamed(folder, data_workers=1), run)
    runs.assert_same_run(run, unbroken[0])
    training.train(streamed(folder, data_workers=2), run)


def stop_midway(monkeypatch, config, run, step):
    """Runs until the checkpoint of a step within an epoch is written."""
    save = Checkpoints.save

    def stopping(self, number, *args):
        save(self, number, *args)
        if self._unit == "step" and number == step:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopping)
        with pytest.raises(Stopped):
            training.train(config, run)
    assert not (run / "summary.json").exists()


def steps_trained(monkeypatch):
    """A list that gets the first and the last step of each part of an epoch that is trained."""
    train_epoch, found = loop._train_epoch, []

    def watched(config, compiled, state, totals, first_step, last_step, *rest):
        found.append((first_step, last_step))
        return train_epoch(config, compiled, state, totals, first_step, last_step, *rest)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    return found


@pytest.mark.parametrize("step", [2, 8])
def test_a_streamed_run_stopped_within_an_epoch_goes_on_from_there_to_the_same_bits(
    folder, unbroken, tmp_path, monkeypatch, step
):
    config, run = streamed(folder, checkpoint_every=2), tmp_path / "run"
    stop_midway(monkeypatch, config, run, step)
    trained = steps_trained(monkeypatch)
    training.train(config, run)
    assert trained[0] == (step, -(-step // STEPS) * STEPS)
    runs.assert_same_run(run, unbroken[0])
    assert {path.name for path in run.iterdir()} == {path.name for path in unbroken[0].iterdir()}


def test_so_does_a_run_on_the_device(tiny_run, tmp_path, monkeypatch):
    config, run = runs.tiny(checkpoint_every=3), tmp_path / "run"
    stop_midway(monkeypatch, config, run, 15)
    trained = steps_trained(monkeypatch)
    training.train(config, run)
    assert trained[0] == (15, 22)
    runs.assert_same_run(run, tiny_run[0])


@pytest.mark.long
def test_a_streamed_run_killed_in_a_process_of_its_own_ends_in_the_same_bits(folder, unbroken, tmp_path):
    run, config = tmp_path / "run", streamed(folder, checkpoint_every=1, data_workers=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "start.py").write_text(
        "import json, sys\n"
        "from tests.training import runs\n"
        "from wcjax import models, training\n"
        "models._NETWORKS['tiny'], models.NAMES = runs.TINY, ('tiny',)\n"
        "if __name__ == '__main__':\n"
        "    training.train(json.load(open(sys.argv[1])), sys.argv[2])\n"
    )
    command = [sys.executable, str(tmp_path / "start.py"), str(tmp_path / "config.json"), str(run)]
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=runs.ROOT
    )
    # Step 7 is in the second epoch.
    while not (run / "midway" / "7").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # ends when the last process that could write has ended: the workers too
    assert not (run / "summary.json").exists()
    training.train(config, run)
    runs.assert_same_run(run, unbroken[0])


def test_damaged_checkpoints_within_an_epoch_cost_only_the_steps_since_the_one_before(
    folder, unbroken, tmp_path, monkeypatch, caplog
):
    config, run = streamed(folder, checkpoint_every=1), tmp_path / "run"
    stop_midway(monkeypatch, config, run, 8)
    assert sorted(path.name for path in (run / "midway").iterdir()) == ["7", "8"]
    for name in ("7", "8"):
        files = [path for path in (run / "midway" / name / "state").rglob("*") if path.is_file()]
        max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    trained = steps_trained(monkeypatch)
    training.train(config, run)
    assert trained[0] == (STEPS, 2 * STEPS)
    assert "the checkpoint of step 8 cannot be read: " in caplog.text
    runs.assert_same_run(run, unbroken[0])


def test_one_within_an_epoch_is_not_used_without_the_checkpoint_of_the_epoch_before(
    folder, unbroken, tmp_path, monkeypatch
):
    """Its record may name a best epoch whose weights are lost."""
    config, run = streamed(folder, checkpoint_every=2), tmp_path / "run"
    stop_midway(monkeypatch, config, run, 12)
    (run / "checkpoints" / "2" / "state" / "manifest.ocdbt").write_bytes(b"")
    trained = steps_trained(monkeypatch)
    training.train(config, run)
    assert trained == [(STEPS, 2 * STEPS), (2 * STEPS, 3 * STEPS)]
    runs.assert_same_run(run, unbroken[0])


@pictures.needs_sample
def test_a_run_on_tiny_imagenet_learns_something(tmp_path):
    config = streamed(pictures.SAMPLE, dataset="tiny_imagenet", image_size=32, batch_size=20, epochs=2)
    summary = training.train(config, tmp_path / "run")
    dataset = data.load("tiny_imagenet", pictures.SAMPLE)
    counted = summary["test_accuracy"] * dataset.val.num_images
    assert abs(counted - round(counted)) < 1e-9, "a share of all val images"
    assert summary["test_accuracy"] > 1.5 / dataset.num_classes


def test_a_broken_image_ends_the_run_with_its_name(tmp_path):
    root = pictures.class_folders(tmp_path / "set", num_train=4)
    broken = root / "val" / "n00000002" / "val_3.JPEG"
    broken.write_bytes(b"\xff\xd8 no more")
    with pytest.raises(InputError, match=re.escape(f"{broken}: not an image that can be decoded")):
        training.train(streamed(root), tmp_path / "run")


def test_a_broken_image_found_by_a_worker_leaves_no_shared_memory(tmp_path):
    root = pictures.class_folders(tmp_path / "set", num_train=12)
    (root / "train" / "n00000001" / "train_11.JPEG").write_bytes(b"")
    code = (
        "import sys\nfrom wcjax import training\nfrom wcjax.errors import InputError\n"
        "from wcjax.training import config, feed, mesh\n"
        f"asked = {{'dataset': 'imagenet', 'data_dir': {str(root)!r}, 'image_size': 64, 'batch_size': 4}}\n"
        "asked = training.check_config(asked | {'data_workers': 1})\n"
        "try:\n    with feed.training(config.load_dataset(asked).train, asked, 0, mesh.make_mesh(asked)) as batches:\n"
        "        sys.exit(f'an endless number of batches: {len(list(batches))}')\n"
        "except InputError as error:\n    sys.exit(f'error: {error}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = ended.stderr.splitlines()  # and none of Python about leaked shared_memory objects
    assert re.match(r"error: .*/train_11\.JPEG: not an image that can be decoded \(it is empty\)", line)


def test_settings_of_streams_are_checked(folder, tmp_path):
    for change, message in (
        ({"image_size": 0}, "config.image_size must be between 1 and 4096, found 0."),
        ({"data_workers": -1}, "config.data_workers must be between 0 and 1024, found -1."),
        ({"checkpoint_every": -1}, "config.checkpoint_every must be between 0 and 2147483647, found -1."),
        ({"batch_size": 43}, "config.batch_size is 43, but imagenet has 42 training images."),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            training.train(streamed(folder, **change), tmp_path / "run")


def test_a_streamed_step_is_traced_once(folder, tmp_path, monkeypatch):
    traces = []
    for name in ("train_step_on_batch", "eval_step_on_batch"):
        step = getattr(steps, name)
        monkeypatch.setattr(
            steps, name, lambda *args, step=step, name=name, **kw: traces.append(name) or step(*args, **kw)
        )
    monkeypatch.setattr(loop, "evaluate_folded", lambda *_, **__: {"test": {"accuracy": 0.0, "loss": 0.0}})
    training.train(streamed(folder), tmp_path / "run")
    assert sorted(traces) == ["eval_step_on_batch", "train_step_on_batch"]
