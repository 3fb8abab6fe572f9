"""A cache of decoded arrays in the user's cache directory: one .npz file for each state of a source directory."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from wcjax.system.files import atomic_write

log = logging.getLogger(__name__)


def path(directory):
    """The cache file of a directory `.../<name>/<version>`: $XDG_CACHE_HOME/wcjax/<name>-<fingerprint>.npz.

    The fingerprint covers the relative name, size and modification time (ns) of every file in the directory, so that a
    changed directory gets a new cache file. XDG_CACHE_HOME defaults to `~/.cache`. None if `~` cannot be expanded,
    because HOME is not set and the user has no entry in the system's list of users.
    """
    root = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if str(root).startswith("~"):
        log.warning("There is no home directory to cache decoded images in. Set XDG_CACHE_HOME to a directory.")
        return None
    fingerprint = hashlib.sha256()
    for file in sorted(file for file in directory.rglob("*") if file.is_file()):
        stat = file.stat()
        fingerprint.update(f"{file.relative_to(directory)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return root / "wcjax" / f"{directory.parent.name}-{fingerprint.hexdigest()[:16]}.npz"


def write(file, arrays):
    """Writes a dict of arrays to the cache file `file`. A failure is only logged, because the caller has the arrays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as content:
            np.savez(content, **arrays)
    except OSError as error:
        log.warning(
            "Could not cache the decoded images in %s (%s), so the next run decodes them again. "
            "Set XDG_CACHE_HOME to a directory that can be written to.",
            file,
            error,
        )
