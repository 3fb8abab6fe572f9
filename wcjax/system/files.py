"""Reading and writing files.

A file that cannot be read raises InputError, a file that cannot be written SaveError. Both messages are one line.
"""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import uuid

from wcjax.errors import InputError, SaveError, cause

PERMISSION_HINT = "Change its permissions (chmod, chown), or give another path."


@contextlib.contextmanager
def saving(path, errors=OSError):
    """Turns `errors`, which a full, read-only or failing file system raises in the block, into a SaveError."""
    try:
        yield
    except errors as error:
        raise SaveError(
            f"{path} cannot be written ({cause(error)}). Earlier files are intact. Fix the cause and run the same "
            "command again."
        ) from error


@contextlib.contextmanager
def reading(path=None, hint="Check the path, or give another one."):
    """Turns an OSError in the block into an InputError.

    Args:
      path: the file that the message names. None: the file that the OSError names.
      hint: the sentence that ends the message, unless a permission is missing.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError):
            hint = PERMISSION_HINT
        raise InputError(
            f"{path or error.filename}: cannot be read ({error.strerror or cause(error)}). {hint}"
        ) from error


@contextlib.contextmanager
def atomic_write(path):
    """Opens a new binary file. If the block ends without an error, one rename replaces the file `path` with it.

    A reader sees either the old file or the complete new one. The new file is `.NAME.<8 hexadecimal digits>.partial`,
    in the same folder, and is locked while it is written. If a file of such a name is not locked, the process that
    wrote it was killed, and the file is removed.
    """
    path = pathlib.Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        # NFS locks only files that are open for writing.
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the name that the caller knows
        raise


def write_text(path, text: str) -> None:
    """Replaces the file `path` by one with this text. Raises SaveError."""
    with saving(path), atomic_write(path) as file:
        file.write(text.encode())


def write_json(path, value) -> None:
    """Replaces the file `path` by one with this value as JSON. Raises SaveError."""
    write_text(path, json.dumps(value, indent=2) + "\n")
