"""A run that was stopped, however roughly, resumes to the same bits as one that was not."""

import json
import shutil
import types
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.errors import InputError
from wcjax.run_folder import read_lines


def lose_lines(run):
    """Leaves surplus and torn lines, as after a kill between a line and its checkpoint."""
    for name, torn in (("metrics.jsonl", '{"epoch": 9, "val_acc'), ("weights.jsonl", '{"epoch": 9, "lay')):
        surplus = read_lines(run, name)[-1] | {"epoch": 8}
        with (run / name).open("a") as file:
            file.write(json.dumps(surplus) + "\n" + torn)


def cut_each(*checkpoints):
    return lambda run: [runs.cut(run / checkpoint) for checkpoint in checkpoints]


class Case(NamedTuple):
    kind: str  # of run
    stopped_after: int  # step
    resumes_with: int  # step
    checkpoint_every: int = 0
    damage: Callable = lambda run: None


CASES = {
    "right after an epoch": Case("tiny", 2 * STEPS + 1, 2 * STEPS + 1, damage=lose_lines),
    "with checkpoints within an older epoch alone": Case("tiny", 3 * STEPS + 1, 3 * STEPS + 1, checkpoint_every=3),
    "streamed images": Case("streamed", 9, 9, checkpoint_every=2),
}
RARE = {
    # One within an epoch may name a best epoch whose weights are lost.
    "epoch before it damaged": Case("tiny", 2 * STEPS + 6, STEPS + 1, 3, cut_each("checkpoints/2")),
    "in the first epoch": Case("tiny", 5, 1),
    "Adam with learned a and b": Case("adam", STEPS + 1, STEPS + 1),
    "all within an epoch damaged": Case("tiny", 2 * STEPS + 6, 2 * STEPS + 1, 3, cut_each("midway/27", "midway/24")),
}
CASES |= {name: pytest.param(case, marks=pytest.mark.long) for name, case in RARE.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stopped_run_resumes_to_the_same_bits(request, tmp_path, case):
    expected, config = request.getfixturevalue(f"{case.kind}_run")
    config, run = config | {"checkpoint_every": case.checkpoint_every}, tmp_path / "run"
    runs.stop(config, run, case.stopped_after)
    assert not (run / "summary.json").exists()
    case.damage(run)
    assert runs.resume(config, run) == list(range(case.resumes_with, runs.metrics(expected)[-1]["step"] + 1))
    runs.assert_same_run(run, expected)
    assert runs.saved(run) == runs.saved(expected), "no more checkpoints than in one go"


@pytest.mark.parametrize("best_is_lost", [False, True])
def test_a_run_resumes_after_an_epoch_without_a_checkpoint(tmp_path, monkeypatch, caplog, best_is_lost):
    accuracies, run, expected = [0.5, 0.9, 0.8, 0.7], tmp_path / "run", tmp_path / "expected"
    runs.pretend(monkeypatch, accuracies)
    training.train(runs.tiny(), expected)
    config = runs.tiny(checkpoint_seconds=1000, checkpoint_every=3 * STEPS + 3)
    runs.pretend(monkeypatch, accuracies)
    runs.stop(config, run, 3 * STEPS + 6)
    assert runs.saved(run) == [2], "the best one, with the steps of the fourth epoch"
    if best_is_lost:
        shutil.rmtree(run / "checkpoints" / "2")
    runs.pretend(monkeypatch, accuracies if best_is_lost else accuracies[3:])
    first_step = 1 if best_is_lost else 3 * STEPS + 4
    assert runs.resume(config, run) == list(range(first_step, EPOCHS * STEPS + 1))
    runs.assert_same_run(run, expected)
    assert runs.saved(run) == [2, 4]
    assert ("cannot be used, because the best epoch, 2, is lost" in caplog.text) == best_is_lost


def test_checkpoints_are_as_far_apart_as_asked_for(tmp_path, monkeypatch):
    seconds = 0

    def on_epoch(metrics):  # is called after the checkpoint of the epoch
        nonlocal seconds
        seconds += 20

    monkeypatch.setattr("wcjax.training.run_checkpoints.time", types.SimpleNamespace(monotonic=lambda: seconds))
    runs.pretend(monkeypatch, [0.5, 0.6, 0.7, 0.9, 0.8, 0.6, 0.5])
    # The clock shows 40 after the third epoch and 80 after the fifth. The fourth is the best, the seventh the last.
    training.train(runs.tiny(epochs=7, checkpoint_seconds=30, keep_checkpoints=9), tmp_path / "run", on_epoch=on_epoch)
    assert runs.saved(tmp_path / "run") == [3, 4, 5, 7]
    assert runs.summary(tmp_path / "run")["best_epoch"] == 4


@pytest.mark.parametrize("kind, every, stop", [("checkpoints", 0, 2 * STEPS + 1), ("midway", 3, 7)])
def test_checkpoints_are_kept_if_none_can_be_read(tmp_path, kind, every, stop):
    config, run = runs.tiny(checkpoint_every=every), tmp_path / "run"
    runs.stop(config, run, stop)
    for state in (run / kind).glob("*/state"):
        shutil.rmtree(state)
    before = runs.files(run)
    for _ in range(2):
        with pytest.raises(InputError, match=f"none of the checkpoints in .*{kind} can be read"):
            training.train(config, run)
    assert {path: text for path, text in runs.files(run).items() if path in before} == before


def test_lines_missing_from_a_copy_are_named(tiny_run, tmp_path, caplog):
    run = runs.unfinished_copy(tiny_run[0], tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    training.train(runs.tiny(), run)
    assert "metrics.jsonl has no lines of the finished epochs [2, 3" in caplog.text


def test_a_lost_best_checkpoint_is_named(tmp_path, monkeypatch):
    runs.pretend(monkeypatch, [0.5, 0.9, 0.8, 0.7])
    runs.stop(runs.tiny(), tmp_path / "run", 3 * STEPS + 1)
    runs.cut(tmp_path / "run" / "checkpoints" / "2")
    with pytest.raises(InputError, match="the checkpoint of epoch 2 .* It is the best one"):
        training.train(runs.tiny(), tmp_path / "run")
