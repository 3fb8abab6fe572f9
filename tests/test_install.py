"""Wheel and sdist in a fresh environment and outside of the checkout, as a user has them."""

import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest

import wcjax
from tests.breaks import copy_tracked
from tests.processes import ROOT
from tests.test_docs import blocks

pytestmark = pytest.mark.long  # it installs 1 GB


class Environment:
    """A fresh virtual environment, and a folder with nothing of the checkout in it, where its programs run."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.bin = folder, folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)

    def run(self, program, *arguments, code=0, cwd=None) -> subprocess.CompletedProcess:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        process = subprocess.run(
            [self.bin / program, *arguments], cwd=cwd or self.folder, env=env, capture_output=True, text=True
        )
        assert process.returncode == code, process.stdout + process.stderr
        return process

    def install(self, *requirements) -> None:
        """Without .pyc files, which take most of the time of an installation."""
        self.run("pip", "install", "--no-compile", "-c", ROOT / "constraints.txt", *requirements)


@pytest.fixture(scope="module")
def environment():
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(pathlib.Path(folder))
        try:
            environment.install("hatchling")
        except AssertionError as error:
            pytest.skip(f"pip cannot install from an index: {str(error).strip().splitlines()[-1]}")
        yield environment


@pytest.fixture(scope="module")
def archives(environment):
    """The paths of the sdist and of the wheel, built from a checkout in which somebody has trained."""
    checkout = environment.folder / "checkout"
    copy_tracked(checkout)
    for unwanted in ("runs/demo/config.json", ".venv/bin/python", "wcjax/__pycache__/linen.pyc"):
        (checkout / unwanted).parent.mkdir(parents=True)
        (checkout / unwanted).write_text("")
    environment.run("python", "-m", "hatchling", "build", cwd=checkout)
    name = f"wcjax-{wcjax.__version__}"
    return checkout / f"dist/{name}.tar.gz", checkout / f"dist/{name}-py3-none-any.whl"


def tracked():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in files.split("\0") if name and (ROOT / name).is_file()}


def test_the_sdist_and_the_wheel_hold_what_git_tracks(archives):
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names == tracked() | {"PKG-INFO"}
    names = {name for name in zipfile.ZipFile(archives[1]).namelist() if ".dist-info/" not in name}
    package = {name for name in tracked() if name.startswith("wcjax/")}
    assert names == package | {f"wcjax/{name}" for name in tracked() if name.startswith("configs/")}


def test_the_wheel_works_alone_and_then_with_train(environment, archives):
    run, wheel = environment.run, archives[1]
    environment.install(wheel)
    howto = environment.folder / "howto.py"
    howto.write_text("\n".join(code for _, code in blocks(ROOT / "docs" / "howto" / "plain_jax.md")))
    run("python", howto)
    assert "wcjax.training needs flax, " in run("wcjax-train", code=2).stderr

    environment.install(f"{wheel}[train]")
    run("pip", "check")
    for variant in ("wc", "plain"):
        run("wcjax-train", f"--config=digits:resnet8,{variant}", f"--workdir=runs/{variant}", "--config.epochs=1")
    assert "| test | " in run("wcjax-evaluate", "runs/wc").stdout
    table = run("wcjax-compare", "runs/wc", "runs/plain", "--png=weights.png").stdout
    assert "| runs/wc | resnet8 | arctan" in table and (environment.folder / "weights.png").is_file()
    assert run("wcjax-report", "runs", "--out=report").stdout == "report/report.html\n"
    assert run("wcjax-sweep", "runs", code=2).stderr.startswith("error: wcjax.sweep needs optuna: ")
