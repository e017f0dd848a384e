"""Where output goes: results to stdout as text or JSON, progress and remarks to stderr.

Tables fit a terminal by leaving out the columns that matter least, then by cutting the first; in a pipe they are whole.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_GAP = 2
_SHORTEST_NAME = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A column; numbers are right-aligned. On narrow terminals the highest `rank` is left out first; 0 always stays."""

    title: str
    right: bool = False
    rank: int = 0


class Output:
    """The output of a command."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._file = sys.stdout

    def aside_only(self) -> None:
        """Send everything to stderr from now on: stdout is for the bytes of a file."""
        self._file = sys.stderr
        self.console = self.aside

    @cached_property
    def console(self) -> Console:
        """Of stdout."""
        return Console(highlight=False, soft_wrap=True)

    @cached_property
    def aside(self) -> Console:
        """Of stderr."""
        return Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line of the result; not with JSON."""
        if not self.as_json:
            self.console.print(Text(text, style=style))

    def remark(self, text: str) -> None:
        """Print a remark to stderr."""
        self.aside.print(Text(text))

    def document(self, found: Any) -> None:
        """Print the result as JSON."""
        self._file.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        self._file.flush()

    def line(self, found: Any) -> None:
        """Print one of many results as a line of JSON."""
        self._file.write(json.dumps(found, ensure_ascii=False) + "\n")
        self._file.flush()

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; not with JSON."""
        if self.as_json:
            return
        for number, line in enumerate(lay_out(columns, rows, self.width)):
            self.console.print(Text(line, style="bold" if number == 0 else ""))

    def sections(self, columns: Sequence[Column], sections: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Print tables under titles, with common columns and no headings; not with JSON."""
        if self.as_json:
            return
        width = None if self.width is None else self.width - _GAP
        lines = iter(lay_out(columns, [row for rows in sections.values() for row in rows], width)[1:])
        for title, rows in sections.items():
            self.say(f"\n{title}", "bold")
            for _ in rows:
                self.console.print(Text(" " * _GAP + next(lines)))

    @property
    def width(self) -> int | None:
        """The width of the terminal; None in a pipe."""
        if os.environ.get("COLUMNS", "").isdigit():
            return int(os.environ["COLUMNS"])
        return self.console.width if self.console.is_terminal else None

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str = "pages") -> Iterator[Callable[[int], None]]:
        """Show a progress bar on stderr, if that is a terminal; the block is given a function that advances it."""
        if not self.aside.is_terminal or self.as_json:
            yield lambda _: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        done = TextColumn("{task.completed:,.0f} " + unit)
        parts = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
        with Progress(*parts, console=self.aside, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The lines of a table, heading first, none longer than `width` if possible."""
    shown = list(range(len(columns)))
    wide = [max(cell_len(cell) for cell in (column.title, *cells)) for column, cells in _columns(columns, rows)]
    while width is not None and _total(wide, shown) > width:
        ranked = [at for at in shown if columns[at].rank]
        if not ranked:
            over = _total(wide, shown) - width
            wide[shown[0]] = max(min(wide[shown[0]], _SHORTEST_NAME), wide[shown[0]] - over)
            break
        shown.remove(max(ranked, key=lambda at: columns[at].rank))
    lines = []
    for cells in ([column.title for column in columns], *rows):
        fitted = [_fit(cells[at], wide[at], columns[at].right) for at in shown]
        lines.append((" " * _GAP).join(fitted).rstrip())
    return lines


def _columns(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[tuple[Column, list[str]]]:
    return ((column, [row[at] for row in rows]) for at, column in enumerate(columns))


def _total(wide: Sequence[int], shown: Sequence[int]) -> int:
    return sum(wide[at] for at in shown) + _GAP * (len(shown) - 1)


def _fit(cell: str, width: int, right: bool) -> str:
    length = cell_len(cell)
    if length > width:
        return set_cell_size(cell, width - 1) + "…"
    space = " " * (width - length)
    return space + cell if right else cell + space
