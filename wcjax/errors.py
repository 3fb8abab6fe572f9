"""The errors that a user can fix. Commands print them without a traceback."""

import difflib
import reprlib


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
