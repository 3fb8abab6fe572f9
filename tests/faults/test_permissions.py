"""Files and folders without permission: every command says so in one line, and harms nothing."""

import pathlib
import re
import shutil

import pytest

from tests.faults import attempts
from tests.permissions import mode, obey_permissions
from tests.training import runs

pytestmark = pytest.mark.long


@pytest.fixture
def run(unbroken, tmp_path):
    """A finished run in a folder that the test may change."""
    return shutil.copytree(unbroken.run, tmp_path / "runs" / "run")


@pytest.mark.parametrize("closed", ["", "config.json", "checkpoints/6"])
def test_a_run_that_may_not_be_read_is_left_alone(run, closed):
    (run / "summary.json").unlink()
    saved = runs.saved(run)
    with mode(run / closed, 0):
        attempt = attempts.train(run, changes=(obey_permissions,))
        assert attempt.end() == 1, attempt.output()
    assert re.match(r"error: .*permission", attempt.error(), re.IGNORECASE), attempt.output()
    assert "damaged" not in attempt.output() and "new workdir" not in attempt.output()
    assert runs.saved(run) == saved


EVALUATE, COMPARE, REPORT = "wcjax.training.evaluate", "wcjax.analysis.compare", "wcjax.analysis.report"
SWEEP = ["wcjax.sweep", "runs", "--config=configs/digits.py", "--models=resnet8", "--variants=wc", "--seeds=0", "--out"]
TRAIN = ["train.py", "--config=tests/faults/tiny.py", "--workdir={runs}/new"]
COMMANDS = [
    (TRAIN, "{runs}", 0o555),
    ([EVALUATE, "{run}"], "{run}", 0o000),
    ([EVALUATE, "{run}"], "{run}/folded/d", 0o000),
    ([COMPARE, "{run}"], "{run}/summary.json", 0o000),
    ([COMPARE, "{run}", "--png={run}/picture.png"], "{run}", 0o555),
    ([REPORT, "{runs}", "--out={out}"], "{runs}", 0o000),
    ([REPORT, "{run}", "--out={out}"], "{run}", 0o444),
    ([REPORT, "{run}", "--out={run}/report"], "{run}", 0o555),
    ([*SWEEP, "{runs}"], "{runs}", 0o000),
    ([*SWEEP, "{runs}"], "{runs}", 0o555),
    ([*SWEEP, "{runs}/sweep"], "{runs}/sweep/sweep.db", 0o000),
    ([*SWEEP, "{runs}/sweep"], "{runs}/sweep/resnet8_wc_seed0/config.json", 0o000),
]


@pytest.mark.parametrize("command, closed, bits", COMMANDS)
def test_every_command_names_a_lack_of_permission_in_one_line(run, tmp_path, command, closed, bits):
    command, path = ([x.format(run=run, runs=run.parent, out=tmp_path / "out") for x in y] for y in (command, [closed]))
    path = pathlib.Path(*path)
    if not path.exists():
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    with mode(path, bits):
        attempt = attempts.Attempt(*command, changes=(obey_permissions,))
        assert attempt.end() == (1 if command[0] == "train.py" else 2), attempt.output()
    output = attempt.output()
    *waiting, line = output.splitlines()
    assert line.startswith("error: ") and "permission" in line.lower(), output
    assert str(path if path.is_file() else run.parent) in line, output
    assert not any(other.startswith(("Traceback", "error")) for other in waiting) and "Train again" not in line
    assert "Compiling" not in output, "before any work"


def test_a_report_names_the_runs_that_may_not_be_read(run, tmp_path):
    closed, half = (shutil.copytree(run, run.parent / name) for name in ("closed", "half"))
    with mode(closed, 0o000), mode(half / "summary.json", 0o000):
        attempt = attempts.Attempt(REPORT, run.parent, "--out", tmp_path / "out", changes=(obey_permissions,))
        assert attempt.end() == 0, attempt.output()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- runs: 1, " in text
    for path in (closed, half / "summary.json"):
        assert re.search(rf"^- .*{path}:? cannot be read: permission denied", text, re.MULTILINE)
