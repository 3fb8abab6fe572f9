"""The errors that a user can mend; train.py prints them without a traceback."""

import codecs
import difflib
import functools
import reprlib
import sys


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was found, what is allowed and what to do."""


class InitialWeightsError(InputError):
    """The initial weights do not fit under the bound of Ψ: no run with this config and seed can start."""


class InUseError(InputError):
    """Another run is at work in this run folder."""


class DivergedError(RuntimeError):
    """Loss or weights are no longer numbers. The message says at which step and learning rate; the last checkpoint is
    good.
    """


class LoaderError(RuntimeError):
    """A process that decodes images is gone. What was saved before is whole."""


class SaveError(RuntimeError):
    """A file or a checkpoint could not be written. The message says which and why; those saved before are whole."""


class Preempted(Exception):
    """SIGTERM came, and the run has been saved. This is not an error: the same command resumes the run."""


def unknown(what: str, found, known) -> InputError:
    """The error for a name that does not exist: names the nearest and lists the known ones."""
    known = list(known)
    close = difflib.get_close_matches(found.lower(), known, 1) if isinstance(found, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {what} {shown(found)}.{hint} Known: {', '.join(known)}.")


def shown(value) -> str:
    """repr(value), cut where it is long or deep: what was found may be a whole file."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxdict = 8


def cause(error: Exception) -> str:
    """What an error says, in one line and without the settings that TensorStore adds."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0] or type(error).__name__


def told(error: Exception) -> str | None:
    """The line to print instead of a traceback if the user can fix the error, None for any other error."""
    if isinstance(error, InputError | LoaderError | SaveError):
        return str(error)
    if isinstance(error, OSError):
        return cause(error)
    return None


def command(main):
    """Decorates main(argv) -> exit code or None: an error that the user can fix becomes one line and exit code 2."""

    @functools.wraps(main)
    def told_main(argv=None) -> int:
        use_plain_letters()
        try:
            return main(argv) or 0
        except Exception as error:
            if (line := told(error)) is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2

    return told_main


PLAIN_LETTERS = {"Ψ": "Psi", "α": "alpha", "λ": "lambda", "√": "sqrt", "±": "+-", "×": "x", "·": "*", "−": "-"}
PLAIN_LETTERS |= {"′": "'", "…": "...", "⁻": "^-", "¹": "1", "⁴": "^4", "≥": ">="}


def use_plain_letters() -> None:
    """Makes a terminal or log that cannot show Ψ show Psi; anything else that it cannot show becomes an escape."""

    def plain(error):
        if not isinstance(error, UnicodeEncodeError):
            raise error
        letters = error.object[error.start : error.end]
        return "".join(PLAIN_LETTERS.get(x, ascii(x)[1:-1]) for x in letters), error.end

    codecs.register_error("plain letters", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not the streams of a notebook
            stream.reconfigure(errors="plain letters")
