"""The errors that a user can mend; train.py prints them without a traceback."""

import difflib


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was found, what is allowed and what to do."""


class InitialWeightsError(InputError):
    """The initial weights do not fit under the bound of Ψ: no run with this config and seed can start."""


class DivergedError(RuntimeError):
    """The loss is no longer a number. The message says at which step and learning rate; the last checkpoint is good."""


def unknown(what: str, found, known) -> InputError:
    """The error for a name that does not exist: names the nearest and lists the known ones."""
    known = list(known)
    close = difflib.get_close_matches(str(found).lower(), known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {what} {found!r}.{hint} Known: {', '.join(known)}.")
