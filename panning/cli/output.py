"""What commands print: results on stdout, progress on stderr; plain lines wherever there is no terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: Values come from files and data sets, so nothing in them is markup or an emoji code.
OPTIONS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}

Advance = Callable[..., None]


def say(text: str) -> None:
    """A line on stdout."""
    Console().print(text, **OPTIONS)


def note(text: str) -> None:
    """A line on stderr: what is for the reader and not part of the result."""
    Console(stderr=True).print(text, **OPTIONS)


def print_json(value: Any) -> None:
    """A JSON value on stdout, never wrapped or coloured."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout, numbers to the right; without a terminal aligned columns, one line per row at any width."""
    console = Console()
    cells = [[str(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    if console.is_terminal:
        table = Table(header_style="bold")
        for column, to_right in zip(columns, right, strict=True):
            table.add_column(Text(column), justify="right" if to_right else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(padded).rstrip())


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Show how far a command is; the block gets ``advance(n=1, note="")``.

    On a terminal a bar with the time left; elsewhere a line at each full tenth, so that a log stays short.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, description, total) as advance_bar:
            yield advance_bar
        return
    n_done = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal n_done
        before, n_done = n_done, n_done + n
        if total > 0 and n_done * 10 // total > before * 10 // total:
            text = f"{description}: {n_done * 100 // total}% ({n_done} of {total}) {note}"
            console.print(text.rstrip(), **OPTIONS)

    yield advance


@contextmanager
def _bar(console: Console, description: str, total: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda n=1, note="": bar.update(task, advance=n, note=note)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return False
    return True
