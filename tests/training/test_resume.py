"""A run that was stopped, however roughly, goes on to the same bits as one that was not."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.training import runs
from wcjax import training
from wcjax.errors import DivergedError, InputError, InUseError, Preempted
from wcjax.run_folder import read_lines
from wcjax.run_folder.checkpoints import Checkpoints
from wcjax.run_folder.lock import alone_in
from wcjax.training import loop
from wcjax.training.preemption import signals_noticed

STEPS = 718 // 64  # in an epoch of runs.tiny()


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_at(monkeypatch, epoch, before_save):
    """Makes the next run end when it is about to save the checkpoint of epoch, or when it has just begun to."""
    save = Checkpoints.save

    def stopping(self, number, *args):
        if number == epoch and before_save:
            raise Stopped
        save(self, number, *args)
        if number == epoch:
            raise Stopped

    monkeypatch.setattr(Checkpoints, "save", stopping)


def train_until_stopped(monkeypatch, config, run, epoch, *, before_save):
    with monkeypatch.context() as patch:
        stop_at(patch, epoch, before_save)
        with pytest.raises(Stopped):
            training.train(config, run)
    assert not (run / "summary.json").exists()


def unfinished_copy(run, destination):
    """A copy of a finished run as it was right after its last epoch."""
    shutil.copytree(run, destination)
    (destination / "summary.json").unlink()
    shutil.rmtree(destination / "folded")
    return destination


@pytest.fixture
def untrained(monkeypatch):
    """Makes a run fail that trains an epoch."""
    monkeypatch.setattr(loop, "_train_epoch", lambda *args: pytest.fail("it trained"))


def wait_for_lines(process, path, count):
    """Returns once path has this many lines and says how long an epoch takes (s)."""
    for _ in range(60_000):
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        if len(lines) >= count:
            return json.loads(lines[-1])["seconds"]
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    raise TimeoutError


def test_a_run_killed_within_an_epoch_ends_in_the_same_bits_as_one_that_was_not(finished, tmp_path):
    run = tmp_path / "run"
    flags = ["--config", "configs/digits.py", "--workdir", str(run), f"--config.epochs={runs.EPOCHS}"]

    def start(log):
        output = (tmp_path / log).open("w")
        return subprocess.Popen([sys.executable, "train.py", *flags], cwd=runs.ROOT, stdout=output, stderr=output)

    process = start("killed")
    seconds_per_epoch = wait_for_lines(process, run / "metrics.jsonl", 1)
    time.sleep(0.5 * seconds_per_epoch)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len((run / "metrics.jsonl").read_text().splitlines()) < runs.EPOCHS
    assert not (run / "summary.json").exists()

    process = start("resumed")
    assert process.wait() == 0
    log = (tmp_path / "resumed").read_text()
    assert json.loads(log[log.index("\n{") :]) == json.loads((run / "summary.json").read_text())
    runs.assert_same_run(run, finished[0])


@pytest.fixture(scope="module")
def adam_run(tmp_path_factory):
    """(config, folder) of a finished run with Adam and learned a and b."""
    config = runs.adam(reparam__learn="fine")
    folder = tmp_path_factory.mktemp("adam") / "run"
    training.train(config, folder)
    return config, folder


@pytest.mark.parametrize("before_save", [True, False])
def test_adam_with_learned_a_and_b_goes_on_to_the_same_bits(adam_run, tmp_path, monkeypatch, before_save):
    config, expected = adam_run
    train_until_stopped(monkeypatch, config, tmp_path / "run", 2, before_save=before_save)
    training.train(config, tmp_path / "run")
    runs.assert_same_run(tmp_path / "run", expected)


def test_a_run_stopped_in_its_first_epoch_starts_over(tiny_run, tmp_path, monkeypatch):
    train_until_stopped(monkeypatch, runs.tiny(), tmp_path / "run", 1, before_save=True)
    assert len(runs.metrics(tmp_path / "run")) == 1, "the line is written before the checkpoint"
    training.train(runs.tiny(), tmp_path / "run")
    runs.assert_same_run(tmp_path / "run", tiny_run[0])


def test_sigterm_during_the_evaluation_on_test_stops_the_run(tiny_run, tmp_path, monkeypatch, untrained):
    run, evaluate_folded = unfinished_copy(tiny_run[0], tmp_path / "run"), loop.evaluate_folded

    def evaluate_and_signal(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate_folded(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_folded", evaluate_and_signal)
        with pytest.raises(Preempted, match=rf"SIGTERM came at step {runs.EPOCHS * STEPS} \(after the last epoch\)"):
            training.train(runs.tiny(), run)
    training.train(runs.tiny(), run)
    runs.assert_same_run(run, tiny_run[0])


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_a_run_evaluates_loses_no_step(tiny_run, tmp_path, monkeypatch, number, error):
    evaluate, run = loop.evaluate, tmp_path / "run"

    def evaluate_and_signal(*args):
        signal.raise_signal(number)
        return evaluate(*args)

    for _ in range(2):  # the second session has nothing to train before it
        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", evaluate_and_signal)
            with pytest.raises(error, match=rf"{number.name} came at step {STEPS} \(epoch 1\)"):
                training.train(runs.tiny(), run)
        assert [path.name for path in (run / "midway").iterdir()] == [str(STEPS)]
        assert runs.metrics(run) == []
    training.train(runs.tiny(), run)
    runs.assert_same_run(run, tiny_run[0])


def test_handlers_of_signals_are_left_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals_noticed() as stop:
        assert stop() == ""
        signal.raise_signal(signal.SIGTERM)
        assert stop() == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_ctrl_c_is_noted_once_and_raises_when_it_comes_again():
    with pytest.raises(KeyboardInterrupt), signals_noticed() as stop:
        stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() == "SIGINT"
        signal.raise_signal(signal.SIGINT)


def test_a_folder_is_locked_by_one_run_at_a_time_and_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(Stopped), alone_in(tmp_path):
            with pytest.raises(InUseError, match=rf"workdir {tmp_path} is in use by process {os.getpid()} on "):
                alone_in(tmp_path).__enter__()
            raise Stopped


def test_where_the_file_system_has_no_locks_the_run_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(tmp_path):
        assert "cannot be locked ([Errno 37] No locks available): see to it that no second run" in caplog.text


def test_torn_and_surplus_lines_of_the_metrics_and_weights_are_removed(tiny_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train_until_stopped(monkeypatch, runs.tiny(), run, 2, before_save=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 33, "val_accuracy": 0.9}\n{"epoch": 4, "step": 44, "val_acc')
    surplus = read_lines(run, "weights.jsonl")[-1] | {"epoch": 3}
    with (run / "weights.jsonl").open("a") as file:
        file.write(json.dumps(surplus) + '\n{"epoch": 4, "lay')
    training.train(runs.tiny(), run)
    runs.assert_same_run(run, tiny_run[0])


def test_what_is_left_to_do_after_the_last_epoch_needs_no_training(tiny_run, tmp_path, untrained):
    run = unfinished_copy(tiny_run[0], tmp_path / "run")
    assert runs.timeless(training.train(runs.tiny(), run)) == runs.timeless(tiny_run[1])
    runs.assert_same_run(run, tiny_run[0])


def test_with_a_damaged_newest_checkpoint_the_run_says_so_and_ends_in_the_same_bits(tiny_run, tmp_path, caplog):
    run = unfinished_copy(tiny_run[0], tmp_path / "run")
    files = [path for path in (run / "checkpoints" / str(runs.EPOCHS) / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with caplog.at_level("INFO", logger="wcjax"):
        training.train(runs.tiny(), run)
    *_, warning, going_on = (r.getMessage() for r in caplog.records if r.name.startswith("wcjax."))
    assert warning.startswith(f"the checkpoint of epoch {runs.EPOCHS} cannot be read: ")
    assert warning.endswith(" Falling back to the one before.")
    assert going_on == f"Going on after epoch {runs.EPOCHS - 1}."
    runs.assert_same_run(run, tiny_run[0])


def test_where_every_checkpoint_is_damaged_the_run_stops_and_stays_as_it_is(tiny_run, tmp_path):
    run = unfinished_copy(tiny_run[0], tmp_path / "run")
    for state in (run / "checkpoints").glob("*/state"):
        shutil.rmtree(state)
    kept, lines = runs.epochs_kept(run), (run / "metrics.jsonl").read_text()
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of the checkpoints in .* can be read\. Start in a new workdir\."):
            training.train(runs.tiny(), run)
    assert runs.epochs_kept(run) == kept
    assert (run / "metrics.jsonl").read_text() == lines


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    config = runs.tiny(schedule__milestones=(2,), schedule__factor=1e30)
    for _ in range(2):  # the second time it goes on after epoch 2 and meets the same end
        with pytest.raises(DivergedError) as error:
            training.train(config, run)
        message = str(error.value)
        step = int(re.search(r"became nan or inf at step (\d+) \(epoch 3\), learning rate 1e\+29\.", message)[1])
        assert 2 * STEPS < step < 3 * STEPS
        assert "The checkpoint of epoch 2 is kept. Try a lower learning_rate, in a new workdir." in message
        assert runs.epochs_kept(run) == [1, 2]
        assert [line["epoch"] for line in runs.metrics(run)] == [1, 2]
        left = {"config.json", "data.json", "metrics.jsonl", "weights.jsonl", "tensorboard"}
        left |= {"checkpoints", "midway", ".lock"}
        assert {path.name for path in run.iterdir()} == left


def test_a_validation_loss_that_is_no_number_in_the_first_epoch_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": float("nan"), "accuracy": 0.1})
    message = rf"at step {STEPS - 1} \(epoch 1\), learning rate 0\.1\. There is no checkpoint yet\. Try a lower"
    with pytest.raises(DivergedError, match=message):
        training.train(runs.tiny(), tmp_path / "run")
    assert runs.epochs_kept(tmp_path / "run") == []
    assert runs.metrics(tmp_path / "run") == []
