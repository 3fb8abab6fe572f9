"""The start of a training process. train.py runs this file before it imports wcjax, which takes a second."""

import os
import signal
import sys

EXIT_PREEMPTED = 75  # exit code after SIGTERM (EX_TEMPFAIL in sysexits.h): run the same command to resume
EXIT_INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc asks Linux for huge pages if a process starts with it


def prepare() -> None:
    """Makes SIGTERM and Ctrl-C end this process at once, and starts it again with huge pages.

    docs/performance_notes.md says how much faster a CPU trains with them.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_PREEMPTED))  # until wcjax.training.preemption is imported
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)
