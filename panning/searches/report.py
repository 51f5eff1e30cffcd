"""What a search leaves for people beside its masks: the report of a benchmark, and what was chosen on the way there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panning.agents.pictures import reward_picture
from panning.agents.rollouts import read_rollouts
from panning.compare import report as grid_report
from panning.compare.cells import CHOSEN
from panning.compare.contrasts import corrected
from panning.compare.lines import NUMBERS, numbers
from panning.compare.tables import Table
from panning.compare.text import judged
from panning.foundation.files import write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.pictures import save
from panning.foundation.tables import csv_table
from panning.foundation.text import in_markdown
from panning.searches.candidates import agent_itself
from panning.searches.run import SearchResult


def write_report(result: SearchResult, out: Path, formats: Sequence[str] = ("png",)) -> Table:
    """The files of ``panning bench report`` (``report.md``, ``rows.csv``, pictures), ``table.md`` (the short table, what won
    and what it cost), ``table.csv`` (its numbers), ``result.json`` and, if an agent was trained, the picture ``reward``;
    returns the table.

    Args:
        formats: of the pictures.
    """
    (table,) = grid_report.write_report(result.cells, out, formats)
    numbered = [[*numbers(row), sum(table.cost(row))] for row in (*table.rows, table.dense)]
    write_atomic(out / "table.csv", csv_table([*NUMBERS, "cost_epochs"], numbered))
    write_atomic(out / "table.md", markdown(result, table))
    write_atomic(out / "result.json", json.dumps(as_json(result, table), indent=2))
    if (rollouts := out / "agent" / "rollouts.jsonl").exists():
        env = result.config.agent_config().env
        save(reward_picture(read_rollouts(rollouts), env), out / "reward", formats)
    return table


def markdown(result: SearchResult, table: Table) -> str:
    """The short table with what one must know to read it."""
    lines = [
        f"# {in_markdown(result.config.name)}", "",
        f"{in_markdown(table.title)}: test accuracy in percent after the last of {table.epochs:g} epochs, mean ± standard "
        f"deviation over {len(result.config.seeds)} seeds; the dense network has {table.dense.spread('test_accuracy')}. "
        "Everything was chosen on the validation part, which orders the lines, too; the test part was read once, at the "
        "end. Differences below are in points on the test part, with their interval of 95 % and the paired t-test, "
        "Holm-corrected at each density; all others are in report.md, plain numbers in table.csv and rows.csv.", "",
        grid_report.short_markdown(table),
        *(f"- {in_markdown(sentence)}" for sentence in (*choices(result, table), *result.ended)), "",
        "Cost in dense epochs (passes over the training part): "
        + ", ".join(f"{name} {epochs:.1f}" for name, epochs in cost_epochs(result).items()) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


def choices(result: SearchResult, table: Table) -> list[str]:
    """A text for each density: what the search chose, and how surely the test part tells it from the best baseline and
    from the agent.

    The best baseline is the best on the validation part of those with other masks than the choice.
    """
    way, start = agent_itself(result.config.agent), result.config.recipe.start
    agent = way.label + ("" if start is None or way.chooses_start else f", {start.label}")
    return [_choice(table, density, agent) for density in result.winners]


def _choice(table: Table, density: float, agent: str) -> str:
    rows = table.at(density)
    choice = next(row for row in rows if row.method == CHOSEN)
    baseline = next((r for r in rows if r.method not in (CHOSEN, agent) and r.outcome != choice.outcome), None)
    itself = next(row for row in rows if row.method == agent)
    others = [(f"the best baseline on validation, {baseline.method}", baseline)] if baseline is not None else []
    others += [(f"the agent itself, {agent}", itself)]
    found = corrected([(choice, row) for _, row in others])
    told = [f"Minus {name}: {judged(one)}." for (name, _), one in zip(others, found, strict=True)]
    n, name = len(choice.good), choice.label.removeprefix(f"{CHOSEN}: ")
    test = f"{choice.spread('test_accuracy')} % on test, {n} seed{'s' if n > 1 else ''}"
    return f"At density {density:g} the search chose {name}: {test}. {' '.join(told)}"


def cost_epochs(result: SearchResult) -> dict[str, float]:
    """Passes over the training part by stage; a cell that a winner and a baseline share was trained once."""
    final = {cell.key: cell.metrics.get("images_seen", 0) for cell in result.cells}
    images = {"agent": result.agent_images, "search": result.search_images, "final trainings": sum(final.values())}
    return {stage: n / result.n_train for stage, n in images.items()}


def as_json(result: SearchResult, table: Table) -> dict[str, Any]:
    """Everything that the report shows, unrounded."""
    return {
        "name": result.config.name,
        "winners": {
            f"{density:g}": {"name": way.label, **way.model_dump(mode="json")}
            for density, way in result.winners.items()
        },
        "rows": grid_report.as_json([table]),
        "rungs": result.rungs,
        **({"ended": list(result.ended)} if result.ended else {}),
        "cost_epochs": cost_epochs(result),
        "environment": environment_info(),
    }
