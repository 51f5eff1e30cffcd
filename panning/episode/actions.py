"""Actions: the one place that says what an agent chooses in a round, as numbers, and what they mean.

Two forms over the same choice (index weights, then the levers):

- ``mix``: a vector in [-1, 1]: one entry per index, then one per lever.
- ``pick``: whole numbers: which index, then which of each lever's ``choices``.

The levers are the step and the spread, and after them those that a spec switches on: the share of each source of quotas,
the balance, the start. A lever that is off leaves actions, policies and records as if there were none.

The *step* s in [-1, 1] says how much to cut. With n rounds left, the fraction (1/n)^(1-s) of the way to the target, in
log density, is gone in this round: s = 0 cuts the same factor in every round, 1 goes to the target at once, -1 hesitates.
In the last round n is 1 and every step reaches the target.

*Quotas* blend the layers' counts in the log: each source has the share that its entry says, and the index mix's own counts
have what is left. Shares of more than 1 in all are divided by their sum, so that nothing is left to the mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from panning.foundation.config import DISTINCT, Grown, Name
from panning.foundation.errors import PanningError, PolicyError
from panning.foundation.registry import origins
from panning.pruners import PRUNERS, check_source
from panning.pruners.quotas import QUOTAS
from panning.pruners.rounds import RoundAction
from panning.scoring.indices import INDICES
from panning.scoring.mixing import Combination

#: What ``pick`` chooses from.
PICK_STEPS = (-0.5, 0.0, 0.5, 1.0)
PICK_SPREADS = (0.0, 0.5, 1.0)
PICK_SHARES = (0.0, 0.5, 1.0)
#: A weight below this is 0, so that an index can be left out and is then not computed. Shares are 0 and 1 likewise.
OFF = 0.05
#: What stands before the source in the name of its lever.
QUOTAS_OF = "quotas: "


@dataclass(frozen=True)
class Lever:
    """What an action says beside the weights of indices, by one entry.

    Attributes:
        choices: the values of which ``pick`` names one by its number.
        is_share: ``mix`` has a share in [0, 1]: 0 at -1, 1 at 1. The step is the entry itself.
    """

    name: str
    choices: tuple[float, ...]
    is_share: bool = True

    def value(self, entry: float) -> float:
        """What an entry of ``mix`` stands for."""
        if not self.is_share:
            return entry
        share = (entry + 1.0) / 2.0
        return 0.0 if share < OFF else 1.0 if share > 1.0 - OFF else share

    def entry(self, value: float) -> float:
        """The entry of ``mix`` that stands for a value."""
        return 2.0 * value - 1.0 if self.is_share else value

    def nearest(self, value: float) -> int:
        """The number of the choice that is nearest to a value."""
        return min(range(len(self.choices)), key=lambda i: abs(self.choices[i] - value))


STEP = Lever("step", PICK_STEPS, is_share=False)
SPREAD = Lever("spread", PICK_SPREADS)
BALANCE = Lever("balance", PICK_SHARES)
#: Below one half the kept weights start as drawn, else at the gain of their kept inputs.
START = Lever("start", (0.0, 1.0))
STARTS_OF_EPISODES = ("none", "gain")


class ActionSpec(Grown):
    """The form of an agent's actions, the indices that they weigh, and the levers that they move.

    >>> from panning.episode.actions import ActionSpec
    >>> ActionSpec(indices=("snip",), quotas=("erk", "synflow"), start=True).dimensions
    ('snip', 'step', 'spread', 'quotas: erk', 'quotas: synflow', 'start')

    Attributes:
        combination: how ``mix`` combines the indices.
        quotas: sources that the layers' counts may be blended with: rows of ``QUOTAS`` (``erk``), or methods (``synflow``:
            as many as in its mask). Their counts are those at the episode's target, and in proportion before.
        balance: whether the share of each layer's weights that is dealt out evenly over its units is chosen.
        start: whether the start of the kept weights is chosen, none or ``gain``; the last round's choice holds.
    """

    later = frozenset({"quotas", "balance", "start"})

    form: Literal["mix", "pick"] = "mix"
    indices: Annotated[tuple[Annotated[str, Name(INDICES, "index")], ...], Field(min_length=1)] = (
        "magnitude",
        "snip",
        "grasp",
        "synflow",
    )
    combination: Combination = "sum"
    quotas: Annotated[tuple[str, ...], DISTINCT] = ()
    balance: bool = False
    start: bool = False

    @field_validator("indices")
    @classmethod
    def _can_be_mixed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if INDICES[name].signed:
                raise ValueError(f"index '{name}' has negative scores and cannot be mixed")
        if len(set(names)) < len(names):
            raise ValueError("an index is named twice")
        return names

    @field_validator("quotas")
    @classmethod
    def _have_counts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for name in names:
                check_source(name)
        except PanningError as error:
            raise ValueError(str(error)) from None
        return names

    @property
    def levers(self) -> tuple[Lever, ...]:
        """The entries of an action after those of the indices."""
        sources = [Lever(QUOTAS_OF + name, PICK_SHARES) for name in self.quotas]
        return (STEP, SPREAD, *sources, *([BALANCE] if self.balance else []), *([START] if self.start else []))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The name of each entry of an action."""
        return (*(self.indices if self.form == "mix" else ("index",)), *(lever.name for lever in self.levers))

    @property
    def choices(self) -> tuple[int, ...]:
        """For ``pick``: the number of choices of each entry."""
        return (len(self.indices), *(len(lever.choices) for lever in self.levers))

    @property
    def plugins(self) -> dict[str, str]:
        """The installed packages whose rows the actions use (``registry.origins``)."""
        return origins((INDICES, self.indices), (PRUNERS, [name for name in self.quotas if name not in QUOTAS]))

    def encode(
        self, weights: Mapping[str, float], step: float = 0.0, spread: float = 0.0, *,
        quotas: Mapping[str, float] | None = None, balance: float = 0.0, start: str = "none",
    ) -> NDArray[np.float32]:  # fmt: skip
        """The action nearest to the given choice; ``decode`` gives it back.

        Args:
            weights: index -> weight in [0, 1]. ``pick`` takes the index with the largest.
            quotas: source -> share of the layers' counts, in [0, 1].
        """
        if missing := [name for name in weights if weights[name] > 0 and name not in self.indices]:
            raise PolicyError(f"Index {missing} is not among the action's indices {list(self.indices)}.")
        asked = {STEP.name: step, SPREAD.name: spread, BALANCE.name: balance, START.name: float(start == "gain")}
        asked |= {QUOTAS_OF + name: share for name, share in (quotas or {}).items()}
        names = [lever.name for lever in self.levers]
        if missing := [name for name, value in asked.items() if value and name not in names]:
            raise PolicyError(f"Lever {missing} is not among the action's levers {names}.")
        values = [(lever, asked.get(lever.name, 0.0)) for lever in self.levers]
        if self.form == "pick":
            index = max(range(len(self.indices)), key=lambda i: weights.get(self.indices[i], 0.0))
            return np.array([index, *(lever.nearest(value) for lever, value in values)], np.float32)
        mixed = [2.0 * weights.get(name, 0.0) - 1.0 for name in self.indices]
        return np.array([*mixed, *(lever.entry(value) for lever, value in values)], np.float32)

    def decode(
        self, action: NDArray[np.generic], density: float, target_density: float, rounds_left: int
    ) -> RoundAction:
        """What ``action`` means at ``density`` with ``rounds_left`` rounds to go, this one included.

        Raises:
            PolicyError: for an action of another length, or outside its bounds.
        """
        values = np.asarray(action, dtype=np.float64).reshape(-1)
        if values.shape != (len(self.dimensions),) or not np.isfinite(values).all():
            raise PolicyError(
                f"An action needs {len(self.dimensions)} finite entries {self.dimensions}, given {values}."
            )
        levers = self.levers
        if self.form == "pick":
            picked = values.astype(int)
            if any(not 0 <= choice < n for choice, n in zip(picked, self.choices, strict=True)):
                raise PolicyError(f"A pick must lie below {self.choices}, given {picked.tolist()}.")
            weights = {self.indices[picked[0]]: 1.0}
            chosen = {lever.name: lever.choices[n] for lever, n in zip(levers, picked[1:], strict=True)}
        else:
            values = values.clip(-1.0, 1.0)
            halves = (values + 1.0) / 2.0
            weights = {n: float(v) for n, v in zip(self.indices, halves, strict=False) if v >= OFF}
            weights = weights or dict.fromkeys(self.indices, 1.0)  # all off says nothing: weigh them alike
            entries = values[len(self.indices) :].tolist()
            chosen = {lever.name: lever.value(entry) for lever, entry in zip(levers, entries, strict=True)}
        fraction = (1.0 / rounds_left) ** (1.0 - chosen[STEP.name])
        density = target_density if fraction >= 1.0 else density * (target_density / density) ** fraction
        shares = {name: share for name in self.quotas if (share := chosen[QUOTAS_OF + name]) > 0}
        return RoundAction(
            weights, density, chosen[SPREAD.name], combination=self.combination,
            quotas={name: share / max(1.0, sum(shares.values())) for name, share in shares.items()},
            balance=chosen.get(BALANCE.name, 0.0),
            start=STARTS_OF_EPISODES[chosen[START.name] >= 0.5] if self.start else None,
        )  # fmt: skip
