"""Checks of the paths that a user names."""

import contextlib
import os
import pathlib
import re

from wcjax.errors import InputError
from wcjax.system.files import PERMISSION_HINT, reading


def local_path(path, name: str) -> pathlib.Path:
    """`path` with `~` replaced by the home directory. `name` is what errors call the path, for example '--out'.

    Raises InputError for an empty path, an address like gs://bucket/run, and the home directory of an unknown user.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{name} is empty: give a path.")
    if address := re.match(r"[A-Za-z][\w+.-]+:/", text):  # pathlib turns gs:// into gs:/
        raise InputError(
            f"{name} {text}: {address[0]}/ is not a local path, and wcjax uses local files only. Mount the bucket "
            "or server (gs:// with gcsfuse), and give the path where it is mounted."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} {text}: {error} Give the whole path.") from error


def run_path(path, name: str) -> pathlib.Path:
    """The `folder_path` of a folder for runs. Raises InputError also for [, ], *, ?, a backslash, or non-UTF-8."""
    absolute = local_path(path, name).absolute()
    # Orbax globs the path of a checkpoint to collect its parts. These characters make it write an empty checkpoint.
    if letters := [x for x in "[]*?\\" if x in str(absolute)]:
        raise InputError(
            f"{name} {absolute}: the path of a checkpoint cannot contain {' '.join(letters)}. Give another path."
        )
    if not is_utf8(absolute):
        raise InputError(f"{name} {absolute}: the path of a checkpoint must be UTF-8. Give another path.")
    return folder_path(path, name)


def is_utf8(path) -> bool:
    """Whether a path is UTF-8 text. Python keeps other bytes of a path as surrogates, which cannot be encoded."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def folder_path(path, name: str) -> pathlib.Path:
    """The `local_path` of a folder that exists or can be made.

    Raises InputError also if the path is too long or cannot be read, or leads through a file or a dangling link.
    """
    path = local_path(path, name)
    with reading(f"{name} {path}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)
    lowest = _lowest_existing(path)
    if lowest.is_symlink() and not lowest.exists():
        raise InputError(
            f"{name} {path}: {lowest} is a link to {os.readlink(lowest)}, which does not exist. Make that folder, or "
            "remove the link."
        )
    if not lowest.is_dir():
        raise InputError(f"{name} {path}: {lowest} is a file; give a folder.")
    return path


def check_writable(path, name: str) -> None:
    """Raises InputError if this process has no permission to write in the folder `path`, or to make it."""
    lowest = _lowest_existing(pathlib.Path(path))
    if not os.access(lowest, os.W_OK | os.X_OK):
        raise InputError(
            f"{name} {path}: no permission to write in {lowest}, or its file system is read-only. Change that, or give "
            "another folder."
        )


def check_readable(folder) -> None:
    """Raises InputError if this process has no permission to read `folder` or anything below it.

    Orbax, TensorStore and array_record report such files as missing or damaged.
    """
    modes = {folder: os.R_OK | os.X_OK}
    for directory, folders, files in os.walk(folder):
        modes |= {os.path.join(directory, name): os.R_OK | os.X_OK for name in folders}
        modes |= {os.path.join(directory, name): os.R_OK for name in files}
    for path, mode in modes.items():
        if not os.access(path, mode) and os.path.exists(path):  # another process may have deleted it
            raise InputError(f"{path}: cannot be read (Permission denied). {PERMISSION_HINT}")


def _lowest_existing(path: pathlib.Path) -> pathlib.Path:
    """The absolute `path` if it exists, or else the first of its parents that does."""
    path = path.absolute()
    return next(x for x in (path, *path.parents) if os.path.lexists(x))
