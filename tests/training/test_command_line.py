"""train.py says in one line what the user got wrong, and ends with a code that a script can see."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

from tests.training import runs
from wcjax.analysis import compare
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.errors import InputError, use_plain_letters
from wcjax.training import default_config


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{case: (exit code, output, errors)} of train.py with wrong arguments, all started at once."""
    folder = tmp_path_factory.mktemp("command_line")
    (folder / "file").write_text("def get_config():\n    return {}\n")
    digits, run = "configs/digits.py", str(folder / "run")
    arguments = {
        "misspelt key": ["--config", digits, "--workdir", run, "--config.reparam.aa=0.5"],
        "unknown variant": ["--config", f"{digits}:resnet8,plane", "--workdir", run],
        "no such file": ["--config", "configs/digit.py", "--workdir", run],
        "file as workdir": ["--config", digits, "--workdir", str(folder / "file")],
        "empty workdir": ["--config", digits, "--workdir="],
        "pattern": ["--config", digits, f"--workdir={run}[lr=0.1]"],
        "address": ["--config", digits, "--workdir=gs://bucket/run"],
        "no platform": ["--config", digits, "--workdir", run],
        "no GPU": ["--config", digits, "--workdir", run],
        "dict": ["--config", str(folder / "file"), "--workdir", run, "--config.epochs=3"],
        "unknown argument": ["--config", digits, "--workdir", run, "--config.epochs", "3", "more"],
        "help": ["--help"],
    }
    platforms = {"no platform": "nonsense", "no GPU": "cuda"}
    started = {
        case: subprocess.Popen(
            [sys.executable, "train.py", *more],
            cwd=runs.ROOT,
            env=os.environ | {"JAX_PLATFORMS": platforms.get(case, "cpu"), "CUDA_VISIBLE_DEVICES": ""},
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
        ("empty workdir", "error: workdir is empty: give a path."),
        ("pattern", "error: workdir "),
        ("address", "error: workdir gs://bucket/run: gs:// is not a local path"),
        (
            "no platform",
            "error: JAX finds no device for JAX_PLATFORMS=nonsense: Unable to initialize backend 'nonsense'",
        ),
        ("no GPU", "error: JAX finds no device for JAX_PLATFORMS=cuda: "),
        ("dict", "error: "),
        ("unknown argument", "error: unknown arguments ['more']; see --help."),
    ],
)
def test_a_mistake_on_the_command_line_is_an_error_of_one_line(outcomes, case, message):
    code, output, errors = outcomes[case]
    assert code == 1
    assert output == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1, errors


def test_help_is_no_error(outcomes):
    code, output, errors = outcomes["help"]
    assert (code, errors) == (0, "")
    assert "Trains the network that a config file describes" in output and "--workdir" in output


CONFIG = "from wcjax.training import default_config\nimport ml_collections, numpy as np\n\n"


