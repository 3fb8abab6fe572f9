"""Commands work with any standard streams: closed ones, dumb terminals, and ones that cannot show Ψ."""

import io
import subprocess
import sys

import pytest

from wcjax import commands
from wcjax.system.streams import Output, use_ascii_forms


@pytest.mark.parametrize(
    "encoding, text",
    [("ascii", "Psi'(v) 1 +- 2 alpha x \\xfc \\u65e5 \\udcff"), ("latin-1", "Psi'(v) 1 ± 2 alpha × ü \\u65e5 \\udcff")],
)
def test_characters_that_a_terminal_lacks_are_spelt_out(tmp_path, monkeypatch, encoding, text):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    use_ascii_forms()
    for stream in (sys.stdout, sys.stderr):
        print("Ψ′(v) 1 ± 2 α × ü 日 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding) == text + "\n"
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert commands.compare([str(tmp_path / "Ψ")]) == 2, "as every command does"
    sys.stderr.flush()
    assert sys.stderr.buffer.getvalue().startswith(f"error: {tmp_path}/Psi holds no config.json".encode())


USE_STREAMS = """import subprocess, sys
from wcjax.commands import command

@command
def main(argv):
    sys.stdout.write(sys.stdin.read())
    sys.stderr.write("as tqdm does")
    subprocess.run("echo output && echo errors >&2", shell=True, check=True)
    return 7

sys.exit(main())"""


def test_a_command_runs_with_closed_standard_streams():
    shell = '"$0" -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, sys.executable, USE_STREAMS]).returncode == 7


@pytest.mark.parametrize("term, is_live", [("xterm", True), ("dumb", False)])
def test_lines_are_redrawn_unless_the_terminal_is_dumb(monkeypatch, term, is_live):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", term)
    assert Output(Terminal()).is_live == is_live
