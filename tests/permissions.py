"""Files without permission, and root that obeys permissions, as every other user does."""

import concurrent.futures
import contextlib
import ctypes

DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2  # in linux/capability.h: the rights to ignore permissions


def obey_permissions():
    """Takes these rights from the calling thread, and from the threads and processes that it starts later."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in (0, 1):  # the effective and the permitted set
        sets[i] &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0


def denied(call):
    """call(), in a thread that obeys permissions."""
    with concurrent.futures.ThreadPoolExecutor(1, initializer=obey_permissions) as pool:
        return pool.submit(call).result()


@contextlib.contextmanager
def mode(path, bits):
    """A file or folder has these permissions in the block."""
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)
