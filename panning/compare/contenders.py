"""Contenders of a grid: ways to make masks, as a config names them. One may stand for many rows (``levers``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from panning.compare.drawn import Draws, LeverLevels
from panning.episode.policy_net import load_policy
from panning.episode.shelf import located
from panning.foundation.config import OR_NUMBER
from panning.foundation.errors import ConfigError
from panning.jobs.ways import Agent, Method, Way
from panning.pruners import PLAIN_FORM, PRUNERS, AllAlive
from panning.training.recipe import StartOrNone

#: Keys of other calls -> how a grid says it, for errors.
IN_TASKS = {
    **{f"target_{what}": f"say shares_of: {of} in a task; the grid's densities are then shares of these"
       for what, of in (("macs", "multiply_adds"), ("parameters", "parameters"))},
    **{f"{which}_density": f"bounds stand with their method: {{method: snip, {which}_density: {{'fc*': 0.1}}}}"
       for which in ("min", "max")},
}  # fmt: skip


class Contender(Method):
    """A way to make masks, as a config names it: a row of the tables.

    Attributes:
        method: a row of ``PRUNERS``; or
        policy: an agent's policy file, from the config's folder; or
        levers: one action by its levers, or levels of them of which each is crossed with each (``LeverLevels``); or of which
            some are
        drawn: so many rows, the same for every task, density and seed (``Draws``); or
        dynamic: a row of ``DYNAMICS``, alone or with other numbers: ``{name: rigl, options: {every: 50}}``. Beside a method
            or policy, that makes the first mask.
        all_alive: give the budget of dead weights back, to any layer or ``in_layers``; where masks move, after every move.
        start: of the kept weights (``panning.training.recipe.Start``), in place of the recipe's.
    """

    elsewhere: ClassVar[Mapping[str, str]] = IN_TASKS
    policy: str | None = None
    levers: LeverLevels | None = None
    drawn: Annotated[Draws, OR_NUMBER] | None = None
    all_alive: AllAlive = False
    start: StartOrNone = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("drawn") is not None and given.get("levers") is None:
            raise ValueError(
                "drawn says how many combinations of levers to take: say levers: {mix: [...], quotas: [...]}"
            )
        return {"method": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_way(self) -> Contender:
        if sum(given is not None for given in (self.method, self.policy, self.levers)) > 1:
            raise ValueError("name one of a method, a policy file and levers, not several")
        if self.method is None and (self.policy, self.levers) != (None, None) and self.form != PLAIN_FORM:
            raise ValueError(
                "quotas, place, shape, min_density and max_density go with a method, not with a policy file or levers"
            )
        if self.levers is not None and (self.all_alive or self.start is not None):
            raise ValueError("all_alive and start are levers: say them under levers")
        if self.dynamic is not None and self.all_alive == "in_layers":
            raise ValueError("all_alive: in_layers is for masks that do not move: say true, or leave dynamic out")
        if self.dynamic is not None and self.all_alive and self.dynamic.method.prunes_units:
            raise ValueError(f"'{self.dynamic.name}' prunes whole units: all_alive does not go with it")
        return self

    @property
    def first(self) -> str | None:
        return "the levers" if self.levers is not None else "the policy" if self.policy is not None else super().first

    @property
    def is_control_of_scores(self) -> bool:
        """Whether a control stands around a method that ranks weights, not one that draws them by quotas."""
        return self.control is not None and self.method is not None and bool(PRUNERS[self.method].pruner.indices)

    @property
    def uncontrolled(self) -> Contender:
        return self.model_copy(update={"control": None})

    def ways(self, folder: Path) -> list[tuple[Way, bytes | None]]:
        """The rows of this contender: for each, how jobs make its mask, and the bytes of a policy file if it has one."""
        if self.levers is None:
            return [self.way(folder)]
        return [(way, None) for way in self.levers.ways(self.drawn, self.dynamic, self.members)]

    def way(self, folder: Path) -> tuple[Way, bytes | None]:
        """How jobs make the mask of the one row that a method or a policy file is, and the policy's file."""
        if self.policy is None:
            by = Method(**{name: getattr(self, name) for name in Method.model_fields})
            return Way(by=by, all_alive=self.all_alive), None
        path = located(self.policy, folder)
        net = load_policy(path)
        if net.spec.start and self.start is not None:
            raise ConfigError(f"The policy {self.policy} chooses the start of its masks: leave start out.")
        agent = Agent(
            policy="agent", n_rounds=net.n_rounds, action=net.spec, dynamic=self.dynamic, members=self.members
        )
        return Way(by=agent, all_alive=self.all_alive), path.read_bytes()
