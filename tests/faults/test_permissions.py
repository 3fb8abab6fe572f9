"""Files and folders without permission: every command says so in one line, and harms nothing."""

import contextlib
import re
import shutil

import pytest

from tests.faults import attempts
from tests.training import runs

EVALUATE, COMPARE = "wcjax.training.evaluate", "wcjax.analysis.compare"
REPORT, SWEEP = "wcjax.analysis.report", "wcjax.sweep"
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
    """A finished run in a folder of its own."""
    return shutil.copytree(unbroken.run, tmp_path / "runs" / "run")


@pytest.mark.parametrize(
    "closed, bits",
    [("..", 0o000), ("", 0o000), ("config.json", 0o000), ("checkpoints/6", 0o000), ("checkpoints", 0o400)],
)
def test_a_run_that_may_not_be_read_is_not_resumed_and_stays_as_it_is(run, closed, bits):
    (run / "summary.json").unlink()
    kept = runs.epochs_kept(run)
    with mode(run / closed, bits):
        attempt = attempts.Attempt(run, changes=(attempts.obey_permissions,))
        assert attempt.end() == 1, attempt.said()
    assert re.match(r"error: .*permission", attempt.error(), re.IGNORECASE), attempt.said()
    assert "damaged" not in attempt.said() and "new workdir" not in attempt.said()
    assert runs.epochs_kept(run) == kept


@pytest.mark.parametrize("workdir", ["new", ""])
def test_a_folder_that_may_not_be_written_is_named_before_any_work(tmp_path, workdir):
    folder = tmp_path / "folder"
    folder.mkdir()
    with mode(folder, 0o555):
        attempt = attempts.Attempt(folder / workdir, changes=(attempts.obey_permissions,))
        assert attempt.end() == 1
    message = f"error: workdir {folder / workdir}: no permission to write in {folder}."
    assert attempt.said().startswith(message), attempt.said()


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
        code, said = attempts.run_main(module, *arguments, log=tmp_path / "log")
    assert code == 2, said
    assert re.search(r"^error: .*permission.*\n$", said, re.IGNORECASE | re.MULTILINE), said
    assert "Traceback" not in said and "Train again" not in said


@pytest.mark.parametrize("file", ["sweep.db", "resnet8_wc_seed0/config.json"])
def test_a_sweep_says_which_of_its_files_may_not_be_read(unbroken, tmp_path, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with mode(path, 0o000):
        code, said = attempts.run_main(SWEEP, *SWEEP_ARGUMENTS, tmp_path, log=tmp_path / "log")
    assert code == 2, said
    *waiting, line = said.splitlines()
    assert line.startswith("error: ") and str(path) in line and "permission" in line.lower()
    assert not any(other.startswith(("Traceback", "error")) for other in waiting)


def test_a_report_says_which_run_it_leaves_out_because_it_may_not_be_read(run, tmp_path):
    for name in ("closed", "half"):
        shutil.copytree(run, run.parent / name)
    with mode(run.parent / "closed", 0o000), mode(run.parent / "half" / "summary.json", 0o000):
        code, said = attempts.run_main(REPORT, run.parent, "--out", tmp_path / "out", log=tmp_path / "log")
    assert code == 0, said
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"- {run.parent / 'closed'}: cannot be read: permission denied" in text
    assert f"- {run.parent / 'half'}: {run.parent / 'half' / 'summary.json'} cannot be read: permission denied" in text
    assert "- runs: 1, of them 1 finished" in text
