"""Tables on a terminal, and pictures with the numbers beside them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from panning.cli import output


def test_a_table_that_is_too_wide_stacks_spreads_and_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["method", "mean rank", "0.1", "0.05"]
    rows = [
        ["search's choice: GraSP + all-alive", "1.0", "93.20 ± 1.07", "84.1"],
        ["SNIP", "2.0", "9.00 ± 10.07", "failed"],
    ]

    def shown(width: int) -> list[str]:
        screen = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
        monkeypatch.setattr(output, "Console", lambda: screen)
        output.print_table(columns, rows)
        return screen.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert len(shown(100)) == 6  # four of them are rules and headings
    assert shown(47) == [
        "┏━━━━━━━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━┳━━━━━━━━┓",
        "┃                   ┃ mean ┃         ┃        ┃",
        "┃ method            ┃ rank ┃     0.1 ┃   0.05 ┃",
        "┡━━━━━━━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━╇━━━━━━━━┩",
        "│ search's choice:  │  1.0 │   93.20 │   84.1 │",
        "│ GraSP + all-alive │      │  ± 1.07 │        │",
        "│ SNIP              │  2.0 │    9.00 │ failed │",
        "│                   │      │ ± 10.07 │        │",
        "└───────────────────┴──────┴─────────┴────────┘",
    ]
