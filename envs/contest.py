"""How well a mask trains beside fixed policies on the same network, batches and order: a figure that cases have in common.

The best of the fixed policies has 0, and the one in the middle of them -1: the distance between the two is the unit. So a
case in which masks differ by little weighs as much as one in which they differ by far.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from panning.episode.levers import Levers
from panning.foundation.config import DISTINCT, Config

#: Fixed policies that are each first on some networks: SynFlow, SNIP's places in SynFlow's quotas, and random masks, which a
#: gain start helps without norms and harms with them.
STANDARD_RIVALS = (
    Levers(mix="magnitude", quotas="erk", spread=1.0),
    Levers(mix="magnitude", quotas="synflow", spread=1.0),
    Levers(mix="synflow", n_rounds=10),
    Levers(mix="snip", quotas="synflow"),
    Levers(mix="magnitude", quotas="erk + synflow", spread=1.0, start="gain"),
)


class Contest(Config):
    """Fixed policies that a mask's accuracy is compared with, and the scale of the comparison.

    >>> from panning.envs.contest import Contest
    >>> contest = Contest(rivals=[{"mix": "snip"}, {"mix": "synflow"}, {"quotas": "erk"}])
    >>> contest.score(0.8125, [0.5, 0.625, 0.75]), contest.score(0.125, [0.5, 0.625, 0.75])
    (0.5, -3.0)

    Attributes:
        rivals: the fixed policies, each one action by its levers.
        floor: the least unit, in accuracy: smaller differences are mostly chance.
        most: a score is at most this, and at least minus this.
    """

    rivals: Annotated[tuple[Levers, ...], Field(min_length=1, max_length=20), DISTINCT] = STANDARD_RIVALS
    floor: Annotated[float, Field(gt=0, le=1)] = 0.02
    most: Annotated[float, Field(gt=0)] = 3.0

    def score(self, accuracy: float, rivals: Sequence[float]) -> float:
        """The accuracy above the best rival's, in units of the distance between the best and the median of the rivals."""
        best = max(rivals)
        unit = max(self.floor, best - statistics.median(rivals))
        return min(max((accuracy - best) / unit, -self.most), self.most)
