"""train.py says in one line what the user got wrong, and ends with a code that a script can see."""

import subprocess
import sys

import pytest

from tests.training import runs


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{case: (exit code, output, errors)} of train.py with wrong arguments, all started at once."""
    folder = tmp_path_factory.mktemp("command_line")
    (folder / "file").write_text("mine")
    digits, run = "configs/digits.py", str(folder / "run")
    arguments = {
        "misspelt key": ["--config", digits, "--workdir", run, "--config.reparam.aa=0.5"],
        "unknown variant": ["--config", f"{digits}:resnet8,plane", "--workdir", run],
        "no such file": ["--config", "configs/digit.py", "--workdir", run],
        "file as workdir": ["--config", digits, "--workdir", str(folder / "file")],
    }
    started = {
        case: subprocess.Popen(
            [sys.executable, "train.py", *more],
            cwd=runs.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for case, more in arguments.items()
    }
    outcomes = {}
    for case, process in started.items():
        output, errors = process.communicate()
        outcomes[case] = (process.returncode, output, errors)
    assert [path.name for path in folder.iterdir()] == ["file"], "nothing was made"
    return outcomes


@pytest.mark.parametrize(
    "case, message",
    [
        ("misspelt key", "error: unknown config key 'reparam.aa'. Did you mean 'reparam.a'? Known: augment.flip, "),
        ("unknown variant", "error: unknown variant 'plane'. Did you mean 'plain'? Known: wc, arsinh, "),
        ("no such file", "error: [Errno 2] No such file or directory: 'configs/digit.py'"),
        ("file as workdir", "error: workdir "),
    ],
)
def test_a_mistake_on_the_command_line_is_an_error_of_one_line(outcomes, case, message):
    code, output, errors = outcomes[case]
    assert code == 1
    assert output == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1, errors
