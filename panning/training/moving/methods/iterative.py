"""IMP, iterative magnitude pruning (Frankle and Carbin 2019, arXiv 1803.03635; Frankle et al. 2020, arXiv 1912.05671).

The whole schedule of learning rates is gone through once for each round. The end of a round prunes a share of what is left,
the smallest weights over all layers, and then

- ``weights``: puts the others back to what they were ``rewind_to`` into the first round, with their biases and norms, and
  the schedule, too (the lottery ticket for 0);
- ``rate``: leaves the weights and goes through the schedule again from there (Renda et al. 2020, arXiv 2003.02389);
- ``none``: goes on at a small rate (fine-tuning).

NOTE: every round begins with a fresh optimizer state, that of fine-tuning, too, which the papers do not speak of. The row
``imp_weights`` goes back to the start, as in 2019; a later ``rewind_to``, as in 2020, is in its presets.
"""

from __future__ import annotations

from itertools import count
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from panning.foundation.errors import MaskError
from panning.masks.masks import n_kept_at
from panning.scoring.problem import Problem
from panning.training.moving.abilities import RepeatsSchedule
from panning.training.moving.method import Clock, Dynamic, Move, ShareBelowOne, View
from panning.training.moving.selection import highest, kept_magnitude
from panning.training.recipe import Recipe, learning_rate_at


class IterativeMagnitude(RepeatsSchedule, Dynamic):
    """Prunes by magnitude at the end of each training round.

    Attributes:
        kept_each: share of the weights that a round leaves.
        rewind_to: share of the schedule.
        fine_tuning_rate: with ``none``, of the recipe's learning rate; 0.01 is where two steps of a tenth end.
    """

    defers: ClassVar[bool] = True
    only_prunes: ClassVar[bool] = True

    rewind: Literal["weights", "rate", "none"] = "rate"
    kept_each: Annotated[float, Field(gt=0, le=0.99)] = 0.8
    rewind_to: ShareBelowOne = 0.0
    fine_tuning_rate: PositiveFloat = 0.01

    def _round(self, schedule: int) -> tuple[int, int]:
        """The step of the schedule that rounds after the first begin with, and how many they have."""
        back = round(self.rewind_to * schedule)
        return back, schedule - back

    def check(self, clock: Clock, problem: Problem) -> None:
        if self._round(clock.schedule)[1] < 1:
            raise MaskError(
                f"IMP's rounds have no step left of {clock.schedule} when they rewind to {self.rewind_to:g}."
            )

    def length(self, n_steps: int, start: float, density: float, n_prunable: int) -> int:
        return n_steps + n_rounds(start, density, self.kept_each, n_prunable) * self._round(n_steps)[1]

    def learning_rate(self, recipe: Recipe, step: int, n_steps: int) -> float:
        if step < n_steps:
            return learning_rate_at(recipe, step, n_steps)
        if self.rewind == "none":
            return self.fine_tuning_rate * recipe.learning_rate
        back, length = self._round(n_steps)
        return learning_rate_at(recipe, back + (step - n_steps) % length, n_steps)

    def acts(self, clock: Clock) -> bool:
        length = self._round(clock.schedule)[1]
        return not clock.is_over and clock.step >= clock.schedule and (clock.step - clock.schedule) % length == 0

    def remembers(self, clock: Clock) -> bool:
        return self.rewind == "weights" and clock.step == self._round(clock.schedule)[0]

    def move(self, view: View) -> Move:
        number = 1 + (view.clock.step - view.clock.schedule) // self._round(view.clock.schedule)[1]
        last = n_rounds(view.start, view.density, self.kept_each, view.layout.n_prunable)
        density = view.density if number >= last else view.start * self.kept_each**number
        mask = highest(kept_magnitude(view), n_kept_at(density, view.layout.n_prunable), view.generator)
        return Move(mask, rewind=self.rewind == "weights", restart=True)


def n_rounds(start: float, density: float, kept_each: float, n_prunable: int) -> int:
    """Number of pruning rounds from ``start`` to ``density`` if each keeps the fraction ``kept_each`` of the weights."""
    n_final = n_kept_at(density, n_prunable)
    return next(n for n in count() if int(start * kept_each**n * n_prunable + 0.5) <= n_final)
