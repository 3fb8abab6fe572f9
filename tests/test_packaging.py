"""What `pip install wcjax` gives: few imports, an absent extra in one line, console scripts and configs."""

import json
import os
import re
import sys
import tomllib

import pytest

import wcjax
from tests.processes import ROOT, python
from wcjax import commands
from wcjax.config.command_line import read_config_file
from wcjax.errors import InputError
from wcjax.extras import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
SHIPPED = ["cifar10", "cifar100", "digits", "imagenet", "tiny_imagenet"]


MODULES_OF_EXTRAS = {module for modules in EXTRAS.values() for module in modules} - {"absl"}  # which optax imports


def run(folder, *arguments, code=0):
    """Runs Python as in an environment of jax, optax and numpy alone."""
    hide = f"import sys\nsys.modules.update(dict.fromkeys({sorted(MODULES_OF_EXTRAS)}))\n"
    (folder / "sitecustomize.py").write_text(hide)
    return python(*arguments, code=code, cwd=folder, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


def test_import_loads_jax_optax_and_numpy_alone():
    code = """import sys, jax, numpy, optax
before = {name.partition(".")[0] for name in sys.modules}
import wcjax
print(*{name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names))
print(*sys.modules)"""
    new, loaded = python("-c", code).stdout.splitlines()
    assert new == "wcjax"
    assert not MODULES_OF_EXTRAS & set(loaded.split())


ENTRIES = {
    "from wcjax import linen": "wcjax.linen needs flax: pip install 'wcjax[flax]'",
    "wcjax.exchange.from_torchvision({})": "wcjax.models needs flax: pip install 'wcjax[flax]'",
    "wcjax.exchange.save_safetensors('x', {})": "a .safetensors file needs safetensors: pip install 'wcjax[exchange]'",
    "wcjax.data.load('digits')": "digits needs scikit-learn: pip install 'wcjax[train]'",
    "wcjax.data.load('imagenet', '.')": "imagenet needs grain, simplejpeg, pillow, tqdm: pip install 'wcjax[stream]'",
    "from wcjax.config import default_config": "wcjax.config needs TRAIN: pip install 'wcjax[train]'",
    "wcjax.training.train": "wcjax.training needs TRAIN: pip install 'wcjax[train]'",
    "import wcjax.analysis.report": "wcjax.analysis needs TRAIN: pip install 'wcjax[train]'",
    "import wcjax.sweep": "wcjax.sweep needs TRAIN, optuna: pip install 'wcjax[sweep]'",
}
TRAIN = "flax, matplotlib, ml_collections, orbax-checkpoint, scikit-learn, scipy, tqdm"


def test_a_missing_extra_is_named_at_every_entry_point(tmp_path):
    code = f"""import json, wcjax
messages = {{}}
for entry in {list(ENTRIES)}:
    try:
        exec(entry)
    except (wcjax.errors.InputError, ImportError) as error:
        assert isinstance(error, ImportError) and isinstance(error, wcjax.errors.InputError), error
        messages[entry] = str(error)
print(json.dumps(messages))"""
    process = run(tmp_path, "-c", code)
    assert json.loads(process.stdout) == {entry: text.replace("TRAIN", TRAIN) for entry, text in ENTRIES.items()}


def test_a_command_without_its_extra_says_so_in_one_line(tmp_path):
    process = run(tmp_path, "-m", "wcjax.training.evaluate", code=1)
    assert process.stderr == f"error: wcjax.training needs {TRAIN}: pip install 'wcjax[train]'\n"
    assert process.stdout == ""


def packages(extra):
    """The names of the packages of an extra, with those of the extras that it contains."""
    names = set()
    for requirement in OPTIONAL[extra]:
        if inner := re.fullmatch(r"wcjax\[(.+)\]", requirement):
            names |= set().union(*map(packages, inner[1].split(",")))
        else:
            names.add(re.match(r"[\w-]+", requirement)[0])
    return names


def test_the_dependencies_are_those_of_pyproject():
    assert [re.match(r"\w+", requirement)[0] for requirement in PROJECT["dependencies"]] == ["jax", "numpy", "optax"]
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) == packages(extra) - {"tensorboardX"}  # without it a run writes no events


MODULES = {  # console script: the module that `python -m` runs
    "wcjax-train": "wcjax.training",
    "wcjax-sweep": "wcjax.sweep",
    "wcjax-report": "wcjax.analysis.report",
    "wcjax-compare": "wcjax.analysis.compare",
    "wcjax-evaluate": "wcjax.training.evaluate",
    "wcjax-robustness": "wcjax.analysis.robustness",
    "wcjax-data-check": "wcjax.data.check",
}


@pytest.mark.parametrize("script, module", MODULES.items())
def test_help_names_the_program_that_was_typed(monkeypatch, capsys, script, module):
    target, _, name = PROJECT["scripts"][script].partition(":")
    assert target == commands.__name__ and PROJECT["scripts"].keys() == MODULES.keys()
    file = f"/checkout/{module.replace('.', '/')}.py"
    for program, usage in [(f"/bin/{script}", script), (file, f"python -m {module}")]:
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(SystemExit) as end:
            getattr(commands, name)(["--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {usage} [-h]")


def test_a_user_config_takes_precedence_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder is no config
    expected = read_config_file(f"{ROOT}/configs/digits.py:resnet20,plain")
    for name in ("digits", "configs/digits.py"):
        assert read_config_file(f"{name}:resnet20,plain") == expected
    text = (ROOT / "configs" / "digits.py").read_text(encoding="utf-8").replace("epochs = 10", "epochs = 99")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(text)
    assert read_config_file("configs/digits.py").epochs == 99
    with pytest.raises(InputError, match=f"'imagnet'. wcjax comes with {', '.join(SHIPPED)}.$"):
        read_config_file("imagnet:resnet50,wc")


PREPARE = """import os, runpy, signal
runpy.run_path("wcjax/training/start.py")["prepare"]()
print(os.environ["GLIBC_TUNABLES"], flush=True)
os.kill(os.getpid(), signal.SIGTERM)"""


def test_a_training_process_starts_again_with_huge_pages(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    process = python("-c", PREPARE, code=75)  # 75: run the same command again
    assert process.stdout == "glibc.malloc.hugetlb=1\n"


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {wcjax.__version__}\n" in citation
