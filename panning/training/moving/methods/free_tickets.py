"""FreeTickets (Liu et al. 2022, arXiv 2106.14568): several sparse networks for less than one dense training.

EDST, the efficient form: one sparse training explores at the full learning rate, exchanging weights as RigL does. Then come
``n_members`` refinements, each with a small and a smaller rate; between two of them most of the weights are exchanged at
once, which leaves the place where the last member settled. The members predict together, by the mean of their
probabilities (``panning.training.evaluate_mean``). DST, the other form, is any row's method run with several seeds.

NOTE: within a refinement the mask stays, and no exchange comes before the first one. A member is the network of the epoch of
its refinement that was best on the validation part, as in the released code; other methods are judged by their last epoch.
The recipe's learning rate is that of the exploration, and its schedule is not looked at.
"""

from __future__ import annotations

from typing import ClassVar

from panning.foundation.errors import MaskError
from panning.scoring.problem import Problem
from panning.training.moving.abilities import GivesSeveralNetworks, LooksAtGradients, SetsLearningRate
from panning.training.moving.method import Clock, Count, Dynamic, Move, Share, ShareBelowOne, View
from panning.training.moving.selection import exchange, gradient, shares
from panning.training.recipe import Recipe


class EDST(LooksAtGradients, SetsLearningRate, GivesSeveralNetworks, Dynamic):
    """Explores as RigL does, then refines several networks one after the other.

    Attributes:
        exploration: share of the training.
        fraction: of a layer's weights that a move exchanges while exploring.
        escape: and between two members.
        refinement_rates: of the first and the second half of a refinement, as shares of the recipe's learning rate.
    """

    keeps_count: ClassVar[bool] = True
    defers: ClassVar[bool] = True

    every: Count | None = 1000
    n_members: Count = 3
    exploration: ShareBelowOne = 1 / 3
    fraction: Share = 0.5
    escape: Share = 0.8
    refinement_rates: tuple[Share, Share] = (0.1, 0.01)

    def _explored(self, n_steps: int) -> int:
        return round(self.exploration * n_steps)

    def _refinement(self, step: int, n_steps: int) -> tuple[int, float]:
        """The member that step ``step``, counted from 0, refines, and how far it is, in [0, 1)."""
        explored = self._explored(n_steps)
        place = (step - explored) * self.n_members / (n_steps - explored)
        member = min(int(place), self.n_members - 1)
        return member, place - member

    def check(self, clock: Clock, problem: Problem) -> None:
        refinement = (clock.n_steps - self._explored(clock.n_steps)) / self.n_members
        if refinement < 1 or (1 < clock.epoch < clock.n_steps and refinement < clock.epoch):
            raise MaskError(
                f"EDST's {self.n_members} refinements have {refinement:.1f} steps each, and a member is chosen among the "
                f"ends of epochs of {clock.epoch} steps: train longer, or for fewer members."
            )
        super().check(clock, problem)

    def learning_rate(self, recipe: Recipe, step: int, n_steps: int) -> float:
        if step < self._explored(n_steps):
            return recipe.learning_rate
        return recipe.learning_rate * self.refinement_rates[self._refinement(step, n_steps)[1] >= 0.5]

    def acts(self, clock: Clock) -> bool:
        if clock.step < self._explored(clock.n_steps):
            return super().acts(clock)
        return not clock.is_over and self._is_boundary(clock)

    def _is_boundary(self, clock: Clock) -> bool:
        """Whether the next step begins a member other than the first."""
        last = self.member(clock)
        return last is not None and last != self._refinement(clock.step, clock.n_steps)[0]

    def move(self, view: View) -> Move:
        fraction = self.escape if self._is_boundary(view.clock) else self.fraction
        return exchange(view, shares(fraction, view.mask, view.layout), grow_by=gradient(view))

    def member(self, clock: Clock) -> int | None:
        if clock.step <= self._explored(clock.n_steps):
            return None
        return self._refinement(clock.step - 1, clock.n_steps)[0]
