"""The standard streams of a process if one is closed, is read by nobody, or cannot show a character."""

import codecs
import contextlib
import os
import sys


def open_closed_streams() -> None:
    """Opens /dev/null for each of the standard streams that is closed.

    Libraries write to them without a check, and the next file that is opened would get the number of a closed one.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


ASCII_FORMS = {"Ψ": "Psi", "α": "alpha", "λ": "lambda", "√": "sqrt", "±": "+-", "×": "x", "·": "*", "−": "-"}
ASCII_FORMS |= {"′": "'", "…": "...", "⁻": "^-", "¹": "1", "⁴": "^4", "≥": ">="}


def use_ascii_forms() -> None:
    """Makes a stream that cannot show Ψ show Psi, and an escape for any other character that it cannot show."""

    def ascii_form(error):
        if not isinstance(error, UnicodeEncodeError):
            raise error
        characters = error.object[error.start : error.end]
        return "".join(ASCII_FORMS.get(x, ascii(x)[1:-1]) for x in characters), error.end

    codecs.register_error("wcjax ascii", ascii_form)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the streams of a notebook lack it
            stream.reconfigure(errors="wcjax ascii")


def discard(stream) -> None:
    """Sends the rest of a stream to /dev/null, because Python would try once more to write it and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Output:
    """A stream, or nothing as soon as it cannot be written any more: a terminal was closed, a disk is full.

    Attributes:
      is_live: whether the stream is a terminal on which lines can be redrawn.
    """

    def __init__(self, stream):
        """stream: None if it is closed."""
        self._stream, self.is_live = stream, stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            print(text, end="", file=self._stream, flush=True)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError):  # it is not a file
                    discard(self._stream)
            self._stream, self.is_live = None, False
