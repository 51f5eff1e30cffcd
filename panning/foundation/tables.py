"""Tables as Markdown and CSV, how figures stand in them, and the sentence that says where they come from."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panning.foundation.files import write_atomic
from panning.foundation.text import in_markdown


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table. Cells are text (``in_markdown``): no name in one ends it, or is more than a name.

    Examples:
        >>> from panning.foundation.tables import markdown_table
        >>> print("\\n".join(markdown_table(["method", "n"], [["SNIP", 5]])))
        | method | n |
        | --- | --- |
        | SNIP | 5 |
    """
    lines = (columns, ["---"] * len(columns), *rows)
    return ["| " + " | ".join(in_markdown(str(cell)) for cell in line) + " |" for line in lines]


def csv_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The text of a CSV file: numbers to seven digits, None and NaN as nothing.

    Examples:
        >>> from panning.foundation.tables import csv_table
        >>> csv_table(["method", "mean", "n", "std"], [["SNIP", 0.1 + 0.2, 1, float("nan")]])
        'method,mean,n,std\\nSNIP,0.3,1,\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *([_plain(cell) for cell in row] for row in rows)])
    return text.getvalue()


def _plain(cell: object) -> object:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.7g}"
    return cell


def write_table(folder: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write ``table.md`` and ``table.csv``."""
    write_atomic(folder / "table.md", "\n".join(markdown_table(columns, rows)) + "\n")
    write_atomic(folder / "table.csv", csv_table(columns, rows))


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, one a seed, in percent; "failed" where there is none.

    Examples:
        >>> from panning.foundation.tables import percent
        >>> percent([0.91, 0.93])
        '92.00 ± 1.41'
    """
    if not values:
        return "failed"
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def origin(environment: Mapping[str, Any]) -> str:
    """Commit, versions and hardware of a record's environment as a sentence; what it does not say is None.

    Examples:
        >>> from panning.foundation.tables import origin
        >>> origin({"commit": "8bbafeb", "versions": {"torch": "2.14.1"}, "hardware": {"processor": "AMD", "cores": 2}})
        'Commit 8bbafeb; torch 2.14.1; AMD, 2 cores.'
    """
    versions, hardware = (
        part if isinstance(part := environment.get(name), dict) else {} for name in ("versions", "hardware")
    )
    installed = ", ".join(f"{package} {version}" for package, version in versions.items())
    cores = f"{hardware.get('processor')}, {hardware.get('cores')} cores"
    if "accelerator" in hardware:
        cores += f", {hardware['accelerator']}"
    return f"Commit {environment.get('commit')}; {installed}; {cores}."
