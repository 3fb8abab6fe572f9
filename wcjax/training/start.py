"""What a process that trains does first. train.py runs this file before it imports wcjax, which takes a second."""

import os
import signal
import sys

START_AGAIN = 75  # exit code after SIGTERM, EX_TEMPFAIL of sysexits.h: the same command resumes the run
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C


def prepare() -> None:
    """Makes SIGTERM and Ctrl-C end this process at once, and starts it again to get huge pages.

    glibc asks Linux for huge pages if this variable is set when a process starts. docs/performance.md has what that
    gains on a CPU.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(START_AGAIN))  # until wcjax.training.preemption is imported
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        tuned = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned)
