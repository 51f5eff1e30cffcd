"""``panning methods``: every method, before training and during it, with its paper, its needs and its measured cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from panning.cli import options, output
from panning.foundation.tables import markdown_table

app = typer.Typer()

#: The network of the cost column, under the benchmark's name.
COST_MODEL = "resnet32x2"


@app.command()
def methods(
    as_json: options.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/methods.md.")] = False,
) -> None:
    """List every method that finds a mask before training, and every one that moves masks during it.

    The cost is that of the whole method in forward and backward passes of one scoring batch (panning bench speed).
    """
    from panning.measure.methods import dynamic_rows, method_rows

    rows, dynamic = method_rows(), dynamic_rows()
    if as_json:
        output.print_json(
            [{"when": when, **row} for when, part in (("before", rows), ("during", dynamic)) for row in part]
        )
    elif markdown:
        print("\n".join([*method_table(rows), "", *dynamic_table(dynamic)]))
    else:
        output.print_table(
            ["name", "method", "paper", "rounds", "needs", "cost"],
            [[row["name"], row["label"], row["paper"], row["rounds"], _needs(row), _cost(row)] for row in rows],
        )
        for row in rows:
            if row["released"]:
                output.note(f"{row['name']} --released: {row['released']}")
        output.say("")
        output.print_table(*_dynamic_lines(dynamic))


#: How masked weights behave between two moves, in a few words.
HOLDS = {"zero": "zero", "feedback": "learn, aside", "free": "learn"}


def _dynamic_lines(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for row in rows:
        start = row["start"] + (f" at {row['start_density']:g}" if row["start_density"] else "")
        what = "filters, neurons" if row["prunes_units"] else "weights"
        lines.append([row["name"], f"{row['label']}: {row['paper']}", start, what, HOLDS[row["masked_weights"]]])
    return ["name", "method", "starts from", "prunes", "masked weights"], lines


def dynamic_table(rows: list[dict[str, Any]]) -> list[str]:
    """The documentation's table of methods that move masks, in Markdown."""
    columns, lines = _dynamic_lines(rows)
    return markdown_table(columns, [[f"`{name}`", *rest] for name, *rest in lines])


def method_table(rows: list[dict[str, Any]]) -> list[str]:
    """The documentation's table of methods, in Markdown."""
    lines = [
        [f"`{row['name']}`", f"{row['label']}: {row['paper']}", row["rounds"], _needs(row), _cost(row)] for row in rows
    ]
    return markdown_table(["name", "method", "rounds", "needs", "cost"], lines)


def _needs(row: dict[str, Any]) -> str:
    if not row["needs_data"]:
        return "nothing"
    return "data and labels" + (", second order" if row["second_order"] else "")


def _cost(row: dict[str, Any]) -> str:
    passes = row["cost"].get(COST_MODEL)
    return f"{passes:.2g}" if passes is not None and passes < 100 else f"{passes:.0f}" if passes is not None else "-"
