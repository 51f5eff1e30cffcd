"""The action space of a search as plain numbers, for samplers that choose actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panning.agents.config import EpisodeSpec
from panning.jobs.by import Actions
from panning.jobs.ways import ReplayedEpisode, Way
from panning.searches.samplers.base import Setting

#: The entry that says whether dead weights are repaired, beside those of the actions.
ALL_ALIVE = "all-alive"
#: Decimals of an entry, so that records hold what the sampler meant.
DECIMALS = 6


@dataclass(frozen=True)
class Space:
    """What an episode's actions are made of: one action for all rounds, or one for each.

    >>> from panning.agents.config import EpisodeSpec
    >>> from panning.searches.samplers.space import Space
    >>> space = Space(EpisodeSpec(n_rounds=2, action={"indices": ["snip"]}), per_round=False)
    >>> space.names
    ('snip', 'step', 'spread', 'all-alive')
    >>> way = space.way([1.0, 0.0, -1.0, 0.5])
    >>> way.by.actions, way.all_alive
    (((1.0, 0.0, -1.0),), True)

    Attributes:
        episode: the action's form and entries, and the number of rounds.
        per_round: whether actions may differ from round to round.
    """

    episode: EpisodeSpec
    per_round: bool = False

    @classmethod
    def of(cls, setting: Setting) -> Space:
        """The space of a sampler."""
        return cls(setting.episode, setting.per_round)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all entries: those of the action, for each round if they may differ, then ``ALL_ALIVE``."""
        entries = self.episode.action.dimensions
        if not self.per_round:
            return (*entries, ALL_ALIVE)
        return (*(f"round {n}: {entry}" for n in range(1, self.episode.n_rounds + 1) for entry in entries), ALL_ALIVE)

    @property
    def choices(self) -> tuple[int, ...] | None:
        """Of an action of the form ``pick``, the number of choices of each entry; None where entries lie in [-1, 1]."""
        action = self.episode.action
        if action.form == "mix":
            return None
        return (*action.choices * (self.episode.n_rounds if self.per_round else 1), 2)

    def way(self, values: Sequence[float]) -> Way:
        """The episode that entries stand for. The last of them repairs dead weights from 0 on, or if it is 1 in ``pick``."""
        *entries, repair = (round(float(value), DECIMALS) for value in values)
        n = len(self.episode.action.dimensions)
        actions = tuple(tuple(entries[i : i + n]) for i in range(0, len(entries), n))
        return self.replay(actions, repair >= (0.0 if self.choices is None else 0.5))

    def replay(self, actions: Actions, all_alive: bool) -> Way:
        """An episode by its actions, one a round; further rounds repeat the last."""
        n_rounds, action = self.episode.n_rounds, self.episode.action
        by = ReplayedEpisode(policy="actions", actions=actions, n_rounds=n_rounds, action=action)
        return Way(by=by, all_alive=all_alive)

    def draw(self, rng: np.random.Generator) -> Way:
        """An episode of uniform entries."""
        if self.choices is not None:
            return self.way(rng.integers(0, self.choices).tolist())
        return self.way(rng.uniform(-1.0, 1.0, len(self.names)).tolist())
