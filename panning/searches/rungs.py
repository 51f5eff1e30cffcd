"""Rungs without stages: asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934) at one density.

A candidate goes on from a rung as soon as it is in the top share of those that were judged there so far. What goes on next
is a pure function of what was judged in which order.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Iterator, Sequence

from panning.searches.trials import Verdict

#: What candidates are sorted by, best first: rank, then the order in which they were asked for.
Place = tuple[float, float, int]


class JudgedRung:
    """The candidates that were judged in one rung.

    Args:
        share: of them that goes on.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.verdicts: dict[int, Verdict] = {}
        self.promoted: set[int] = set()
        self._ranked: list[Place] = []
        self._waiting: list[Place] = []  # a heap of those that may still go on

    def judge(self, number: int, verdict: Verdict) -> None:
        """Take in what was said of a candidate."""
        self.verdicts[number] = verdict
        place = (-verdict.rank[0], -verdict.rank[1], number)
        bisect.insort(self._ranked, place)
        if math.isfinite(place[0]):
            heapq.heappush(self._waiting, place)

    def best_waiting(self) -> int | None:
        """The best candidate that has not gone on."""
        best = self._first()
        return None if best is None else best[2]

    def promotable(self) -> int | None:
        """The best candidate that has not gone on, if it is in the top share; else none is."""
        best = self._first()
        n_top = math.floor(self.share * len(self._ranked))
        return best[2] if best is not None and bisect.bisect_left(self._ranked, best) < n_top else None

    def promote(self, number: int) -> None:
        """Let a candidate go on."""
        self.promoted.add(number)

    def ranked(self) -> Iterator[tuple[int, Verdict]]:
        """All candidates, best first."""
        return ((number, self.verdicts[number]) for *_, number in self._ranked)

    @property
    def best(self) -> int | None:
        """The best candidate, if any did not fail."""
        return self._ranked[0][2] if self._ranked and math.isfinite(self._ranked[0][0]) else None

    def _first(self) -> Place | None:
        while self._waiting and self._waiting[0][2] in self.promoted:
            heapq.heappop(self._waiting)
        return self._waiting[0] if self._waiting else None


class Ladder:
    """All rungs of a density. Numbers of rungs count from 1.

    Args:
        shares: of each rung but the last, which goes on.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.rungs = [JudgedRung(share) for share in (*shares, 0.0)]

    def promotion(self) -> tuple[int, int] | None:
        """A candidate and the rung that it goes on to: the highest rung first."""
        for above in range(len(self.rungs) - 1, 0, -1):
            if (number := self.rungs[above - 1].promotable()) is not None:
                return number, above + 1
        return None

    def last_promotion(self) -> tuple[int, int] | None:
        """Who goes on where the shares let nobody through, once nothing runs and nobody else will come: each rung gets the
        best candidate of the one below."""
        for above in range(1, len(self.rungs)):
            number = self.rungs[above - 1].best_waiting()
            if self.rungs[above].best is None and number is not None:
                return number, above + 1
        return None

    def may_promote(self, number: int, rung: int) -> bool:
        """Whether a candidate was judged in the rung below and is not further yet."""
        below = self.rungs[rung - 2] if 2 <= rung <= len(self.rungs) else None
        return below is not None and number in below.verdicts and number not in below.promoted

    @property
    def best(self) -> tuple[int, int] | None:
        """The best candidate so far and its rung: that of the highest rung in which one did not fail."""
        for height in range(len(self.rungs), 0, -1):
            if (number := self.rungs[height - 1].best) is not None:
                return number, height
        return None
