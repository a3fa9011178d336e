"""metrics.csv in the folder of the run: a row per log line, for spreadsheets and pandas."""
import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.cli.console import notice
from utils.errors import counted, shown
from utils.files.whole_file import WholeFile, append_whole
from utils.training.trackers.tracker import Outcome, Session, Tracker

_FIRST = ["step", "epoch"]


class CSV(Tracker):
    """metrics.csv beside metrics.jsonl: a row per log line, a column per tag.

    The columns are step, epoch, and the tags in the order in which they first occur. Columns keep
    their places; a new one is added at the right, and is empty in the rows before. Values that are
    no finite numbers are empty.
    """

    aliases = ("csv",)
    rewinds = True

    def start(self, session: Session):
        """Continue metrics.csv, without the rows after session.step, which will come again."""
        self.path = Path(os.path.realpath(session.folder / "metrics.csv"))
        self.columns = list(_FIRST)
        if not self.path.is_file():
            if session.step:
                session.say(f"csv: {self.path.name} begins after step {session.step}; "
                            "metrics.jsonl has the steps before")
            return
        rows = _rows(self.path.read_bytes())
        if rows and rows[0][:len(_FIRST)] == _FIRST and len(set(rows[0])) == len(rows[0]):
            self.columns = rows.pop(0)
        steps = [_step_of(row, self.columns) for row in rows]
        kept = [row for row, step in zip(rows, steps, strict=True)
                if step is not None and step <= session.step]
        strange = [row for row, step in zip(rows, steps, strict=True) if step is None]
        if strange:
            aside = self.path.with_name(f"{self.path.name}.unreadable")
            append_whole(aside, _text(strange))
            notice(f"{shown(self.path)}: {counted(len(strange), 'line')} of another form moved to "
                   f"{shown(aside.name)}")
        self._rewrite(kept)

    def log(self, values: dict[str, float], step: int, epoch: int | None):
        """Append a row; a value with a new tag adds a column first."""
        new = [tag for tag in values if tag not in self.columns]
        if new:
            rows = _rows(self.path.read_bytes())[1:] if self.path.is_file() else []
            before = self.columns
            self.columns = [*before, *new]
            try:
                self._rewrite(rows)
            except OSError:
                self.columns = before
                raise
        row: dict[str, object] = {**values, "step": step, "epoch": epoch}
        append_whole(self.path, _text([[_cell(row.get(column)) for column in self.columns]]))

    def best(self, values: dict[str, float], step: int):
        """The rows of the validations have them."""

    def close(self, outcome: Outcome, text: str):
        """Nothing is left to write."""

    def _rewrite(self, rows):
        """Replace the file by the present columns and these rows, with empty cells at their end."""
        padded = [[*row, *[""] * (len(self.columns) - len(row))] for row in rows]
        with WholeFile(self.path) as temporary:
            temporary.write_bytes(_text([self.columns, *padded]))


def _rows(data: bytes) -> list[list[str]]:
    """The rows of a file. A last line that a kill has cut gets no number of a step."""
    text = data.decode("utf-8", "backslashreplace").replace("\0", "")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    if rows and not text.endswith("\n"):
        rows[-1][0] += " (cut)"
    return rows


def _text(rows: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode("utf-8", "backslashreplace")


def _cell(value):
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(row, columns):
    """The step of a row; None if it is none: it has too few cells, or another first one."""
    return int(row[0]) if len(row) == len(columns) and row[0].isascii() and row[0].isdecimal() \
        and len(row[0]) < 19 else None
