"""A mistake on a command line or in a config file is one line, and an exit code that a script can see."""

import pytest

from tests.processes import ROOT, python
from wcjax import commands
from wcjax.config.command_line import read_config_file, split_overrides
from wcjax.errors import InputError


def test_a_process_that_cannot_train_says_why_in_one_line(tmp_path):
    arguments = "train.py", "--config=configs/digits.py", f"--workdir={tmp_path}/run"
    ended = python(*arguments, code=1, JAX_PLATFORMS="nonsense")
    assert ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: JAX finds no device for JAX_PLATFORMS=nonsense: Unable to initialize")
    assert list(tmp_path.iterdir()) == []


CONFIG = "configs/digits.py"
KEY = "unknown config key 'reparam.aa'. Did you mean 'reparam.a'? Known: augment.flip, "
VARIANT = "unknown variant 'plane'. Did you mean 'plain'? Known: wc, arsinh, erf, "


@pytest.mark.parametrize(
    "config, argument, message",
    [
        ("nowhere.py", "--config.seed=1", "[Errno 2] No such file or directory: 'nowhere.py'"),
        (".", "--config.seed=1", "[Errno 21]"),
        (f"{CONFIG}:resnet8,plane", "--config.seed=1", VARIANT),
        (CONFIG, "more", "unknown arguments ['more']"),
        (CONFIG, "--config.reparam.aa=1", KEY),
        (CONFIG, "--config.epochs=1e3", "config.epochs must be an integer like 3, found '1e3'."),
        (CONFIG, "--config.augment.flip=maybe", "config.augment.flip must be true or false, found 'maybe'."),
        (CONFIG, "--config.epochs=None", "config.epochs must be an integer like 3, found 'None'."),
        (CONFIG, "--config.dropout=much", "config.dropout must be a number like 0.1, or None, found 'much'."),
        (CONFIG, "--config.schedule.milestones=(1,", "config.schedule.milestones must be a tuple like (80,120), "),
        (CONFIG, "--config.augment=1", "config.augment has its own keys: augment.flip, augment.padding."),
    ],
)
def test_a_mistake_on_the_command_line_is_named_in_one_line(tmp_path, monkeypatch, config, argument, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        commands.train(["--config", config, "--workdir", str(tmp_path / "run"), argument])
    line = str(end.value)  # Python prints it to stderr and exits with 1
    assert line.startswith(f"error: {message}") and "\n" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command, message",
    [
        ("compare .", ". holds no config.json: give the folder of a run."),
        ("compare runs/half --png=w.png", "runs/half holds no summary.json: give the folder of a finished"),
        ("compare gs://bucket/run", "RUN gs://bucket/run: gs:// is not a local path"),
        ("compare runs/$_$ --png=", "--png is empty: give a path."),
        ("compare runs/$_$ --png=runs", "--png runs is a folder; the picture is a PNG: give a FILE.png."),
        ("compare runs/$_$ --png=w.jpg", "--png w.jpg is a file with the ending '.jpg'; the picture is a PNG"),
        ("report nowhere --out=out", "nowhere is not a folder; give folders of runs."),
        ("report empty --out=out", "no run in empty: a run folder holds a config.json."),
        ("report runs --out=file/out", "--out file/out: "),
        ("report runs --out=empty", "empty/psi.png cannot be written ("),
        ("robustness runs/half", "no run is finished; give folders"),
        ("robustness runs --images=-1", "--images must be at least 0, found -1."),
        ("evaluate .", ". is not a run folder: it has no config.json."),
        ("data_check empty", "empty contains no images; allowed are .jpeg"),
        ("data_check no", "no is not a folder;"),
    ],
)
def test_what_a_command_cannot_use_is_named_in_one_line(tmp_path, write_run, capsys, monkeypatch, command, message):
    write_run("$_$", "plain", 0, 0.94)
    write_run("half", "plain")
    (tmp_path / "empty" / "psi.png").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    name, *arguments = command.split()
    assert getattr(commands, name)(arguments) == 2
    output, line = capsys.readouterr()
    assert line.startswith(f"error: {message}") and line.count("\n") == 1
    assert (output, sorted(tmp_path.rglob("*"))) == ("", before), "before any work"


def config_file(folder, text):
    path = folder / "mine.py"
    path.write_text(f"from wcjax.config import default_config\nimport ml_collections\n\n{text}")
    return str(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return 1 / 0", ", line 5: ZeroDivisionError: division by zero."),
        ("def get_config():\n    raise SystemExit('no')", ", line 5: SystemExit: no."),
        ("def get_config():\n    return open('/nowhere')", ", line 5: FileNotFoundError: [Errno 2] No such file"),
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


@pytest.mark.parametrize("values, dropout", [([], 0.5), (["0.25", "None"], None), (["None", "0.25"], 0.25)])
def test_dropout_may_be_none_and_the_last_override_counts(tmp_path, values, dropout):
    path = config_file(tmp_path, "def get_config():\n    c = default_config()\n    c.dropout = 0.5\n    return c")
    assert read_config_file(path, [f"--config.dropout={value}" for value in values]).dropout == dropout


def test_overrides_are_split_off_in_all_their_spellings():
    argv = ["train.py", "--config", "FILE", "--config.epochs=3", "--config.seed", "7", "--config.augment.flip", "more"]
    rest, overrides = split_overrides([*argv, "--noconfig.augment.flip", "--workdir=x", "--config.model"])
    assert rest == ["train.py", "--config", "FILE", "more", "--workdir=x"]
    flips = ["--config.augment.flip", "--noconfig.augment.flip"]
    assert overrides == ["--config.epochs=3", "--config.seed=7", *flips, "--config.model"]
