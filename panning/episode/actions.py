"""Actions: the one place that says what an agent chooses in a round, as numbers, and what they mean.

Two forms over the same choice (index weights, step, spread):

- ``mix``: a vector in [-1, 1]: one entry per index, then step, then spread.
- ``pick``: whole numbers: which index, which of ``PICK_STEPS``, which of ``PICK_SPREADS``.

The *step* s in [-1, 1] says how much to cut. With n rounds left, the fraction (1/n)^(1-s) of the way to the target, in
log density, is gone in this round: s = 0 cuts the same factor in every round, 1 goes to the target at once, -1 hesitates.
In the last round n is 1 and every step reaches the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from panning.foundation.config import Config, Name
from panning.foundation.errors import PolicyError
from panning.pruners.rounds import RoundAction
from panning.scoring.indices import INDICES
from panning.scoring.mixing import Combination

#: What ``pick`` chooses from.
PICK_STEPS = (-0.5, 0.0, 0.5, 1.0)
PICK_SPREADS = (0.0, 0.5, 1.0)
#: A weight below this is 0, so that an index can be left out and is then not computed.
OFF = 0.05


class ActionSpec(Config):
    """The form of an agent's actions, and the indices that they weigh.

    Attributes:
        combination: how ``mix`` combines the indices.
    """

    form: Literal["mix", "pick"] = "mix"
    indices: Annotated[tuple[Annotated[str, Name(INDICES, "index")], ...], Field(min_length=1)] = (
        "magnitude",
        "snip",
        "grasp",
        "synflow",
    )
    combination: Combination = "sum"

    @field_validator("indices")
    @classmethod
    def _can_be_mixed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if INDICES[name].signed:
                raise ValueError(f"index '{name}' has negative scores and cannot be mixed")
        if len(set(names)) < len(names):
            raise ValueError("an index is named twice")
        return names

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The name of each entry of an action."""
        return (*self.indices, "step", "spread") if self.form == "mix" else ("index", "step", "spread")

    @property
    def choices(self) -> tuple[int, ...]:
        """For ``pick``: the number of choices of each entry."""
        return (len(self.indices), len(PICK_STEPS), len(PICK_SPREADS))

    def encode(self, weights: Mapping[str, float], step: float = 0.0, spread: float = 0.0) -> NDArray[np.float32]:
        """The action nearest to the given choice; ``decode`` gives it back.

        Args:
            weights: index -> weight in [0, 1]. ``pick`` takes the index with the largest.
        """
        if missing := [name for name in weights if weights[name] > 0 and name not in self.indices]:
            raise PolicyError(f"Index {missing} is not among the action's indices {list(self.indices)}.")
        if self.form == "pick":
            index = max(range(len(self.indices)), key=lambda i: weights.get(self.indices[i], 0.0))
            nearest_step = min(range(len(PICK_STEPS)), key=lambda i: abs(PICK_STEPS[i] - step))
            nearest_spread = min(range(len(PICK_SPREADS)), key=lambda i: abs(PICK_SPREADS[i] - spread))
            return np.array([index, nearest_step, nearest_spread], np.float32)
        mixed = [2.0 * weights.get(name, 0.0) - 1.0 for name in self.indices]
        return np.array([*mixed, step, 2.0 * spread - 1.0], np.float32)

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
        if self.form == "pick":
            picked = values.astype(int)
            if any(not 0 <= choice < n for choice, n in zip(picked, self.choices, strict=True)):
                raise PolicyError(f"A pick must lie below {self.choices}, given {picked.tolist()}.")
            weights = {self.indices[picked[0]]: 1.0}
            step, spread = PICK_STEPS[picked[1]], PICK_SPREADS[picked[2]]
        else:
            values = values.clip(-1.0, 1.0)
            halves = (values + 1.0) / 2.0
            weights = {n: float(v) for n, v in zip(self.indices, halves, strict=False) if v >= OFF}
            weights = weights or dict.fromkeys(self.indices, 1.0)  # all off says nothing: weigh them alike
            step, spread = float(values[-2]), float(halves[-1])
            spread = 0.0 if spread < OFF else 1.0 if spread > 1.0 - OFF else spread
        fraction = (1.0 / rounds_left) ** (1.0 - step)
        density = target_density if fraction >= 1.0 else density * (target_density / density) ** fraction
        return RoundAction(weights, density, spread, combination=self.combination)
