"""Reading the JSON of a run folder."""

import json
import pathlib

from wcjax.errors import InputError
from wcjax.run_folder.schema import PAIRS, RESTORE_HINT, check_schema
from wcjax.system.files import reading

MAX_BYTES = 2**28  # of a file; weights.jsonl of a ResNet50 has 20 MB after 200 epochs


def read_json(path, schema) -> dict:
    """The object in a JSON file. Raises InputError if the file is not JSON, or has another schema."""
    return _parse(_text(path), schema, str(path))


def read_epochs(path, schema) -> list[dict]:
    """The objects in the lines of a file, one for each epoch.

    A last line without a newline was cut off when the process was killed, and is ignored.

    Raises InputError for a line of another schema, and for one whose epoch is not later than that of the line before
    or whose layers differ from it.
    """
    values = []
    for number, line in enumerate(_text(path).split("\n")[:-1], start=1):
        at = f"{path}, line {number}"
        value = _parse(line, schema, at)
        if "pairs" in value:
            check_schema(value, PAIRS, at)
        if values and value["epoch"] <= values[-1]["epoch"]:
            raise InputError(f"{at}: epoch {value['epoch']} follows epoch {values[-1]['epoch']}.{RESTORE_HINT}")
        for key in ("layers", "pairs"):
            if values and value.get(key, {}).keys() != values[-1].get(key, {}).keys():
                raise InputError(f"{at}: the {key} differ from the line before.{RESTORE_HINT}")
        values.append(value)
    return values


def _text(path) -> str:
    """The content of a text file. Raises InputError if it is not a regular file (a pipe never ends) or is too large."""
    path = pathlib.Path(path)
    with reading(path):
        if not path.is_file():
            raise InputError(f"{path} is not a regular file.{RESTORE_HINT}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.{RESTORE_HINT}")
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise InputError(f"{path} is not UTF-8 text ({error}).{RESTORE_HINT}") from error


def _parse(text, schema, at) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{at} is not JSON ({error}).{RESTORE_HINT}") from error
    check_schema(value, schema, at)
    return value
