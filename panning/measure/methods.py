"""Every method as a row of plain values: its paper, what it needs and its measured cost."""

from __future__ import annotations

from typing import Any

from panning.measure.report import method_costs, shipped_records
from panning.pruners import PRUNERS
from panning.training import DYNAMICS


def method_rows() -> list[dict[str, Any]]:
    """One JSON-able entry for each row of ``PRUNERS``; ``cost`` maps a model to passes."""
    costs = method_costs(shipped_records("speed"))
    return [
        {
            "name": name, "label": row.label, "paper": row.paper, "rounds": row.pruner.n_rounds,
            "needs_data": row.needs_data, "second_order": row.second_order, "released": row.departure,
            "cost": costs.get(name, {}),
        }
        for name, row in PRUNERS.items()
    ]  # fmt: skip


def dynamic_rows() -> list[dict[str, Any]]:
    """One JSON-able entry for each row of ``DYNAMICS``, with its numbers."""
    return [
        {
            "name": name, "label": row.label, "paper": row.paper, "start": row.start, "start_density": row.start_density,
            "masked_weights": row.method.holds, "prunes_units": row.method.prunes_units,
            "options": row.method.model_dump(mode="json"),
        }
        for name, row in DYNAMICS.items()
    ]  # fmt: skip
