"""The training's part of a policy's card: the tasks, the cost, and the range of each observation that the agent saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.agents.config import AgentConfig
from panning.agents.starting import Began
from panning.episode.shelf import Card, Training
from panning.foundation.config import dump_config, load_config
from panning.foundation.errors import PolicyError
from panning.foundation.files import write_atomic
from panning.foundation.records import RunRecord

Seen = list[list[float]]


def widened(seen: Seen | None, observations: NDArray[np.float32]) -> Seen:
    """The lowest and the highest of each observation, with those of a rollout.

    >>> import numpy as np
    >>> from panning.agents.cards import widened
    >>> widened([[0.0, 0.5], [0.0, 0.5]], np.array([[0.25, -1.0], [0.75, 0.0]], np.float32))
    [[0.0, 0.75], [-1.0, 0.5]]

    Args:
        seen: a pair for each observation; None before the first rollout.
        observations: [rounds, observations].
    """
    lows, highs = observations.min(0), observations.max(0)
    if seen is not None:
        before = np.array(seen, np.float32).T
        lows, highs = np.minimum(lows, before[0]), np.maximum(highs, before[1])
    return [[round(float(low), 6) + 0.0, round(float(high), 6) + 0.0] for low, high in zip(lows, highs, strict=True)]


def seen_by(facts: dict[str, Any], n_observations: int, path: Path) -> Seen | None:
    """The ranges that the facts of a checkpoint hold; None where an older version has not kept them.

    Raises:
        PolicyError: if they are no ranges.
    """
    if "seen" not in facts:
        return None
    try:
        ranges = np.array(facts["seen"], np.float64)
    except (TypeError, ValueError):
        ranges = np.empty(0)
    if ranges.shape != (n_observations, 2) or not np.isfinite(ranges).all():
        raise PolicyError(f"{path} holds damaged ranges of observations; delete it to train again.")
    return [[float(low), float(high)] for low, high in ranges]


def write_card(config: AgentConfig, records: Sequence[RunRecord], seen: Seen | None, path: Path, began: Began) -> None:
    """Write the card of a trained policy; what people have written on one that is there stays.

    Args:
        records: of the rollouts.
        seen: None where the training began before it was kept.
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
    ranges = {} if seen is None else dict(zip(env.observations, map(tuple, seen), strict=True))
    card = before.model_copy(update={"trained": trained, "seen": ranges})
    write_atomic(path, dump_config(card))
