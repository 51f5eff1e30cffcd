"""When a method acts: until a share of the training, or along a density that falls."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from panning.foundation.config import Name
from panning.masks.masks import n_kept_at
from panning.scoring.schedules import SCHEDULES
from panning.training.moving.method import Clock, Dynamic, Share, ShareAboveZero, View

#: A density that falls in fewer moves than this is no ramp.
FEWEST_FALLS = 3


class DropAndGrow(Dynamic):
    """A method that exchanges weights for as many others, and comes to rest.

    Attributes:
        until: share of the training after which masks stay.
    """

    keeps_count: ClassVar[bool] = True

    until: ShareAboveZero = 1.0

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.progress < self.until


class Ramp(Dynamic):
    """A method whose density falls along a schedule.

    Attributes:
        begin_at, end_at: shares of the training between which the density falls from that of the start to the final one.
        schedule: a row of ``SCHEDULES``.
    """

    begin_at: Share = 0.0
    end_at: ShareAboveZero = 0.75
    schedule: Annotated[str, Name(SCHEDULES, "schedule")] = "cubic"

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.begin_at > self.end_at:
            raise ValueError(f"begin_at {self.begin_at:g} is beyond end_at {self.end_at:g}")
        return self

    def ends(self, clock: Clock) -> int:
        """The step at which the final density is reached."""
        return max(1, round(self.end_at * clock.n_steps))

    def acts(self, clock: Clock) -> bool:
        """Every ``every`` steps, and at the schedule's end."""
        return super().acts(clock) or clock.step == self.ends(clock)

    def is_abrupt(self, clock: Clock) -> bool:
        """Whether the density falls in fewer than ``FEWEST_FALLS`` moves."""
        begins, ends = round(self.begin_at * clock.n_steps), self.ends(clock)
        falls = (step for step in self.move_steps(clock) if begins < step <= ends)
        return len(list(islice(falls, FEWEST_FALLS))) < FEWEST_FALLS

    def density_at(self, view: View) -> float:
        """start (f + (1 - f) (1 - t)^3) with f = final / start, for the cubic schedule (Zhu and Gupta 2017)."""
        first, last = round(self.begin_at * view.clock.n_steps), self.ends(view.clock)
        step = view.clock.step
        if step >= last:
            return view.density
        if step <= first:
            return view.start
        return view.start * SCHEDULES[self.schedule](step - first, last - first, view.density / view.start)

    def n_kept(self, view: View) -> int:
        """The number of weights after this move."""
        return n_kept_at(self.density_at(view), view.layout.n_prunable)
