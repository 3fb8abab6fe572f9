"""The errors that a user can mend; train.py prints them without a traceback."""

import contextlib
import difflib
import reprlib


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
    """SIGTERM came, and what was done is saved: an end, but no error. The same command goes on."""


def unknown(what: str, found, known) -> InputError:
    """The error for a name that does not exist: names the nearest and lists the known ones."""
    known = list(known)
    close = difflib.get_close_matches(found.lower(), known, 1) if isinstance(found, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {what} {shown(found)}.{hint} Known: {', '.join(known)}.")


@contextlib.contextmanager
def permitted(path):
    """Around code that reads path: PermissionError becomes an InputError that names the file."""
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"{error.filename or path}: permission denied. Allow the user who runs this to read it (chmod, chown), or "
            "give another place."
        ) from error


def shown(value) -> str:
    """repr(value), cut where it is long or deep: what was found may be a whole file."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxdict = 8


def cause(error: Exception) -> str:
    """What an error says, in one line and without the settings that TensorStore adds."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0] or type(error).__name__


@contextlib.contextmanager
def saving(path):
    """Around what writes to path: whatever a full, read-only or failing file system makes of it is a SaveError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the latter two
        raise SaveError(
            f"{path} cannot be written ({cause(error)}). What was saved before is whole: mend this, and the same "
            "command goes on from there."
        ) from error
