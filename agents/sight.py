"""The range of each observation that an agent saw in its training: outside of it, its network's output is no choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.episode.shelf import Bounds
from panning.foundation.errors import PolicyError

Seen = list[list[float]]


def widened(seen: Seen | None, observations: NDArray[Any]) -> Seen:
    """The lowest and the highest of each observation, with those of a rollout.

    >>> import numpy as np
    >>> from panning.agents.sight import widened
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


def named(observations: Sequence[str], seen: Seen | None) -> dict[str, Bounds]:
    """The ranges by the observations' names, as a policy keeps them; none where they are not known.

    >>> from panning.agents.sight import named
    >>> named(["progress"], [[0.0, 0.75]])
    {'progress': (0.0, 0.75)}
    """
    return {} if seen is None else {name: (low, high) for name, (low, high) in zip(observations, seen, strict=True)}


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