def config_file(folder, text):
    path = folder / "mine.py"
    path.write_text(CONFIG + text)
    return str(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return 1 / 0", ", line 5: ZeroDivisionError: division by zero."),
        ("def get_config():\n    raise SystemExit('no')", ", line 5: SystemExit: no."),
        ("def get_config():\n    return open('/nowhere')", ", line 5: FileNotFoundError: [Errno 2] No such file"),
        (
            "def get_config():\n    c = default_config()\n    c.epochs = 'ten'",
            ", line 6: TypeError: Could not override",
        ),
        ("import nowhere", ", line 4: ModuleNotFoundError: No module named 'nowhere'."),
        ("def get_config(:", ", line 4: SyntaxError: invalid syntax"),
        ("\ndef get_config(argument):\n    pass", ", line 5: TypeError: get_config() missing 1 required positional"),
        ("def make_config():\n    pass", " has no get_config()."),
        ("get_config = 3", ": TypeError: 'int' object is not callable."),
        ("def get_config():\n    pass", ", line 4: get_config() returned None."),
        ("def get_config():\n    return {'epochs': 3}", ", line 4: get_config() returned a dict."),
        (
            "def get_config():\n    return ml_collections.FrozenConfigDict(default_config())",
            ", line 4: get_config() returned a FrozenConfigDict.",
        ),
    ],
)
@pytest.mark.parametrize("overrides", [[], ["--config.epochs=3"]])
def test_what_is_wrong_with_a_config_file_is_said_with_its_line(tmp_path, text, message, overrides):
    path = config_file(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_config_file(path, overrides)
    assert str(error.value).startswith(path + message)
    expected = "A config file defines get_config(), which returns wcjax.config.default_config() with changes."
    assert str(error.value).endswith(f" {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path, message",
    [
        ("nowhere.py", "[Errno 2] No such file or directory: 'nowhere.py'"),
        ("", "[Errno 2] No such"),
        (".", "[Errno 21]"),
    ],
)
def test_a_config_file_that_is_none_is_named(path, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_config_file(path)


def test_numbers_and_bools_of_numpy_are_numbers_in_a_config_file(tmp_path):
    lines = ["epochs = np.int64(5)", "learning_rate = np.float32(0.5)", "weight_decay = np.int8(0)"]
    lines += ["dropout = np.float64(0.1)", "augment.flip = np.bool_(False)", "augment.padding = np.uint8(2)"]
    lines += ["schedule.milestones = np.array([2, 3])", "reparam.a = np.array(0.75)"]
    text = "def get_config():\n    c = default_config()\n" + "".join(f"    c.{line}\n" for line in lines)
    config = read_config_file(config_file(tmp_path, text + "    return c"), ["--config.batch_size=8"])
    expected = default_config().to_dict() | {"epochs": 5, "learning_rate": 0.5, "weight_decay": 0.0, "dropout": 0.1}
    expected |= {"augment": {"flip": False, "padding": 2}, "schedule": {"milestones": (2, 3), "factor": 0.1}}
    expected["reparam"]["a"], expected["batch_size"] = 0.75, 8
    assert json.dumps(config.to_dict(), sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(
    "overrides, found",
    [([], 0.5), (["=None"], None), (["=0.25", "=None"], None), (["=None", "=0.25"], 0.25)],
)
def test_none_is_a_dropout(tmp_path, overrides, found):
    text = "def get_config():\n    c = default_config()\n    c.dropout = 0.5\n    return c"
    config = read_config_file(config_file(tmp_path, text), [f"--config.dropout{value}" for value in overrides])
    assert config.dropout == found


def test_none_is_no_number_of_epochs():
    with pytest.raises(InputError, match="flag --config.epochs=None: invalid literal for int"):
        read_config_file("configs/digits.py", ["--config.epochs=None"])


def test_overrides_are_split_off_in_all_their_spellings():
    argv = ["train.py", "--config", "FILE", "--config.epochs=3", "--config.seed", "7", "--config.augment.flip", "more"]
    rest, overrides = split_overrides([*argv, "--noconfig.augment.flip", "--workdir=x", "--config.model"])
    assert rest == ["train.py", "--config", "FILE", "more", "--workdir=x"]
    assert overrides == [
        "--config.epochs=3",
        "--config.seed=7",
        "--config.augment.flip",
        "--noconfig.augment.flip",
        "--config.model",
    ]


@pytest.mark.parametrize(
    "encoding, found",
    [("ascii", "Psi'(v) 1 +- 2 alpha x \\xfc \\u65e5 \\udcff"), ("latin-1", "Psi'(v) 1 ± 2 alpha × ü \\u65e5 \\udcff")],
)
def test_letters_that_a_terminal_cannot_show_are_spelt_out(monkeypatch, encoding, found):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    use_plain_letters()
    for stream in (sys.stdout, sys.stderr):
        print("Ψ′(v) 1 ± 2 α × ü 日 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding) == found + "\n"


def test_every_command_spells_letters_out(tiny_run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert compare.main([str(tiny_run[0])]) == 0
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().startswith(b"| run | model | Psi | val accuracy |")
