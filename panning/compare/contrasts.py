"""Planned comparisons: which rows of a table are compared, and how surely they differ."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from panning.compare.cells import CHOSEN
from panning.compare.rows import Identity, Row, line_label
from panning.compare.statistics import Difference, difference, holm

#: Density -> the row of one method.
ByDensity = dict[float, Row]
Pair = tuple[ByDensity, ByDensity]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A comparison of two methods at the densities that both have: row minus reference.

    Attributes:
        differences: density -> difference, Holm-corrected over the contrasts at that density.
        pooled: the difference of each seed's mean over the densities, Holm-corrected over all contrasts.
    """

    row: ByDensity
    reference: ByDensity
    differences: dict[float, Difference]
    pooled: Difference

    @property
    def method(self) -> str:
        return line_label(self.row.values())

    @property
    def name(self) -> str:
        return f"{self.method} − {line_label(self.reference.values())}"

    @property
    def is_shuffle(self) -> bool:
        """Whether both sides are meant to have the same layer quotas."""
        return str(_first(self.reference).by.get("control", "")).startswith("shuffle")

    def drift(self, density: float) -> float:
        """The largest relative change of a layer's density from the reference to the row, a mean over seeds."""
        found = []
        row, reference = self.row[density].good, self.reference[density].good
        for seed in row.keys() & reference.keys():
            layers, others = (dict(side[seed]["layer_densities"]) for side in (row, reference))
            found.append(max((abs(layers[n] / d - 1.0) for n, d in others.items() if d and n in layers), default=0.0))
        return statistics.fmean(found) if found else 0.0


def planned_pairs(rows: Sequence[Row]) -> list[Pair]:
    """A method and its control, a method with and without all-alive pruning, and two rivals whose masks move."""
    by_identity: dict[Identity, ByDensity] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.method != CHOSEN):  # a row of its own comes before the search's
        by_identity[row.identity][row.density] = row
    found = []
    for part in by_identity.values():
        one = _first(part)
        if (whole := one.reference()) is not None:
            others = by_identity.get(whole, {})
            found.append((others, part) if one.is_control else (part, others))
        found += [(part, others) for others in by_identity.values() if one.competes_with(_first(others))]
    pairs = []
    for first, second in found:
        if shared := [density for density in first if density in second]:
            pairs.append(({d: first[d] for d in shared}, {d: second[d] for d in shared}))
    return pairs


def pairs_with_random(rows: Sequence[Row]) -> list[Pair]:
    """Every method but controls, each with random masks of ERK's quotas."""
    random: ByDensity = {}
    for row in sorted(rows, key=lambda row: row.fixed_start):  # as drawn, where there are such
        if row.is_random:
            random.setdefault(row.density, row)
    by_method: dict[str, ByDensity] = defaultdict(dict)
    for row in rows:
        if row.density in random and not (row.is_control or row is random[row.density]):
            by_method[row.method][row.density] = row
    return [(some, {d: random[d] for d in some}) for some in by_method.values()]


def contrasts(pairs: Sequence[Pair]) -> list[Contrast]:
    """The comparisons of one family, in the order of the pairs."""
    by_pair: dict[int, dict[float, Difference]] = defaultdict(dict)
    for density in sorted({density for first, _ in pairs for density in first}, reverse=True):
        here = [i for i, (first, _) in enumerate(pairs) if density in first]
        family = corrected([(pairs[i][0][density], pairs[i][1][density]) for i in here])
        for i, found in zip(here, family, strict=True):
            by_pair[i][density] = found
    pooled = holm([difference(*(_over_densities(side, pair) for side in pair)) for pair in pairs])
    return [Contrast(*pair, by_pair[i], pooled[i]) for i, pair in enumerate(pairs)]


def corrected(pairs: Sequence[tuple[Row, Row]]) -> list[Difference]:
    """Differences on the test part, Holm-corrected together.

    Pairs of the same masks count once in the correction, a mask and itself not at all.
    """
    raw = {
        (row.outcome, other.outcome): difference(row.values("test_accuracy"), other.values("test_accuracy"))
        for row, other in pairs
    }
    counted = [outcomes for outcomes in raw if outcomes[0] != outcomes[1]]
    found = raw | dict(zip(counted, holm([raw[outcomes] for outcomes in counted]), strict=True))
    return [found[row.outcome, other.outcome] for row, other in pairs]


def _first(rows: ByDensity) -> Row:
    return next(iter(rows.values()))


def _over_densities(side: ByDensity, pair: Pair) -> dict[int, float]:
    """Seed -> mean over the densities, for the seeds that failed nowhere on either side."""
    seeds = set.intersection(*(set(row.good) for rows in pair for row in rows.values()))
    return {seed: statistics.fmean(row.good[seed]["test_accuracy"] for row in side.values()) for seed in sorted(seeds)}
