"""Breaks the code on purpose, one break of breaks.txt at a time, and reports the breaks that no test notices.

    python -m tests.breaks                       every break of the list
    python -m tests.breaks --only core models    those of these sections, or of these names

Each break is made in a copy of the tracked files, where the tests that must notice it run. The exit code is 1 if they
pass or cannot run, or if the text that the break replaces does not occur exactly once.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).parent.parent
LIST = pathlib.Path(__file__).with_suffix(".txt")


class Break(NamedTuple):
    """In `file` the text `old` becomes `new`, and one of `tests` must fail."""

    section: str
    name: str
    file: str
    tests: list[str]
    old: str
    new: str


def read(text: str) -> list[Break]:
    """The breaks of a list in the form that breaks.txt describes."""
    breaks, section = [], None
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        if lines[0].startswith("# "):
            section = lines[0][2:]
        elif section:
            name, file, tests = lines[0].split(" | ")
            old, new = ("\n".join(line[2:] for line in lines[1:] if line[0] == sign) for sign in "-+")
            breaks.append(Break(section, name, file, tests.split(), old, new))
    return breaks


def copy_tracked(folder: pathlib.Path) -> None:
    """Copies the files that git tracks, as they are in the working tree."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in files.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def result_of(change: Break, folder: pathlib.Path) -> str:
    """'noticed', or what is wrong. The copy in folder is as before afterwards."""
    path = folder / change.file
    text = path.read_text(encoding="utf-8")
    if text.count(change.old) != 1:
        return f"the text occurs {text.count(change.old)} times in {change.file}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *change.tests]
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    pytest = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path.write_text(text, encoding="utf-8")
    if pytest.returncode > 1:
        return f"the tests could not run: {pytest.stdout[-500:]}"
    return "noticed" if pytest.returncode else "NOT NOTICED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="sections or breaks")
    only = set(parser.parse_args().only)
    chosen = [x for x in read(LIST.read_text(encoding="utf-8")) if not only or only & {x.section, x.name}]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        copy_tracked(pathlib.Path(folder))
        for change in chosen:
            results.append(result_of(change, pathlib.Path(folder)))
            print(f"{change.section:<12}{change.name:<60}{results[-1]}", flush=True)
    print(f"{results.count('noticed')} of {len(results)} breaks were noticed.")
    return 0 if results and set(results) == {"noticed"} else 1


if __name__ == "__main__":
    sys.exit(main())
