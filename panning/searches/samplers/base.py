"""What a sampler is, is given and is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from panning.agents.config import EpisodeSpec
from panning.jobs.by import Actions
from panning.jobs.ways import Method, Way


@dataclass(frozen=True)
class Setting:
    """What a sampler samples for.

    Attributes:
        density: each has a sampler of its own.
        episode: the search's agent's: the action space and the rounds.
        baselines: of the search.
        n_samples: the episodes of the agent that the search's config asks for.
        seed: of all that the sampler draws.
        per_round: whether actions may differ from round to round.
    """

    density: float
    episode: EpisodeSpec
    baselines: Sequence[Method] = ()
    n_samples: int = 0
    seed: int = 0
    per_round: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a candidate in a rung.

    Attributes:
        way: the candidate, as it was asked for.
        rung: from 1.
        accuracy: of the validation part, mean over the rung's seeds; 0 if it failed.
        value: what the search ranks by: the accuracy less what its multiply-adds cost (``cost_weight``); if it failed, 0 or,
            where that is less, the least that any candidate of the density was worth before.
        cost: of its short trainings in this rung, in dense epochs.
        failure: why there is no accuracy: no path through the network, a mask that was tried before, an error.
        is_repeated: whether its mask was tried before, so that it says nothing on what the candidate is worth.
        actions: of the episode that made its mask on the first network; empty for other candidates.
    """

    way: Way
    rung: int
    accuracy: float
    value: float
    cost: float = 0.0
    failure: str | None = None
    actions: Actions = ()
    is_repeated: bool = False


class Sampler(Protocol):
    """Proposes candidates."""

    def ask(self) -> Way | None:
        """The next candidate; None if there is none any more."""

    def tell(self, result: Result) -> None:
        """Take in what became of a candidate, whoever asked for it."""
