"""Command lines: how they report an error that the user can fix, and the console scripts."""

import functools
import importlib
import pathlib
import sys

from wcjax.errors import InputError, LoaderError, SaveError, cause
from wcjax.system.streams import open_closed_streams, use_ascii_forms


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
        open_closed_streams()
        use_ascii_forms()
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


def _main_of(module: str):
    """The main of a module, which is imported when it runs, so that a missing extra is an error of one line."""

    @command
    def run(argv=None):
        return importlib.import_module(module).main(argv)

    return run


train = _main_of("wcjax.training.__main__")
evaluate = _main_of("wcjax.training.evaluate")
sweep = _main_of("wcjax.sweep.__main__")
report = _main_of("wcjax.analysis.report")
robustness = _main_of("wcjax.analysis.robustness")
compare = _main_of("wcjax.analysis.compare")
data_check = _main_of("wcjax.data.check")
