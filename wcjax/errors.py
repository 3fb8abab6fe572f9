"""The one error of wcjax that a user can mend: bad configuration, data or run folder."""


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was found, what is allowed and what to do."""
