"""Where an episode stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.masks.masks import n_kept_at
from panning.masks.selection import n_true
from panning.pruners.rounds import RoundAction
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals


@dataclass(frozen=True, eq=False)
class EpisodeState:
    """A network after some rounds of an episode.

    Attributes:
        mask: flat bool, after ``round_number`` rounds.
        scores: flat, of the last round; None before the first.
        signals: at ``mask``, for the next round's ranking. The same scoring batch serves the whole episode, so that only the
            mask changes the loss.
        alive: flat bool, the alive weights of ``mask``.
        dense_loss, dense_grad_norm: at the dense network: the fixed normalisers of observation and reward.
        last_action: the last round's; None before the first.
        previous_loss, previous_grad_norm: at the mask before the last round.
    """

    problem: Problem
    connectivity: Connectivity
    target_density: float
    n_rounds: int
    mask: Tensor
    signals: Signals
    alive: Tensor
    dense_loss: float
    dense_grad_norm: float
    previous_loss: float
    previous_grad_norm: float
    round_number: int = 0
    scores: Tensor | None = None
    last_action: RoundAction | None = None

    @property
    def rounds_left(self) -> int:
        return self.n_rounds - self.round_number

    @cached_property
    def n_kept(self) -> int:
        return n_true(self.mask)

    @property
    def density(self) -> float:
        return self.n_kept / self.mask.numel()

    @cached_property
    def n_alive(self) -> int:
        return n_true(self.alive)

    @property
    def effective_density(self) -> float:
        return self.n_alive / self.mask.numel()

    @property
    def reached_target(self) -> bool:
        return self.n_kept <= n_kept_at(self.target_density, self.mask.numel())

    @property
    def is_dead(self) -> bool:
        """No path from input to output is left."""
        return self.n_alive == 0
