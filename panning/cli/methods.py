"""``panning methods``: every method that prunes before training, with its paper, its needs and its measured cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from panning.cli import options, output

app = typer.Typer()

#: The network of the cost column, and what the benchmark calls it.
COST_MODEL = "resnet32x2"


@app.command()
def methods(
    as_json: options.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False,
) -> None:
    """List every method that finds a mask before training.

    The cost is that of the whole method in forward and backward passes of one scoring batch (panning bench speed).
    """
    rows = method_rows()
    if as_json:
        output.print_json(rows)
    elif markdown:
        print("\n".join(method_table(rows)))
    else:
        output.print_table(
            ["name", "method", "paper", "rounds", "needs", "cost"],
            [[row["name"], row["label"], row["paper"], row["rounds"], _needs(row), _cost(row)] for row in rows],
        )
        for row in rows:
            if row["released"]:
                output.note(f"{row['name']} --released: {row['released']}")


def method_rows() -> list[dict[str, Any]]:
    """One JSON-able entry for each row of ``PRUNERS``; ``cost`` maps a model to passes."""
    from panning.benchmark.measured import method_costs
    from panning.pruners import PRUNERS

    costs = method_costs()
    return [
        {
            "name": name, "label": row.label, "paper": row.paper, "rounds": row.pruner.n_rounds,
            "needs_data": row.needs_data, "second_order": row.second_order, "released": row.departure,
            "cost": costs.get(name, {}),
        }
        for name, row in PRUNERS.items()
    ]  # fmt: skip


def method_table(rows: list[dict[str, Any]]) -> list[str]:
    """The README's table of methods, in Markdown."""
    lines = ["| name | method | rounds | needs | cost |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{row['name']}` | {row['label']}: {row['paper']} | {row['rounds']} | {_needs(row)} | {_cost(row)} |"
        for row in rows
    ]
    return lines


def _needs(row: dict[str, Any]) -> str:
    if not row["needs_data"]:
        return "nothing"
    return "data and labels" + (", second order" if row["second_order"] else "")


def _cost(row: dict[str, Any]) -> str:
    passes = row["cost"].get(COST_MODEL)
    return f"{passes:.2g}" if passes is not None and passes < 100 else f"{passes:.0f}" if passes is not None else "-"
