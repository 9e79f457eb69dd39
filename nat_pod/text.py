"""What outputs are made of: tables for a terminal and for Markdown, counted nouns, wrapped lines, and progress."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "  ", *, numbers: bool = False) -> str:
    """Columns as wide as their widest cell, no trailing blanks.  numbers: those of numbers alone stand to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [numbers and all(cell.replace(",", "").isdigit() for cell in column[1:]) for column in columns]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as GitHub's Markdown has it."""
    return "\n".join(_markdown_row(row) for row in (header, ["---"] * len(header), *rows))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# GitHub refuses comments of more than 65,536 characters; `diff` may have eight lists, and thousands of flows in one.
_MOST_ROWS = 60


def folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table behind its title, which opens it; cut where it is too long for a comment on GitHub."""
    lines = [f"<details><summary>{title}</summary>", "", markdown_table(header, rows[:_MOST_ROWS])]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"and {len(rows) - _MOST_ROWS} more, which the same command without `--markdown` lists"]
    return "\n".join([*lines, "", "</details>"])


def count(number: int, noun: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Sequence[str], most: int) -> str:
    """`a, b and 3 more`: the first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def wrapped(text: str) -> str:
    """A paragraph of 80 columns, indented by two, its further lines by four; no word is broken."""
    return "\n".join(wrapped_lines(text, 80, "    ", "  "))


def wrapped_lines(text: str, width: int, rest: str = "", first: str = "") -> list[str]:
    """Lines of at most `width`, unless one word is longer; the first begins with `first`, all others with `rest`."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


class Progress:
    """Lines with the time since the beginning, on standard error: standard output is the result.

    minutes: `[  1:02]` for what takes some, in place of `[ 62.0 s]`.
    """

    def __init__(self, *, minutes: bool = False) -> None:
        self._begin, self._minutes = time.monotonic(), minutes

    def __call__(self, words: str) -> None:
        """Say what begins now."""
        passed = time.monotonic() - self._begin
        clock = f"{int(passed) // 60:3}:{int(passed) % 60:02}" if self._minutes else f"{passed:5.1f} s"
        print(f"[{clock}] {words}", file=sys.stderr, flush=True)
