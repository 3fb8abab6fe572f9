"""The errors that a user can mend; train.py prints them without a traceback."""

import difflib
import reprlib


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was found, what is allowed and what to do."""


class InitialWeightsError(InputError):
    """The initial weights do not fit under the bound of Ψ: no run with this config and seed can start."""


class DivergedError(RuntimeError):
    """The loss is no longer a number. The message says at which step and learning rate; the last checkpoint is good."""


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
