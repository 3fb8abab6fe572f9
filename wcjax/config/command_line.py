"""Config files, and --config.key=value on a command line. Every mistake is an InputError of one line."""

import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from wcjax.config.keys import check_keys, default_config, flat_config
from wcjax.errors import InputError, cause

PACKAGE = pathlib.Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # else: a checkout
ALLOWED = {  # for the type of a default; None is the default of dropout
    bool: "true or false",
    int: "an integer like 3",
    float: "a number like 0.1",
    tuple: "a tuple like (80,120)",
    type(None): "a number like 0.1, or None",
}
EXPECTED = "A config file defines get_config(), which returns wcjax.config.default_config() with changes."


def override_key(argument: str) -> str | None:
    """The key that an argument like --config.reparam.a=0.5 sets, or None."""
    match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
    return match and match[1]


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other arguments, overrides) of a command line. `--config.key value` becomes `--config.key=value`."""
    rest, overrides, arguments = [], [], iter(argv)
    for argument in arguments:
        if (key := override_key(argument)) is None:
            rest.append(argument)
        elif "=" in argument or isinstance(_default(key), bool) or (value := next(arguments, None)) is None:
            overrides.append(argument)
        else:
            overrides.append(f"{argument}={value}")
    return rest, overrides


def read_config_file(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of FILE.py or FILE.py:argument with overrides like '--config.epochs=5', each in the type of its key.

    If there is no such file, NAME and configs/NAME.py are the config NAME that comes with wcjax.

    Raises InputError if the file cannot be read, is not a config file, or an override does not fit.
    """
    config = _load(file)
    check_keys(key for override in overrides if (key := override_key(override)))
    overrides = _set_none(config, overrides)
    values = flags.FlagValues()
    argv = ["wcjax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        for override in overrides:
            key = override_key(override)
            if key and str(error).startswith(f"flag --{override.lstrip('-')}: "):
                text = override.partition("=")[2]
                raise InputError(f"config.{key} must be {ALLOWED[type(_default(key))]}, found {text!r}.") from error
        raise InputError(str(error)) from error
    return config


def _set_none(config: ConfigDict, overrides: Sequence[str]) -> Sequence[str]:
    """Sets each key to None whose last override is None, and returns the other overrides.

    ml_collections does not take None for a number.
    """
    for key in {key for override in overrides if (key := override_key(override)) and _default(key) is None}:
        *_, last = (override for override in overrides if override_key(override) == key)
        overrides = [override for override in overrides if override_key(override) != key]
        if last.partition("=")[2] == "None":
            config[key] = None
        else:
            overrides.append(last)
    return overrides


def _default(key: str):
    """The default value of a key like 'reparam.a'; '' for an unknown key."""
    return flat_config(default_config()).get(key, "")


def _load(file: str) -> ConfigDict:
    """The result of get_config in FILE.py or FILE.py:argument."""
    path, *argument = file.split(":", 1)
    if not os.path.isfile(path):
        path = _shipped().get(path.removeprefix("configs/").removesuffix(".py"), path)
    line = None
    try:
        with open(path, "rb"):  # runpy would also take a folder
            names = runpy.run_path(path, run_name="config")
        if "get_config" not in names:
            raise InputError(f"{path} has no get_config(). {EXPECTED}")
        line = getattr(getattr(names["get_config"], "__code__", None), "co_firstlineno", None)
        config = names["get_config"](*argument)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(_explain(error, path, line)) from error
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        kind = "None" if config is None else f"a {type(config).__name__}"
        raise InputError(f"{_location(path, line)}: get_config() returned {kind}. {EXPECTED}")
    return config.lock()


def _explain(error: BaseException, path: str, line: int | None) -> str:
    """What is wrong with a config file that raised an error. line: of get_config, for errors without a line."""
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines = [error.lineno]
    if isinstance(error, OSError) and not lines:  # the file itself
        return f"[Errno {error.errno}] {error.strerror}: {path!r}. wcjax comes with {', '.join(_shipped())}."
    return f"{_location(path, lines[-1] if lines else line)}: {type(error).__name__}: {cause(error)}. {EXPECTED}"


def _shipped() -> dict[str, str]:
    """{name: path} of the config files that come with wcjax."""
    return {path.stem: str(path) for path in sorted(CONFIGS.glob("*.py"))}


def _location(path, line) -> str:
    return f"{path}, line {line}" if line else path
