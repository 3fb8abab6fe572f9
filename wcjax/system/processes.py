"""Several processes that share a run: which one is the first, and how they agree."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def wait_for_all(name: str) -> None:
    """Returns when every process has called this."""
    multihost_utils.sync_global_devices(name)


def broadcast_from_first(value: bool) -> bool:
    """The value of the first process."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def all_agree(digits: str) -> bool:
    """Whether every process passes the same 16 hexadecimal digits."""
    values = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(digits), np.uint32))
    return bool((values == values[0]).all())


def is_first() -> bool:
    """Whether this process writes the files that only one process writes."""
    return jax.process_index() == 0
