"""One action by the names of its levers, taken in every round: what a study draws, and what agents are measured by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from panning.episode.actions import OFF, ActionSpec
from panning.episode.episode import Action, run_policy
from panning.episode.policies import Constant
from panning.foundation.config import Config
from panning.foundation.errors import PanningError
from panning.pruners.quotas import QuotaSource
from panning.pruners.rounds import MAX_ROUNDS, PruneResult
from panning.scoring.problem import Problem

#: In ``quotas``: the counts that the index mix itself would give.
OWN = "own"
Share = Annotated[float, Field(ge=0, le=1)]


class Levers(Config):
    """One action for every round of an episode, said by its levers (``panning.episode.actions``).

    >>> from panning.episode.levers import Levers
    >>> levers = Levers(mix="snip + synflow", quotas="0.7 erk + 0.3 own", start="gain")
    >>> levers.spec.dimensions
    ('snip', 'synflow', 'step', 'spread', 'quotas: erk', 'start')
    >>> levers.text
    'snip + synflow; quotas 0.7 erk + 0.3 own; gain start'

    Attributes:
        mix: indices with their shares, as text: ``snip``, ``snip + synflow``, ``0.3 snip + 0.7 synflow``.
        quotas: sources of the layers' counts with their shares in the blend, likewise; ``own`` are the mix's own.
        spread, balance, step: as in an action.
        start: of the kept weights: as drawn, or the gain of their kept inputs.
    """

    n_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    mix: str = "synflow"
    quotas: str = OWN
    spread: Share = 0.0
    balance: Share = 0.0
    step: Annotated[float, Field(ge=-1, le=1)] = 0.0
    start: Literal["none", "gain"] = "none"

    @field_validator("mix", "quotas")
    @classmethod
    def _one_text(cls, given: str) -> str:
        """The same shares are the same text, for records are known by it."""
        try:
            source = QuotaSource.parse(given)
        except PanningError as error:
            raise ValueError(str(error).replace("Quotas", "The shares", 1)) from None
        if (least := min(source.shares.values())) < OFF:
            raise ValueError(f"'{given}' has a share of {least:g}, and an action takes shares below {OFF} for 0")
        return QuotaSource(dict(sorted(source.shares.items()))).text

    @field_validator("spread", "balance")
    @classmethod
    def _is_taken_as_it_is(cls, given: float) -> float:
        if 0 < min(given, 1 - given) < OFF:
            raise ValueError(
                f"{given:g} is taken for {given:.0f} in an action: say {given:.0f}, or keep {OFF} away from it"
            )
        return given

    @model_validator(mode="after")
    def _has_a_spec(self) -> Levers:
        try:
            _ = self.spec
        except PanningError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def spec(self) -> ActionSpec:
        sources = tuple(name for name in QuotaSource.parse(self.quotas).shares if name != OWN)
        return ActionSpec(
            indices=tuple(QuotaSource.parse(self.mix).shares), quotas=sources, balance=self.balance > 0, start=True
        )

    @property
    def text(self) -> str:
        """What is not as by default, in words."""
        said = [
            self.mix,
            *([f"quotas {self.quotas}"] if self.quotas != OWN else []),
            *(f"{name} {value:g}" for name in ("spread", "balance") if (value := getattr(self, name))),
            *([f"{self.n_rounds} rounds"] if self.n_rounds > 1 else []),
            *([f"step {self.step:g}"] if self.step else []),
            *([f"{self.start} start"] if self.start != "none" else []),
        ]
        return "; ".join(said)

    def action(self, spec: ActionSpec) -> Action:
        """The nearest action of a spec.

        Raises:
            PolicyError: if the spec lacks an index or a lever that this action moves.
        """
        shares = QuotaSource.parse(self.mix).shares
        quotas = {name: share for name, share in QuotaSource.parse(self.quotas).shares.items() if name != OWN}
        weights = {name: share / max(shares.values()) for name, share in shares.items()}
        return spec.encode(weights, self.step, self.spread, quotas=quotas, balance=self.balance, start=self.start)

    @property
    def constant(self) -> Constant:
        """The policy of ``spec`` that takes the action."""
        return Constant(self.action(self.spec))

    def mask_of(self, problem: Problem, density: float) -> PruneResult:
        """The mask that the action makes."""
        return run_policy(problem, density, self.constant, self.spec, self.n_rounds)[0]
