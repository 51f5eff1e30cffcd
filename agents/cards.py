"""The training's part of a policy's card: the tasks, the cost, and the range of each observation that the agent saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from panning.agents.config import AgentConfig
from panning.agents.starting import Began
from panning.episode.shelf import Bounds, Card, Training
from panning.foundation.config import dump_config, load_config
from panning.foundation.files import write_atomic
from panning.foundation.records import RunRecord


def write_card(
    config: AgentConfig, records: Sequence[RunRecord], seen: Mapping[str, Bounds], path: Path, began: Began
) -> None:
    """Write the card of a trained policy; what people have written on one that is there stays.

    Args:
        records: of the rollouts.
        seen: as the policy keeps it; empty where the training began before it was kept.
        began: what the trying of actions has cost before the rollouts.
    """
    before = load_config(Card, path) if path.is_file() else Card()
    env, population = config.env, config.env.population
    tasks, targets = env.every_task, [density for of_task in env.targets for density in of_task]
    networks = [*(task.model_name for task in env.tasks)]
    if population is not None:
        networks += [name for name in ("mlp", "plain", "residual") if name not in population.without]
    trained = Training(
        n_tasks=len(tasks), networks=tuple(dict.fromkeys(networks)), data=tuple(dict.fromkeys(str(t.data) for t in tasks)),
        without=() if population is None else population.without,
        densities=(min(targets), max(targets)), n_rollouts=len(records),
        n_episodes=began.n_episodes + round(sum(record.metrics.get("episodes", 0) for record in records)),
        images_seen=began.images_seen + round(sum(record.metrics.get("images_seen", 0) for record in records)),
        commit=records[-1].environment.get("commit") if records else None,
    )  # fmt: skip
    card = before.model_copy(update={"trained": trained, "seen": dict(seen)})
    write_atomic(path, dump_config(card))
