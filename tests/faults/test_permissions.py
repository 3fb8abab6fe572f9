"""Files and folders without permission: every command says so in one line, and harms nothing."""

import contextlib
import re
import shutil

import pytest

from tests.faults import attempts
from tests.permissions import obey_permissions
from tests.training import runs

EVALUATE, COMPARE = "wcjax.training.evaluate", "wcjax.analysis.compare"
REPORT, SWEEP = "wcjax.analysis.report", "wcjax.sweep.__main__"
SWEEP_ARGUMENTS = ["runs", "--config=configs/digits.py", "--models=resnet8", "--variants=wc", "--seeds=0", "--out"]


@contextlib.contextmanager
def mode(path, bits):
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.fixture
def run(unbroken, tmp_path):
    """A finished run in a folder that the test may change."""
    return shutil.copytree(unbroken.run, tmp_path / "runs" / "run")


@pytest.mark.parametrize(
    "closed, bits",
    [("..", 0o000), ("", 0o000), ("config.json", 0o000), ("checkpoints/6", 0o000), ("checkpoints", 0o400)],
)
def test_a_run_that_may_not_be_read_is_left_alone(run, closed, bits):
    (run / "summary.json").unlink()
    saved = runs.saved(run)
    with mode(run / closed, bits):
        attempt = attempts.Attempt(run, changes=(obey_permissions,))
        assert attempt.end() == 1, attempt.output()
    assert re.match(r"error: .*permission", attempt.error(), re.IGNORECASE), attempt.output()
    assert "damaged" not in attempt.output() and "new workdir" not in attempt.output()
    assert runs.saved(run) == saved


@pytest.mark.parametrize("workdir", ["new", ""])
def test_a_folder_that_may_not_be_written_is_named_first(tmp_path, workdir):
    folder = tmp_path / "folder"
    folder.mkdir()
    with mode(folder, 0o555):
        attempt = attempts.Attempt(folder / workdir, changes=(obey_permissions,))
        assert attempt.end() == 1
    message = f"error: workdir {folder / workdir}: no permission to write in {folder}."
    assert attempt.output().startswith(message), attempt.output()


@pytest.mark.parametrize(
    "module, arguments, closed, bits",
    [
        (EVALUATE, ["{run}"], "", 0o000),
        (EVALUATE, ["{run}"], "config.json", 0o000),
        (EVALUATE, ["{run}"], "folded/d", 0o000),
        (COMPARE, ["{run}"], "..", 0o000),
        (COMPARE, ["{run}"], "summary.json", 0o000),
        (COMPARE, ["{run}", "--png={run}/picture.png"], "", 0o555),
        (REPORT, ["{run}/..", "--out={out}"], "..", 0o000),
        (REPORT, ["{run}", "--out={out}"], "", 0o444),
        (REPORT, ["{run}", "--out={run}/report"], "", 0o555),
        (REPORT, ["{run}", "--out={run}/tensorboard"], "tensorboard", 0o555),
        (SWEEP, [*SWEEP_ARGUMENTS, "{run}/.."], "..", 0o000),
        (SWEEP, [*SWEEP_ARGUMENTS, "{run}/.."], "..", 0o555),
        (SWEEP, [*SWEEP_ARGUMENTS, "{run}/../sweep"], "..", 0o555),
    ],
)
def test_every_command_says_permission_in_one_line(run, tmp_path, module, arguments, closed, bits):
    arguments = [argument.format(run=run, out=tmp_path / "out") for argument in arguments]
    with mode(run / closed, bits):
        code, output = attempts.run_main(module, *arguments)
    assert code == 2, output
    assert re.search(r"^error: .*permission.*\n$", output, re.IGNORECASE | re.MULTILINE), output
    assert "Traceback" not in output and "Train again" not in output


@pytest.mark.parametrize("file", ["sweep.db", "resnet8_wc_seed0/config.json"])
def test_a_sweep_names_the_file_that_may_not_be_read(unbroken, tmp_path, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with mode(path, 0o000):
        code, output = attempts.run_main(SWEEP, *SWEEP_ARGUMENTS, tmp_path)
    assert code == 2, output
    *waiting, line = output.splitlines()
    assert line.startswith("error: ") and str(path) in line and "permission" in line.lower()
    assert not any(other.startswith(("Traceback", "error")) for other in waiting)


def test_a_report_names_the_runs_that_may_not_be_read(run, tmp_path):
    closed, half = (shutil.copytree(run, run.parent / name) for name in ("closed", "half"))
    with mode(closed, 0o000), mode(half / "summary.json", 0o000):
        code, output = attempts.run_main(REPORT, run.parent, "--out", tmp_path / "out")
    assert code == 0, output
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- runs: 1, " in text
    for path in (closed, half / "summary.json"):
        assert re.search(rf"^- .*{path}:? cannot be read: permission denied", text, re.MULTILINE)
