"""Paths that a command line names: whether they can be used is found out before any work."""

import contextlib
import os
import pathlib
import re

from wcjax.errors import InputError, reading


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
