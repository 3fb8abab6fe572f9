"""One run at a time in a run folder."""

import contextlib
import fcntl
import logging
import os
import socket

from wcjax.errors import InUseError
from wcjax.system import processes
from wcjax.system.files import saving

log = logging.getLogger(__name__)

NAME = ".lock"


@contextlib.contextmanager
def run_lock(workdir):
    """Holds the lock of a run folder, which the system releases however this process ends.

    If several processes share a run, the first one holds the lock. If another run holds it, all raise InUseError.
    """
    with saving(workdir / NAME):
        file = (workdir / NAME).open("a+b", buffering=0)
    with file:
        holder = _lock(file) if processes.is_first() else None
        if processes.broadcast_from_first(holder is not None):
            raise InUseError(
                f"workdir {workdir} is in use by {holder or 'another run'}. Wait until it has ended, or give another "
                "folder."
            )
        yield


def _lock(file) -> str | None:
    """Locks an open file and returns None, or returns who holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().decode() or "another run"
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s). Make sure that no second run uses the folder.", file.name, error)
    with saving(file.name):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return None
