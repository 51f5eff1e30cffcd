"""Pictures of an agent's training."""

from __future__ import annotations

from pathlib import Path

from panning.foundation.pictures import figure, png
from panning.foundation.records import read_records


def reward_picture(path: Path) -> bytes:
    """Mean episode reward of each rollout, and the advantage over the fixed policy if the reward trains networks."""
    records = sorted(read_records(path), key=lambda record: record.config["rollout"])
    with_advantage = any("advantage" in record.metrics for record in records)
    whole, panels = figure(2 if with_advantage else 1, width=4.6, height=3.2)
    for axes, key, label in zip(
        panels,
        ("reward", "advantage"),
        ("mean episode reward", "advantage over the fixed policy, points"),
        strict=False,
    ):
        scale = 100.0 if key == "advantage" else 1.0
        points = [(r.config["rollout"] + 1, scale * r.metrics[key]) for r in records if key in r.metrics]
        axes.plot([x for x, _ in points], [y for _, y in points])
        axes.set_xlabel("rollout")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    return png(whole)
