"""The mean weight that an agent gave each index in a rollout, over all rounds and round by round: listeners are told it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.episode.actions import ActionSpec


def mixed(spec: ActionSpec, actions: NDArray[Any], starts: NDArray[Any]) -> dict[str, Any]:
    """The facts ``weights`` and ``rounds`` of a rollout (``panning.foundation.facts.RolloutFacts``).

    Args:
        actions: [steps, environments, entries of an action].
        starts: whether an episode begins with a step [steps, environments]; the first step begins one.

    Examples:
        >>> import numpy as np
        >>> from panning.agents.mixed import mixed
        >>> from panning.episode.actions import ActionSpec
        >>> actions = np.array([[[1, -1, 0, -1]], [[0, 0, 0, 1]]], float)  # one environment: snip alone, then both alike
        >>> mixed(ActionSpec(indices=("snip", "synflow")), actions, np.array([[1], [0]]))["rounds"][0]
        {'round': 1, 'weights': {'snip': 1.0, 'synflow': 0.0}, 'spread': 0.0}
    """
    n_steps, n_envs = starts.shape
    steps = np.arange(n_steps)[:, None]
    begun = np.maximum.accumulate(np.where(starts.astype(bool), steps, 0), axis=0)
    rounds = (steps - begun + 1).reshape(-1)
    # Weights and spread depend on the action alone, not on the density and the rounds that are left.
    chosen = [spec.decode(action, 1.0, 1.0, 1) for action in actions.reshape(n_steps * n_envs, -1)]
    weights = np.array([[one.weights.get(name, 0.0) for name in spec.indices] for one in chosen])
    spreads = np.array([one.spread for one in chosen])

    def means(which: NDArray[Any]) -> dict[str, float]:
        return dict(zip(spec.indices, weights[which].mean(0).tolist(), strict=True))

    of_rounds = [
        {"round": int(number), "weights": means(rounds == number), "spread": float(spreads[rounds == number].mean())}
        for number in np.unique(rounds)
    ]
    return {"weights": means(rounds > 0), "rounds": of_rounds}
