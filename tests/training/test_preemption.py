"""SIGTERM and Ctrl-C: a run saves itself, reports where it was, and resumes to the same bits."""

import contextlib
import re
import signal

import pytest

from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.errors import Preempted
from wcjax.training import loop
from wcjax.training.preemption import signals_noticed

TERM, INT = signal.SIGTERM, signal.SIGINT
ERRORS = {TERM: Preempted, INT: KeyboardInterrupt}


def in_step(step):
    """The signal comes while this step is done."""
    return lambda patch, number: lambda progress: progress.step == step and signal.raise_signal(number)


def in_call(name):
    """The signal comes when the trainer calls the function `name`."""

    def arrange(patch, number):
        function = getattr(loop, name)

        def raise_and_call(*args, **options):
            signal.raise_signal(number)
            return function(*args, **options)

        patch.setattr(loop, name, raise_and_call)

    return arrange


def at_once(patch, number):
    """The signal is there before the first step, as it may be if several processes share a run."""
    patch.setattr(loop, "signals_noticed", lambda: contextlib.nullcontext(lambda: number.name))


MOMENTS = {  # signal, when it comes, the step and the place that are reported, the checkpoints within an epoch
    "in an epoch": (TERM, [in_step(5)], 5, "epoch 1", [5]),
    "in the evaluation on val": (INT, [in_call("evaluate")], STEPS, "epoch 1", [STEPS]),
    "in the evaluation on test": (TERM, [in_call("evaluate_folded")], EPOCHS * STEPS, "after the last epoch", []),
    "in the last step, and again when it resumes": pytest.param(
        INT, [in_step(STEPS), at_once], STEPS, "epoch 1", [STEPS], marks=pytest.mark.long
    ),
}


@pytest.mark.parametrize("number, moments, step, place, saved", MOMENTS.values(), ids=MOMENTS)
def test_a_signal_loses_no_step(tiny_run, tmp_path, monkeypatch, number, moments, step, place, saved):
    run, message = tmp_path / "run", re.escape(f"{number.name} came at step {step} ({place})")
    for arrange in moments:
        with monkeypatch.context() as patch, pytest.raises(ERRORS[number], match=message):
            training.train(runs.tiny(), run, arrange(patch, number))
        assert runs.saved(run, "midway") == saved
    assert runs.resume(runs.tiny(), run) == list(range(step + 1, EPOCHS * STEPS + 1))
    runs.assert_same_run(run, tiny_run[0])


def test_handlers_are_restored_and_a_second_ctrl_c_raises():
    signal.signal(INT, signal.default_int_handler)  # a job in the background of a shell ignores Ctrl-C
    before = [signal.getsignal(number) for number in ERRORS]
    with signals_noticed() as stop:
        assert stop() == ""
        signal.raise_signal(TERM)
        assert stop() == "SIGTERM"
    with pytest.raises(KeyboardInterrupt), signals_noticed() as stop:
        stop()
        signal.raise_signal(INT)
        assert stop() == "SIGINT"
        signal.raise_signal(INT)
    assert [signal.getsignal(number) for number in ERRORS] == before
