"""Several processes that share a run: which is the first, and where they wait for each other."""

import jax
import numpy as np


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def first_says(value: bool) -> bool:
    """The value that the first process gives."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        value = bool(multihost_utils.broadcast_one_to_all(np.array(value)))
    return value


def all_agree(digits: str) -> bool:
    """Whether every process gives the same hexadecimal digits, 16 of them."""
    if jax.process_count() == 1:
        return True
    from jax.experimental import multihost_utils

    given = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(digits), np.uint32))
    return bool((given == given[0]).all())


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0
