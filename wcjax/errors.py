"""The errors that a user can fix. Commands print them without a traceback."""

import codecs
import difflib
import functools
import pathlib
import reprlib
import sys


class InputError(ValueError):
    """An input cannot be used. The message names it, its value, the values that are allowed, and what to do."""


class InitialWeightsError(InputError):
    """The initial weights do not fit under the bound of Ψ, so no run with this config and seed can start."""


class InUseError(InputError):
    """Another process is training in this run folder."""


class DivergedError(RuntimeError):
    """The loss or a weight became nan or inf. The message gives the step and the learning rate.

    The last checkpoint is intact.
    """


class LoaderError(RuntimeError):
    """A process that decodes images has died. Earlier checkpoints are intact."""


class SaveError(RuntimeError):
    """A file or a checkpoint could not be written. The message says which and why. Earlier ones are intact."""


class Preempted(Exception):
    """SIGTERM arrived, and the run has been saved. This is not an error, because the same command resumes the run."""


def unknown(kind: str, name, known) -> InputError:
    """The error for a name that does not exist. It suggests the nearest of the known names and lists them all."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, 1) if isinstance(name, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {kind} {short_repr(name)}.{hint} Known: {', '.join(known)}.")


def short_repr(value) -> str:
    """repr(value), abbreviated if it is long or deep, because the value may be a whole file."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxdict = 8


def cause(error: Exception) -> str:
    """The first line of the message of an error, without the settings that TensorStore adds."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0] or type(error).__name__


def user_message(error: Exception) -> str | None:
    """The line to print instead of a traceback if the user can fix the error, None for any other error."""
    if isinstance(error, InputError | LoaderError | SaveError):
        return str(error)
    if isinstance(error, OSError):
        return cause(error)
    return None


def command(main):
    """Decorates main(argv) -> exit code or None: an error that the user can fix becomes one line and exit code 2."""

    @functools.wraps(main)
    def wrapper(argv=None) -> int:
        use_plain_letters()
        try:
            return main(argv) or 0
        except Exception as error:
            if (line := user_message(error)) is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2

    return wrapper


def program(module: str) -> str:
    """The command that a user types to run this program: wcjax-NAME, train.py or `python -m module`."""
    name = pathlib.Path(sys.argv[0]).name
    return name if name.startswith("wcjax-") or name == "train.py" else f"python -m {module}"


PLAIN_LETTERS = {"Ψ": "Psi", "α": "alpha", "λ": "lambda", "√": "sqrt", "±": "+-", "×": "x", "·": "*", "−": "-"}
PLAIN_LETTERS |= {"′": "'", "…": "...", "⁻": "^-", "¹": "1", "⁴": "^4", "≥": ">="}


def use_plain_letters() -> None:
    """Makes a terminal or log that cannot show Ψ show Psi, and an escape for any other letter that it cannot show."""

    def plain(error):
        if not isinstance(error, UnicodeEncodeError):
            raise error
        letters = error.object[error.start : error.end]
        return "".join(PLAIN_LETTERS.get(x, ascii(x)[1:-1]) for x in letters), error.end

    codecs.register_error("plain letters", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the streams of a notebook lack it
            stream.reconfigure(errors="plain letters")
