"""Python in another process."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]  # of the repository


def python(*arguments, code=0, cwd=ROOT, **variables):
    """Runs Python with these arguments and environment variables. Fails unless the process ends with this code."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | variables, capture_output=True, text=True
    )
    assert process.returncode == code, process.stdout + process.stderr
    return process
