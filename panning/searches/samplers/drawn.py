"""Samplers that draw actions: at random, and near the best candidate so far."""

from __future__ import annotations

from panning.foundation.seeding import numpy_rng
from panning.jobs.by import Actions
from panning.jobs.ways import Way
from panning.searches.samplers.base import Result, Sampler, Setting
from panning.searches.samplers.space import DECIMALS, Space

#: By how much an entry in [-1, 1] is changed, as the standard deviation.
STEP = 0.4


class Random(Sampler):
    """Uniform actions, with or without all-alive repair."""

    def __init__(self, setting: Setting) -> None:
        self.space = Space.of(setting)
        self.rng = numpy_rng(setting.seed, "random sampler")

    def ask(self) -> Way | None:
        return self.space.draw(self.rng)

    def tell(self, result: Result) -> None:
        pass


class Local(Random):
    """The best episode so far, whoever asked for it, with one lever or index weight changed, or with the other repair.

    In every round by the same, or in one round where actions may differ. Before there is an episode, actions are uniform.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._best: tuple[float, ...] = ()
        self._actions: Actions = ()
        self._all_alive = False

    def tell(self, result: Result) -> None:
        here = (float(result.rung), result.value)
        if result.failure is None and result.actions and here > self._best:
            self._best, self._actions, self._all_alive = here, result.actions, result.way.all_alive is True

    def ask(self) -> Way | None:
        if not self._best:
            return super().ask()
        action, n_rounds = self.space.episode.action, self.space.episode.n_rounds
        n = len(action.dimensions)
        entry = int(self.rng.integers(0, n + 1))
        if entry == n:
            return self.space.replay(self._actions, not self._all_alive)
        rows = [list(self._actions[min(number, len(self._actions) - 1)]) for number in range(n_rounds)]
        changed = [rows[int(self.rng.integers(0, n_rounds))]] if self.space.per_round else rows
        if action.form == "pick":
            n_choices = action.choices[entry]
            value = (changed[0][entry] + self.rng.integers(1, n_choices)) % n_choices if n_choices > 1 else 0.0
            for row in changed:
                row[entry] = float(value)
        else:
            by = self.rng.normal(0.0, STEP)
            for row in changed:
                row[entry] = round(_reflected(row[entry] + by), DECIMALS)
        return self.space.replay(tuple(map(tuple, rows)), self._all_alive)


def _reflected(value: float) -> float:
    """An entry that left [-1, 1], as far within: at a bound, half of the changes would else be none."""
    if abs(value) > 1.0:
        value = (2.0 if value > 0 else -2.0) - value
    return max(-1.0, min(1.0, value))
