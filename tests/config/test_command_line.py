"""A mistake on a command line or in a config file is one line, and an exit code that a script can see."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from wcjax import commands
from wcjax.analysis import compare
from wcjax.config import default_config
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.errors import InputError, use_plain_letters

ROOT = pathlib.Path(__file__).parents[2]
ARGUMENTS = [f"--config={ROOT}/configs/digits.py", "--workdir"]


def test_a_process_that_cannot_train_ends_in_one_line(tmp_path):
    command = [sys.executable, "train.py", *ARGUMENTS, str(tmp_path / "run")]
    env = os.environ | {"JAX_PLATFORMS": "nonsense"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    message = "error: JAX finds no device for JAX_PLATFORMS=nonsense: Unable to initialize backend 'nonsense'"
    assert ended.stderr.startswith(message) and ended.stderr.count("\n") == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


KEY = "unknown config key 'reparam.aa'. Did you mean 'reparam.a'? Known: augment.flip, "


@pytest.mark.parametrize("mistake, message", [("--config.reparam.aa=1", KEY), ("more", "unknown arguments ['more']")])
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, mistake, message):
    with pytest.raises(SystemExit) as end:
        commands.train([*ARGUMENTS, str(tmp_path / "run"), mistake])
    line = str(end.value)  # Python prints it to stderr and exits with 1
    assert line.startswith(f"error: {message}") and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def config_file(folder, text):
    path = folder / "mine.py"
    path.write_text(f"from wcjax.config import default_config\nimport ml_collections, numpy as np\n\n{text}")
    return str(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return 1 / 0", ", line 5: ZeroDivisionError: division by zero."),
        ("def get_config():\n    raise SystemExit('no')", ", line 5: SystemExit: no."),
        ("def get_config():\n    return open('/nowhere')", ", line 5: FileNotFoundError: [Errno 2] No such file"),
        ("import nowhere", ", line 4: ModuleNotFoundError: No module named 'nowhere'."),
        ("def get_config(:", ", line 4: SyntaxError: invalid syntax"),
        ("\ndef get_config(argument):\n    pass", ", line 5: TypeError: get_config() missing 1 required positional"),
        ("def make_config():\n    pass", " has no get_config()."),
        ("get_config = 3", ": TypeError: 'int' object is not callable."),
        ("def get_config():\n    pass", ", line 4: get_config() returned None."),
        (
            "def get_config():\n    return ml_collections.FrozenConfigDict(default_config())",
            ", line 4: get_config() returned a FrozenConfigDict.",
        ),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(tmp_path, text, message):
    path = config_file(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_config_file(path)
    line = str(error.value)
    assert line.startswith(path + message) and "\n" not in line
    assert line.endswith("get_config(), which returns wcjax.config.default_config() with changes.")


DIGITS = "configs/digits.py"


@pytest.mark.parametrize(
    "path, overrides, message",
    [
        ("nowhere.py", [], "[Errno 2] No such file or directory: 'nowhere.py'"),
        (".", [], "[Errno 21]"),
        (DIGITS, ["--config.epochs=None"], "flag --config.epochs=None: invalid literal for int"),
        (DIGITS, ["--config.augment=1"], "config.augment has its own keys: augment.flip, augment.padding."),
        (f"{DIGITS}:resnet8,plane", [], "unknown variant 'plane'. Did you mean 'plain'? Known: wc, arsinh, erf, "),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(monkeypatch, path, overrides, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as error:
        read_config_file(path, overrides)
    assert str(error.value).startswith(message)


def test_numpy_numbers_are_numbers_in_a_config_file(tmp_path):
    lines = ["epochs = np.int64(5)", "learning_rate = np.float32(0.5)", "weight_decay = np.int8(0)"]
    lines += ["dropout = np.float64(0.1)", "augment.flip = np.bool_(False)", "augment.padding = np.uint8(2)"]
    lines += ["schedule.milestones = np.array([2, 3])", "reparam.a = np.array(0.75)"]
    text = "def get_config():\n    c = default_config()\n" + "".join(f"    c.{line}\n" for line in lines)
    config = read_config_file(config_file(tmp_path, text + "    return c"), ["--config.batch_size=8"])
    expected = default_config().to_dict() | {"epochs": 5, "learning_rate": 0.5, "weight_decay": 0.0, "dropout": 0.1}
    expected |= {"augment": {"flip": False, "padding": 2}, "schedule": {"milestones": (2, 3), "factor": 0.1}}
    expected["reparam"]["a"], expected["batch_size"] = 0.75, 8
    assert json.dumps(config.to_dict(), sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("values, dropout", [([], 0.5), (["0.25", "None"], None), (["None", "0.25"], 0.25)])
def test_none_is_a_dropout_and_the_last_override_counts(tmp_path, values, dropout):
    path = config_file(tmp_path, "def get_config():\n    c = default_config()\n    c.dropout = 0.5\n    return c")
    assert read_config_file(path, [f"--config.dropout={value}" for value in values]).dropout == dropout


def test_overrides_are_split_off_in_all_their_spellings():
    argv = ["train.py", "--config", "FILE", "--config.epochs=3", "--config.seed", "7", "--config.augment.flip", "more"]
    rest, overrides = split_overrides([*argv, "--noconfig.augment.flip", "--workdir=x", "--config.model"])
    assert rest == ["train.py", "--config", "FILE", "more", "--workdir=x"]
    flips = ["--config.augment.flip", "--noconfig.augment.flip"]
    assert overrides == ["--config.epochs=3", "--config.seed=7", *flips, "--config.model"]


@pytest.mark.parametrize(
    "encoding, text",
    [("ascii", "Psi'(v) 1 +- 2 alpha x \\xfc \\u65e5 \\udcff"), ("latin-1", "Psi'(v) 1 ± 2 alpha × ü \\u65e5 \\udcff")],
)
def test_letters_that_a_terminal_lacks_are_spelt_out(tmp_path, monkeypatch, encoding, text):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    use_plain_letters()
    for stream in (sys.stdout, sys.stderr):
        print("Ψ′(v) 1 ± 2 α × ü 日 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding) == text + "\n"
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert compare.main([str(tmp_path / "Ψ")]) == 2, "as every command does"
    sys.stderr.flush()
    assert sys.stderr.buffer.getvalue().startswith(f"error: {tmp_path}/Psi holds no config.json".encode())
