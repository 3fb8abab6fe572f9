"""What every test here claims: a call works or raises one of our errors, and it ends."""

import contextlib
import pathlib
import signal
import traceback

import wcjax
from wcjax.errors import InputError

PACKAGE = str(pathlib.Path(wcjax.__file__).parent)
SECONDS = 120  # of this process's CPU time, which others on the machine do not use up; the slowest example takes a few


class Hangs(BaseException):
    """It took SECONDS."""


@contextlib.contextmanager
def only_our_errors():
    """Suppresses errors that are ours: InputError, and a plain ValueError raised in a file of wcjax.

    All others go through, and so do a ValueError from deeper inside and a failing assertion.
    """

    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not isinstance(error, InputError) and not (type(error) is ValueError and raised_in.startswith(PACKAGE)):
            raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def mutated(draw, content: bytes, st) -> bytes:
    """content with some bytes changed, removed, repeated or inserted, or without its end."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((1, 1, 2, 4, 16, 200)))
        how = draw(st.sampled_from(("change", "cut", "repeat", "insert", "end")))
        if how == "change":
            content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif how == "cut":
            del content[at : at + length]
        elif how == "repeat":
            content[at:at] = content[at : at + length] * draw(st.sampled_from((1, 2, 100)))
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=length))
        else:
            del content[at:]
    return bytes(content)
