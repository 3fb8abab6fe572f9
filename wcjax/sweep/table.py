"""The table of a sweep while it runs: redrawn in place on a terminal, elsewhere lines for what has changed."""

import collections
import contextlib
import shutil
import sys
import time
from typing import NamedTuple

from wcjax import run_folder
from wcjax.errors import InputError
from wcjax.system.streams import Output
from wcjax.training.display import LINE_SECONDS, progress_text

COLUMNS = ("run", "state", "epoch", "val accuracy", "note")
STATES = ("running", "lost", "failed", "finished", "to do")  # in the order of the rows on a terminal


class Row(NamedTuple):
    """A run in the table."""

    state: str  # one of STATES
    epoch: str = ""  # the last finished epoch; of a running run, the one in its progress.json
    accuracy: str = ""  # on val
    note: str = ""


def table_rows(outcome, out) -> dict[str, Row]:
    """{name: its row} from the `study.Outcome` of the runs in the folder `out`.

    Files that cannot be read do not matter here: a run that needs them reports the error.
    """
    rows = {}
    for name, config in outcome.plan.configs.items():
        lines, progress = [], None
        with contextlib.suppress(InputError):
            lines = run_folder.read_lines(out / name)
            if name in outcome.running:
                progress = run_folder.read(out / name, "progress.json")
        epoch = f"{len(lines)}/{config.epochs}"
        if name in outcome.accuracy:
            rows[name] = Row("finished", epoch, f"{outcome.accuracy[name]:.2%}")
        elif name in outcome.failed:
            rows[name] = Row("failed", epoch, note=outcome.failed[name])
        elif name in outcome.lost:
            rows[name] = Row("lost", epoch, note=outcome.lost[name])
        elif name in outcome.running:
            note = ""
            if progress:
                epoch, note = f"{progress['epoch']}/{config.epochs}", "  ".join(progress_text(progress)[1:])
            rows[name] = Row("running", epoch, f"{lines[-1]['val_accuracy']:.2%}" if lines else "", note)
        else:
            rows[name] = Row("to do", epoch if lines else "")
    return rows


class LiveTable:
    """Prints the rows of runs, {name: Row}, to a stream, by default standard output.

    If the stream is not a terminal, a line is printed when the state of a run changes, and at most once a minute when
    only the numbers of a running run change. If nobody reads the stream any more, the sweep continues without a table.
    """

    def __init__(self, names, stream=None, clock=time.monotonic):
        self._output, self._clock = Output(stream or sys.stdout), clock
        self._printed = dict.fromkeys(names, (Row("to do"), -LINE_SECONDS))  # {name: (row, time)} of the last lines
        self._drawn = 0  # lines on the terminal that the next table replaces
        self._waiting = False

    def show(self, rows: dict[str, Row], last: bool = False) -> None:
        """Prints the rows, or the changes. last: prints the whole table, which is not replaced."""
        self._waiting = False
        if last or self._output.is_live:
            self._draw(rows, last)
        else:
            for name, row in rows.items():
                (printed, then), now = self._printed[name], self._clock()
                is_due = row.state == "running" and now - then >= LINE_SECONDS
                if row.state != printed.state or (row != printed and is_due):
                    self._output.write(f"{name}: {', '.join(cell for cell in row if cell)}\n")
                    self._printed[name] = row, now

    def wait(self) -> None:
        """Says, once until the next table, that the database does not answer."""
        if not self._waiting:
            self._output.write("waiting for the sweep's database; another process may keep it locked\n")
            self._drawn += self._output.is_live
        self._waiting = True

    def _draw(self, rows, last):
        names = list(rows)
        omitted = 0
        if not last:  # running runs come first, and no more rows are drawn than the terminal holds
            names.sort(key=lambda name: STATES.index(rows[name].state))
            room = max(1, shutil.get_terminal_size().lines - 6)
            omitted = max(0, len(names) - room)
            names = names[:room]
        counts = collections.Counter(row.state for row in rows.values())
        lines = [f"{len(rows)} runs: " + ", ".join(f"{counts[x]} {x}" for x in STATES if counts[x]), ""]
        lines += aligned([COLUMNS, *((name, *rows[name]) for name in names)])
        if omitted:
            lines.append(f"... and {omitted} more")
        if not last:  # a line wider than the terminal would take two
            width = shutil.get_terminal_size().columns - 1
            lines = [line[:width] for line in lines]
        erase = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._output.write(erase + "\n".join(lines) + "\n")
        self._drawn = 0 if last else len(lines)


def aligned(rows) -> list[str]:
    """The lines of a Markdown table, in which all columns but the last, which may be long, have an even width."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    head, *others = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return [head, f"| {' | '.join('-' * max(3, width) for width in widths)} |", *others]
