"""Paths that a command line names, which are checked before any work, and reading and writing files.

What cannot be read is an InputError and what cannot be written a SaveError, both of one line.
"""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import re
import uuid

from wcjax.errors import InputError, SaveError, cause


def local_path(path, name: str) -> pathlib.Path:
    """path with `~` as the home directory. name: what the path is called in errors, like '--out'.

    Raises InputError for an empty path, an address like gs://bucket/run, and the home directory of an unknown user.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{name} is empty: give a path.")
    if address := re.match(r"[A-Za-z][\w+.-]+:/", text):  # pathlib makes gs:/ of gs://
        raise InputError(
            f"{name} {text}: {address[0]}/ is not a local path, and runs are kept in local folders. Mount the "
            "bucket or server (gs:// with gcsfuse), and give the path where it is mounted."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} {text}: {error} Give the whole path.") from error


def run_path(path, name: str) -> pathlib.Path:
    """The `folder_path` of a folder that can hold runs. Raises InputError also for [, ], *, ? and backslashes in it."""
    whole = local_path(path, name).absolute()
    # Orbax collects the parts of a checkpoint with a glob over its path. It finds none, and writes an empty checkpoint.
    if odd := [x for x in "[]*?\\" if x in str(whole)]:
        raise InputError(f"{name} {whole}: the path of a checkpoint cannot contain {' '.join(odd)}. Give another path.")
    return folder_path(path, name)


def folder_path(path, name: str) -> pathlib.Path:
    """The `local_path` of a folder that exists, or that can be made.

    Raises InputError also for a path that is too long or cannot be looked at, and for a file or a dangling link in it.
    """
    path = local_path(path, name)
    with reading(f"{name} {path}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)
    there = _lowest_existing(path.absolute())
    if there.is_symlink() and not there.exists():
        raise InputError(
            f"{name} {path}: {there} is a link to {os.readlink(there)}, which does not exist. Make that folder, or "
            "remove the link."
        )
    if not there.is_dir():
        raise InputError(f"{name} {path}: {there} is a file; give a folder.")
    return path


def check_writable(path, name: str) -> None:
    """Raises InputError if this process may not write in the folder `path`, or may not make it."""
    there = _lowest_existing(pathlib.Path(path).absolute())
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{name} {path}: no permission to write in {there}. Change its permissions, or give another folder."
        )


def _lowest_existing(path: pathlib.Path) -> pathlib.Path:
    return next(x for x in (path, *path.parents) if os.path.lexists(x))


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


@contextlib.contextmanager
def saving(path):
    """Around what writes to path: whatever a full, read-only or failing file system makes of it is a SaveError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the latter two
        raise SaveError(
            f"{path} cannot be written ({cause(error)}). Earlier files are intact. Fix the cause and run the same "
            "command to resume."
        ) from error


@contextlib.contextmanager
def reading(path):
    """Around code that looks at path or reads it: an OSError becomes an InputError that names path."""
    try:
        yield
    except OSError as error:
        why = error.strerror or cause(error)
        what = "permissions" if isinstance(error, PermissionError) else "path"
        raise InputError(f"{path} cannot be read ({why}). Check its {what}, or give another one.") from error


def check_readable(folder) -> None:
    """Raises InputError for a file or folder below `folder` that this process has no permission to read.

    Orbax and TensorStore report such a file as missing or damaged.
    """
    parts = [(folder, os.R_OK | os.X_OK)]
    for at, below, files in os.walk(folder):
        parts += [(os.path.join(at, name), os.R_OK | os.X_OK) for name in below]
        parts += [(os.path.join(at, name), os.R_OK) for name in files]
    for path, mode in parts:
        if not os.access(path, mode) and os.path.exists(path):  # it may have been deleted meanwhile
            raise InputError(f"{path} cannot be read: permission denied. Change its permissions.")


@contextlib.contextmanager
def replacing(path):
    """Opens a new binary file, which replaces the file `path` by one rename if the block ends without an error.

    A reader sees the old file or the whole new one. The new file is locked while it is written, so that what a killed
    process left behind can be told from it, and is removed.
    """
    path = pathlib.Path(path)
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError), unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path, text: str) -> None:
    """Replaces the file `path` by one with this text. Raises SaveError."""
    with saving(path), replacing(path) as file:
        file.write(text.encode())


def write_json(path, value) -> None:
    """Replaces the file `path` by one with this value as JSON. Raises SaveError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
