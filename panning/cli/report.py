"""What single-mask and single-training commands leave in their folder beside the mask: record, table, picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panning.foundation.files import write_atomic
from panning.foundation.pictures import figure, png
from panning.foundation.records import RunRecord
from panning.foundation.tables import write_table

if TYPE_CHECKING:
    from panning.masks.masks import Masks


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``records.jsonl`` with this record alone."""
    write_atomic(folder / "records.jsonl", json.dumps(asdict(record), sort_keys=True) + "\n")


def write_mask_report(folder: Path, masks: Masks, record: RunRecord) -> None:
    """Write record, table and ``layers.png`` of one mask."""
    write_record(folder, record)
    densities = masks.layer_densities()
    counts = masks.layout.counts(masks.flat)
    write_table(folder, ["layer", "kept", "density"], [
        [name, count, f"{density:.6f}"] for (name, density), count in zip(densities.items(), counts, strict=True)
    ])  # fmt: skip
    names = [name.removesuffix(".weight") for name in densities]
    draw_lines(
        folder / "layers.png", {"density of the layer": [max(d, 1e-6) for d in densities.values()]}, names, log=True
    )


def draw_lines(path: Path, lines: dict[str, list[float]], ticks: Sequence[Any], *, log: bool = False) -> None:
    """Draw a picture with one panel for each line."""
    whole, panels = figure(len(lines), width=4.6, height=3.4)
    for axes, (label, values) in zip(panels, lines.items(), strict=True):
        axes.plot(range(len(values)), values, "o-", markersize=3)
        axes.set_xticks(range(len(ticks)), list(ticks), rotation=60, fontsize=7)
        axes.set_ylabel(label)
        if log:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    write_atomic(path, png(whole))
