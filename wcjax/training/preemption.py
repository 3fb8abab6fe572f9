"""SIGTERM, by which schedulers announce that they will kill, and Ctrl-C: a run saves itself, then the process ends.

A handler that raises is not enough. Python drops an exception that is raised within a callback of the garbage
collector, and JAX has such a callback. An `except Exception` in a library may also swallow it. So there are two kinds
of handlers, and neither raises. Until a run takes its first step there is nothing to save, and the process exits at
once (`leave_at_once`). From then on the signal is noted, and the loop asks for it after each step (`signals_noticed`).
"""

import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from wcjax.errors import Preempted
from wcjax.training.start import INTERRUPTED, START_AGAIN

EXIT_CODES = {signal.SIGTERM: START_AGAIN, signal.SIGINT: INTERRUPTED}


def leave_at_once() -> None:
    """Makes SIGTERM and Ctrl-C end this process at once.

    Python runs signal handlers only between bytecodes, and a call into XLA may take minutes, so a thread waits for the
    signals as well.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in EXIT_CODES:
        signal.signal(number, _leave)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _leave(number, frame=None):
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {name}; run the same command to resume.\n".encode())
    os._exit(EXIT_CODES[number])


def _forget():
    """Undoes `leave_at_once` in a forked process, which must not wake the thread of its parent."""
    signal.set_wakeup_fd(-1)
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_DFL)


_noted_once = set()  # signals that are only noted the next time, although their handler may be `_leave` again by then


def _watch(reader):
    while number := os.read(reader, 1)[0]:
        if number in _noted_once:
            _noted_once.discard(number)
        elif signal.getsignal(number) is _leave:
            _leave(number)


@contextlib.contextmanager
def signals_noticed():
    """Yields a function that returns the signal that asks the process to stop, 'SIGTERM' or 'SIGINT', or ''.

    From the first call of that function on, these signals are only noted. A second Ctrl-C is handled as it was before.
    Call the function before the first step and after each step.

    If several processes share a run, SIGTERM may reach one of them or all. Each gets the same answer after the same
    step, on which JAX agrees in the background. All processes must call the function the same number of times. No call
    blocks on a device.
    """
    if jax.process_count() > 1:
        # jax.distributed.initialize intercepts SIGTERM. Each call needs its own number.
        calls = itertools.count(1)
        yield lambda: "SIGTERM" if multihost_utils.reached_preemption_sync_point(next(calls)) else ""
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield lambda: ""
        return
    names, handlers = [], {}

    def notice(number, frame):
        names.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])

    def stop() -> str:
        for number in EXIT_CODES:
            if number not in handlers:
                handlers[number] = signal.getsignal(number)
                if number == signal.SIGINT:
                    _noted_once.add(number)
                signal.signal(number, notice)
        return names[0] if names else ""

    try:
        yield stop
    finally:
        _noted_once.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """The signal `name` asks the run to stop. The trainer saves the run, then raises `interruption`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def interruption(name: str, place: str) -> BaseException:
    """The exception for a run that has saved itself after the signal `name`, at `place`."""
    return (KeyboardInterrupt if name == "SIGINT" else Preempted)(f"{name} came at {place}")
