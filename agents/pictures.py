"""Pictures of an agent's training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from panning.agents.config import EnvSpec
from panning.foundation.pictures import GREY, OURS, Picture, figure, in_style, legend
from panning.foundation.records import RunRecord

#: Figure of a rollout -> the title of its panel, and what it is multiplied by.
PANELS = {
    "reward": ("reward of an episode", 1.0),
    "score": ("score beside fixed policies", 1.0),
    "advantage": ("accuracy above the fixed policy's, points", 100.0),
    "effective_density": ("effective density at the end", 1.0),
}


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and of those up to ``width`` before it: what an agent has become is not read from what comes.

    Examples:
        >>> from panning.agents.pictures import smoothed
        >>> smoothed([0.0, 2.0, 4.0, 6.0], width=1)
        [0.0, 1.0, 3.0, 5.0]
    """
    return [statistics.fmean(values[max(0, i - width) : i + 1]) for i in range(len(values))]


@in_style
def reward_picture(records: Sequence[RunRecord], env: EnvSpec) -> Picture:
    """Means over the episodes of each rollout, and their running mean over a tenth of the training.

    Args:
        records: of the rollouts, in their order (``read_rollouts``).
        env: what the agent is trained on, for the title.
    """
    shown = {name: row for name, row in PANELS.items() if any(name in record.metrics for record in records)}
    width = max(len(records) // 10, 2)
    tasks = " and ".join(f"{task.model_name} on {task.label or task.data}" for task in env.tasks)
    if env.population is not None:
        tasks = " and ".join(filter(None, [tasks, f"{env.population.n} drawn tasks"]))
    whole, panels = figure(f"{tasks}: the agent's training (PPO)", max(len(shown), 1), width=3.4, height=2.7)
    for axes, (name, (title, scale)) in zip(panels, shown.items(), strict=False):
        points = [(r.config["rollout"] + 1, scale * r.metrics[name]) for r in records if name in r.metrics]
        rollouts, values = [x for x, _ in points], [y for _, y in points]
        few = len(values) < 20
        axes.plot(
            rollouts, values, "o" if few else "-", color=GREY, markersize=3, linewidth=0.8, label="mean of a rollout"
        )
        axes.plot(rollouts, smoothed(values, width), color=OURS, label=f"running mean of {width + 1}")
        axes.set(xlabel="rollout", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(whole, panels)
    columns: list[str] = ["rollout", "episodes", *shown]
    rows: list[list[Any]] = [[r.config["rollout"] + 1, *(r.metrics.get(name) for name in columns[1:])] for r in records]
    return Picture(whole, columns, rows)
