"""Schedulers send SIGTERM before they kill a process. After SIGTERM or Ctrl-C a run saves its state and exits.

A handler that raises would not be reliable. Python drops an exception that is raised in a callback of the garbage
collector, and JAX has such a callback; an `except Exception` in a library may also swallow it. So neither of the two
kinds of handlers here raises. Until a run takes its first step there is nothing to save, and the process exits at once
(`exit_on_signal`). From then on the signal is noted, and the loop asks for it after each step (`stop_signals`).
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from wcjax.errors import Preempted
from wcjax.training.start import EXIT_INTERRUPTED, EXIT_PREEMPTED

EXIT_CODES = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: EXIT_INTERRUPTED}


def exit_on_signal() -> None:
    """Makes SIGTERM and Ctrl-C end this process at once.

    Python runs signal handlers only between bytecodes, and a call into XLA may take minutes, so a thread waits for the
    signals as well.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in EXIT_CODES:
        signal.signal(number, _exit)
    os.register_at_fork(after_in_child=_restore_default_handlers)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _exit(number: int, frame=None) -> NoReturn:
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {name}; run the same command to resume.\n".encode())
    os._exit(EXIT_CODES[number])


def _restore_default_handlers() -> None:
    """Undoes `exit_on_signal` in a forked process, which must not wake the thread of its parent."""
    signal.set_wakeup_fd(-1)
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_DFL)


# `_watch` runs later than the handlers. A Ctrl-C that `StopSignals` has noted restores `_exit`, so without this set
# `_watch` would take the same Ctrl-C for a second one and exit.
_noted_once = set()


def _watch(reader: int) -> None:
    while number := os.read(reader, 1)[0]:
        if number in _noted_once:
            _noted_once.discard(number)
        elif signal.getsignal(number) is _exit:
            _exit(number)


class StopSignals:
    """SIGTERM and Ctrl-C in a process that does not share its run. Until `arm` is called they are handled as before."""

    def __init__(self):
        self._pending, self._handlers = "", {}

    def arm(self) -> None:
        """From now on the signals are only noted. A second Ctrl-C is handled as it was before."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
            return
        for number in EXIT_CODES:
            self._handlers[number] = signal.getsignal(number)
            if number == signal.SIGINT:
                _noted_once.add(number)
            signal.signal(number, self._note)

    def pending(self) -> str:
        """The signal that asks the process to stop, 'SIGTERM' or 'SIGINT', or ''."""
        return self._pending

    def disarm(self) -> None:
        """From now on the signals are handled as they were before `arm`."""
        _noted_once.difference_update(self._handlers)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self._pending = self._pending or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._handlers[number])


class SharedStopSignals:
    """SIGTERM in a run that several processes share. It may reach one of them or all.

    All processes get the same answer after the same step, on which JAX agrees in the background. They must call
    `pending` the same number of times. No call blocks on a device.
    """

    def __init__(self):
        self._calls = itertools.count(1)  # each call needs its own number

    def arm(self) -> None:
        """Does nothing: `jax.distributed.initialize` has intercepted SIGTERM."""

    def pending(self) -> str:
        """'SIGTERM' if the processes are to stop, or ''."""
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(next(self._calls)) else ""


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals | SharedStopSignals]:
    """Yields the signals that ask this process to stop.

    Call `arm` as soon as there is something to save, and then `pending` before the first step and after each step.
    """
    if jax.process_count() > 1:
        yield SharedStopSignals()
        return
    signals = StopSignals()
    try:
        yield signals
    finally:
        signals.disarm()


class StopRequested(Exception):
    """The signal `name` asks the run to stop. The trainer saves the run, then raises `interruption`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def interruption(name: str, place: str) -> BaseException:
    """The exception for a run that has saved itself after the signal `name`, at `place`."""
    return (KeyboardInterrupt if name == "SIGINT" else Preempted)(f"{name} came at {place}")
