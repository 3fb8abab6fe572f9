"""One run at a time in a run folder."""

import contextlib
import fcntl
import logging
import os
import socket

from wcjax import processes
from wcjax.errors import InUseError
from wcjax.files import saving

log = logging.getLogger(__name__)

NAME = ".lock"


@contextlib.contextmanager
def alone_in(workdir):
    """Holds the lock of a run folder, which the system gives back however this process ends.

    Of many processes that share a run, the first holds it. Raises InUseError, in all of them, if another run does.
    """
    with saving(workdir / NAME):
        file = (workdir / NAME).open("a+b", buffering=0)
    with file:
        holder = _lock(file) if processes.is_first() else None
        if processes.first_says(holder is not None):
            raise InUseError(
                f"workdir {workdir} is in use by {holder or 'another run'}. Wait for its end, or give another folder."
            )
        yield


def _lock(file) -> str | None:
    """Locks an open file, or says who holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().decode() or "another run"
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): see to it that no second run uses the folder.", file.name, error)
    with saving(file.name):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return None
