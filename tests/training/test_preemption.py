"""SIGTERM and Ctrl-C: a run saves itself, reports where it was, and resumes to the same bits."""

import re
import signal

import pytest

from tests.training import runs
from tests.training.runs import EPOCHS, STEPS
from wcjax import training
from wcjax.errors import Preempted
from wcjax.training import loop
from wcjax.training.preemption import stop_signals

TERM, INT = signal.SIGTERM, signal.SIGINT
ERRORS = {TERM: Preempted, INT: KeyboardInterrupt}


@pytest.mark.parametrize(
    "number, moment, step, place, saved",  # moment: the step or the function of loop.py in which the signal comes
    [
        (TERM, 5, 5, "epoch 1", [5]),
        (INT, "evaluate", STEPS, "epoch 1", [STEPS]),
        (TERM, "evaluate_folded", EPOCHS * STEPS, "after the last epoch", []),
    ],
)
def test_a_signal_loses_no_step(tiny_run, tmp_path, monkeypatch, number, moment, step, place, saved):
    run, message = tmp_path / "run", re.escape(f"{number.name} came at step {step} ({place})")
    with monkeypatch.context() as patch, pytest.raises(ERRORS[number], match=message):
        if isinstance(moment, str):
            function = getattr(loop, moment)
            patch.setattr(loop, moment, lambda *args, **kw: (signal.raise_signal(number), function(*args, **kw))[1])
        training.train(runs.tiny(), run, lambda progress: progress.step == moment and signal.raise_signal(number))
    assert runs.saved(run, "midway") == saved
    assert runs.resume(runs.tiny(), run) == list(range(step + 1, EPOCHS * STEPS + 1))
    runs.assert_same_run(run, tiny_run[0])


def test_handlers_are_restored_and_a_second_ctrl_c_raises():
    signal.signal(INT, signal.default_int_handler)  # a job in the background of a shell ignores Ctrl-C
    before = [signal.getsignal(number) for number in ERRORS]
    with stop_signals() as signals:
        signals.arm()
        assert signals.pending() == ""
        signal.raise_signal(TERM)
        assert signals.pending() == "SIGTERM"
    with pytest.raises(KeyboardInterrupt), stop_signals() as signals:
        signals.arm()
        signal.raise_signal(INT)
        assert signals.pending() == "SIGINT"
        signal.raise_signal(INT)
    assert [signal.getsignal(number) for number in ERRORS] == before
