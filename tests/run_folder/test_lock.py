"""One run at a time in a run folder."""

import errno
import os

import pytest

from wcjax.errors import InUseError
from wcjax.run_folder.lock import run_lock


def test_a_folder_is_locked_by_one_run_and_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(tmp_path):
            with pytest.raises(InUseError, match=rf"workdir {tmp_path} is in use by process {os.getpid()} on "):
                run_lock(tmp_path).__enter__()
            raise KeyError


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with run_lock(tmp_path):
        assert "cannot be locked ([Errno 37] No locks available)" in caplog.text
