"""A config file and --config.key=value on a command line, with the same checks and errors of one line everywhere."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from wcjax.errors import InputError
from wcjax.training.config import check_keys

CONFIG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)  # what config_flags may raise


def check_overrides(argv: Sequence[str]) -> None:
    """Raises InputError for a --config.key in argv that no config has, with the nearest."""
    check_keys(key for argument in argv if (key := overridden(argument)))


def overridden(argument: str) -> str | None:
    """The key that an argument like --config.reparam.a=0.5 sets, or None."""
    found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
    return found and found[1]


def read_config_file(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of FILE.py or FILE.py:argument with overrides like '--config.epochs=5' in their type.

    Raises InputError where the file cannot be read or an override does not fit.
    """
    values = flags.FlagValues()
    argv = ["wcjax", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        check_overrides(overrides)
        values(argv)
        values.config.lock()
    except CONFIG_ERRORS as error:
        raise InputError(str(reason(error))) from error
    return values.config


def reason(error: Exception):
    """What went wrong, without the tracebacks that config_flags puts around it."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    if raised := [e for e in chain if isinstance(e, InputError)]:
        return raised[-1]
    return str(error).splitlines()[-1].strip() if isinstance(error, OSError) else error
