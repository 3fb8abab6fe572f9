"""Processes that are killed, stopped, started twice, misled or left alone: nothing that was done is lost."""

import datetime
import functools
import itertools
import os
import re
import signal
import socket
import time

import jax
import jax.numpy as jnp
import pytest

from tests.faults import attempts
from tests.training import runs
from wcjax.training import loop

STEPS = 719 // 64  # in an epoch


def test_a_run_killed_at_any_moment_ends_in_the_same_bits(unbroken, tmp_path, chance):
    attempts.strike(tmp_path, chance, unbroken.seconds, attempts.kill, unbroken.same)


def test_a_run_stopped_by_sigterm_goes_on_from_the_step_it_was_at(unbroken, tmp_path, chance):
    stopped_at = 0

    def stop(attempt, run):
        nonlocal stopped_at
        went_on_at = re.search(r"Going on after (?:step (\d+)|epoch (\d+))", attempt.said())
        if went_on_at and stopped_at:
            assert int(went_on_at[1] or 0) + STEPS * int(went_on_at[2] or 0) == stopped_at
        struck = attempts.stop(attempt, run)
        found = re.match(r"stopped: SIGTERM came at step (\d+)", attempt.error())
        stopped_at = int(found[1]) if found else stopped_at
        return struck

    attempts.strike(tmp_path, chance, unbroken.seconds, stop, unbroken.same)


def test_the_second_of_two_runs_in_one_folder_refuses_and_the_first_goes_on(unbroken, tmp_path, chance):
    def start_another(attempt, run):
        if not attempt.wait_for((run / "config.json").exists):
            return False
        other = attempts.Attempt(run)
        code, struck = other.end(), attempt.process.is_alive()
        assert attempt.end() == 0, attempt.said()
        if struck:
            assert code == 1, other.said()
            assert other.error() == (
                f"error: workdir {run} is in use by process {attempt.process.pid} on {socket.gethostname()}. "
                "Wait for its end, or give another folder."
            )
        return struck

    attempts.strike(tmp_path, chance, unbroken.seconds / 2, start_another, unbroken.same, "--config.epochs=6")


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


def test_a_clock_that_goes_backwards_changes_nothing(unbroken, tmp_path, chance):
    changes = (turn_back_the_clock,)
    attempts.strike(tmp_path, chance, unbroken.seconds, attempts.stop, unbroken.same, changes=changes)


def spoil_a_gradient(step):
    """Makes one element of the gradient of a step nan: so is then that weight. The loss of the step is finite."""
    compile_steps = loop._compile

    def compile_and_spoil(*args):
        compiled = compile_steps(*args)

        def train(state, *rest):
            is_it = int(state.step) == step
            state, totals, loss = compiled.train(state, *rest)
            if is_it:
                leaves, tree = jax.tree.flatten(state.params)
                leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
                state = state._replace(params=jax.tree.unflatten(tree, leaves))
            return state, totals, loss

        return compiled._replace(train=train)

    loop._compile = compile_and_spoil


def test_nan_in_a_gradient_is_found_before_anything_is_saved(unbroken, tmp_path, chance):
    for i in range(chance.times):
        # The first is the worst: no loss comes after the last step of an epoch.
        step = chance.random.randrange(6 * STEPS) if i else 2 * STEPS - 1
        run = tmp_path / str(i)
        print(f"nan at step {step}")
        every = "--config.checkpoint_every=4"
        attempt = attempts.Attempt(run, every, changes=(functools.partial(spoil_a_gradient, step),))
        assert attempt.end() == 1, attempt.said()
        found = re.match(r"diverged: the .* step (\d+) \(epoch (\d+)\)", attempt.error())
        assert step <= int(found[1]) <= step + 4 and int(found[2]) == step // STEPS + 1
        assert len(runs.metrics(run)) == step // STEPS
        attempts.finish(run, every)
        unbroken.same(run)


@pytest.mark.long
def test_a_killed_worker_of_the_loader_ends_the_run_within_half_a_minute(streamed, tmp_path, chance):
    def kill_worker(attempt, run):
        if not attempt.wait_for(lambda: len(attempt.workers()) >= 1):
            return False
        time.sleep(chance.random.uniform(0, streamed.seconds))
        for worker in attempt.workers()[:1]:
            os.kill(worker.pid, signal.SIGKILL)
        if attempt.end(seconds=30) == 0:
            return False  # all had been read
        assert attempt.process.exitcode == 1, attempt.said()
        assert attempt.error().startswith("error: a process that decodes images was killed")
        return True

    flags = (*streamed.flags, "--config.data_workers=2")
    attempts.strike(tmp_path, chance, 0, kill_worker, streamed.same, *flags)


HEARTBEAT = 15  # seconds without which a process counts as dead; 100 where nobody says so


def shorten_heartbeat():
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=HEARTBEAT)


def start_two(run):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = (f"--coordinator_address={address}", "--num_processes=2")
    return [attempts.Attempt(run, *flags, f"--process_id={i}", changes=(shorten_heartbeat,)) for i in range(2)]


@pytest.fixture(scope="module")
def unbroken_two(unbroken, tmp_path_factory):
    """(run folder, seconds) of a run of two processes."""
    run = tmp_path_factory.mktemp("two") / "run"
    two = start_two(run)
    assert two[0].wait_for_training()
    began = time.monotonic()
    assert [process.end() for process in two] == [0, 0], two[0].said() + two[1].said()
    runs.assert_same_course(run, unbroken.run)
    return run, time.monotonic() - began


def strike_one_of_two(two, victim, number) -> bool:
    """Sends the signal to one of two processes and waits until both have ended; whether it struck."""
    struck = two[victim].send(number)
    began = time.monotonic()
    codes = [process.end() for process in two]
    assert time.monotonic() - began < 6 * HEARTBEAT, "the other hangs"
    allowed = [[0, 0], [75, 75]] if number == signal.SIGTERM else [[0, 0]]
    if number == signal.SIGKILL and codes[victim] == -signal.SIGKILL:
        return struck
    assert codes in allowed, two[0].said() + two[1].said()
    return struck


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_end_together_when_one_is_killed_or_stopped(unbroken_two, tmp_path, chance, number):
    expected, seconds = unbroken_two
    struck, finished = 0, 0
    while struck < chance.times:
        run = tmp_path / str(finished)
        two, victim, moment = start_two(run), chance.random.randrange(2), chance.random.uniform(0, seconds)
        print(f"fault {struck} of {run.name}, at {moment:.3f} s, to process {victim}")
        assert two[0].wait_for_training(), two[0].said()
        two[victim].process.join(moment)
        struck += strike_one_of_two(two, victim, number)
        if struck == chance.times and not (run / "summary.json").exists():
            two = start_two(run)
            assert [process.end() for process in two] == [0, 0], two[0].said() + two[1].said()
        if (run / "summary.json").exists():
            runs.assert_same_run(run, expected)
            finished += 1
