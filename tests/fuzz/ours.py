"""What every test here claims: a call works, or raises one of our errors, and it ends."""

import contextlib
import pathlib
import signal
import traceback

import wcjax
from wcjax.errors import InputError

PACKAGE = str(pathlib.Path(wcjax.__file__).parent)
SECONDS = 120  # many times what the slowest example takes, also on a busy machine


class Hangs(BaseException):
    """It took SECONDS."""


@contextlib.contextmanager
def only_our_errors():
    """Passes over errors that are ours; all others, and failing assertions, go through.

    Ours are InputError, and a plain ValueError that was raised in a file of wcjax, which its docstrings announce; one
    from deeper inside is not.
    """

    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not isinstance(error, InputError) and not (type(error) is ValueError and raised_in.startswith(PACKAGE)):
            raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(draw, content: bytes, st) -> bytes:
    """content with some bytes changed, cut out, repeated or put in, or cut off at the end."""
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
