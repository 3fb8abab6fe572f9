"""Processes that are killed, stopped, started twice or misled by the clock: nothing that was done is lost."""

import datetime
import functools
import itertools
import os
import re
import signal
import socket
import time

import jax
import pytest

from tests.faults import attempts
from tests.training import runs, worker

pytestmark = pytest.mark.long


def test_a_stopped_run_resumes_at_the_step_it_was_at(unbroken, tmp_path, chance):
    stopped_at = 0

    def stop(attempt, run):
        nonlocal stopped_at
        resumed = re.search(r"Resuming at step (\d+)", attempt.output())
        assert not (resumed and stopped_at) or int(resumed[1]) == stopped_at
        struck = attempts.stop(attempt, run)
        stopped = re.match(r"stopped: SIGTERM came at step (\d+) .*; run the same command to resume", attempt.error())
        stopped_at = int(stopped[1]) if stopped else stopped_at
        return struck

    attempts.strike(tmp_path, chance, unbroken.seconds, stop, unbroken.same)


def test_the_second_of_two_runs_in_one_folder_is_refused(unbroken, tmp_path, chance):
    def start_another(attempt, run):
        if not attempt.wait_for((run / "config.json").exists):
            return False
        other = attempts.train(run)
        code, struck = other.end(), attempt.process.is_alive()
        assert attempt.end() == 0, attempt.output()
        if struck:
            assert code == 1, other.output()
            holder = f"process {attempt.process.pid} on {socket.gethostname()}"
            assert other.error().startswith(f"error: workdir {run} is in use by {holder}. ")
        return struck

    attempts.strike(tmp_path, chance, unbroken.seconds / 2, start_another, unbroken.same)


def turn_back_the_clock():
    """Every look at the time of day gives an hour less than the one before."""
    began, hours = time.time(), itertools.count(1)

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: began - 3600 * next(hours)
    time.time_ns = lambda: int(1e9 * time.time())
    datetime.datetime = Datetime


WITHIN_EPOCHS = "--config.checkpoint_every=2"


@pytest.mark.parametrize(
    "kind, fault, flag, changes",
    [
        ("unbroken", attempts.kill, WITHIN_EPOCHS, ()),
        ("streamed", attempts.kill, WITHIN_EPOCHS, ()),
        ("unbroken", attempts.stop, WITHIN_EPOCHS, (turn_back_the_clock,)),
        ("unbroken", attempts.stop, "--config.checkpoint_seconds=1000", ()),
    ],
    ids=["killed", "killed, streamed", "stopped while the clock goes backwards", "stopped between checkpoints"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(request, tmp_path, chance, kind, fault, flag, changes):
    expected = request.getfixturevalue(kind)
    flags = (*expected.flags, flag)
    attempts.strike(tmp_path, chance, expected.seconds, fault, expected.same, *flags, changes=changes)


def test_a_killed_worker_of_the_loader_ends_the_run(streamed, tmp_path, chance):
    def kill_worker(attempt, run):
        if not attempt.wait_for(lambda: len(attempt.workers()) >= 1):
            return False
        attempt.process.join(chance.random.uniform(0, streamed.seconds))
        for loader in attempt.workers()[:1]:
            os.kill(loader.pid, signal.SIGKILL)
        return attempt.failed_with("a process that decodes images was killed")

    flags = (*streamed.flags, "--config.data_workers=2")
    attempts.strike(tmp_path, chance, 0, kill_worker, streamed.same, *flags)


def shorten_heartbeat():
    """A silent process counts as dead after 30 seconds instead of 100."""
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=30)


def start_two(run):
    flags = [f"--{name}={value}" for name, value in worker.addresses(2)[0].items()]
    return [attempts.train(run, *flags, f"--process_id={i}", changes=(shorten_heartbeat,)) for i in range(2)]


def end(two) -> list[int]:
    return [process.end() for process in two]


@pytest.fixture(scope="module")
def unbroken_two(unbroken, tmp_path_factory):
    """(run folder, seconds) of a run of two processes."""
    run = tmp_path_factory.mktemp("two") / "run"
    two = start_two(run)
    assert two[0].wait_for_training()
    began = time.monotonic()
    assert end(two) == [0, 0], two[0].output() + two[1].output()
    runs.assert_same_history(run, unbroken.run)
    return run, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_end_together(unbroken_two, tmp_path, chance, number):
    expected, seconds = unbroken_two
    struck, finished = 0, 0
    while struck < chance.times:
        run = tmp_path / str(finished)
        two, victim, moment = start_two(run), chance.random.randrange(2), chance.random.uniform(0, seconds)
        print(f"fault {struck} of {run.name}, at {moment:.3f} s, to process {victim}")
        assert two[0].wait_for_training(), two[0].output()
        two[victim].process.join(moment)
        struck += two[victim].send(number)
        codes = end(two)  # which fails if the other one hangs
        killed = number == signal.SIGKILL and codes[victim] == -signal.SIGKILL
        assert killed or codes in ([0, 0], [75, 75]), two[0].output() + two[1].output()
        if struck == chance.times and not (run / "summary.json").exists():
            two = start_two(run)
            assert end(two) == [0, 0], two[0].output() + two[1].output()
        if (run / "summary.json").exists():
            runs.assert_same_run(run, expected)
            finished += 1
