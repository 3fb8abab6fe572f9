"""SIGTERM, by which schedulers announce that they will kill: a run saves what it has done and can be started again."""

import contextlib
import itertools
import signal
import threading

import jax

from wcjax.errors import Preempted

START_AGAIN = 75  # exit code, EX_TEMPFAIL of sysexits.h: the same command goes on


def stop_at_once(signum, frame):
    """A handler of SIGTERM where there is nothing to save."""
    signal.signal(signum, signal.SIG_IGN)  # what it interrupts shall end in peace
    raise Preempted("SIGTERM came")


@contextlib.contextmanager
def sigterm_noticed():
    """Holds SIGTERM back. Yields a function that says whether to stop here, to be called after each step.

    Of many processes that share a run it may reach one or all: all get the same answer after the same step, which they
    find out about in the background. They must call the function equally often. No call waits for the devices.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # JAX holds SIGTERM back from jax.distributed.initialize on. It takes the number of a call that none has made.
        calls = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield received.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
