"""Targets other than density: a mask that leaves so many multiply-adds or parameters, found by trying densities.

Of single weights, what is left is counted by the mask: multiply-adds with a kept weight (``panning.compaction.cost``), and
parameters without the masked ones. Of methods that keep whole units, masks have whole units alone, and what is left is what
the compact network has. A method of one round ranks weights once, whatever the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from panning.alive.connectivity import Connectivity
from panning.compaction.cost import compact_cost, cost, multiply_adds
from panning.foundation.errors import DensityError, MaskError
from panning.masks.allocation import allocate
from panning.masks.masks import Masks
from panning.pruners import PRUNERS, AllAlive, Form, Pruner, check_form, name_of, pruner_row
from panning.pruners.rounds import PruneResult
from panning.pruners.structured import KeepUnits
from panning.scoring.problem import Problem

#: Of what a benchmark's densities are shares; of weights they are densities.
SharesOf = Literal["weights", "multiply_adds", "parameters"]
#: What masks that move do not keep -> what to do, for errors.
OF_FIRST_MASKS = {
    name: f"Masks that move keep a number of weights, and neither targets nor bounds: pass panning.prune(..., {name}=...) "
    "as masks, with its density."
    for name in ("target_macs", "target_parameters", "min_density", "max_density")
} | {
    name: f"It is a matter of the first mask: pass panning.prune(..., {name}=...) as masks, with its density."
    for name in ("quotas", "place", "round_to", "control")
}
#: How near, as a share of the target, a search ends; and how far below the least that can be had a target is refused.
NEAR, OFF = 0.005, 0.02
#: How many masks a search makes at most, and how often it aims again at what the compact network has.
N_TRIES, N_AIMS = 40, 4
#: Shares of all weights at which a method may work that does not work at the first.
ELSEWHERE = (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875, 0.05, 0.95, 0.01, 1.0)


def words_of(of: str) -> str:
    """``multiply_adds`` as texts have it."""
    return of.replace("_", "-")


@dataclass(frozen=True)
class Target:
    """What a network is to have left.

    Attributes:
        of: ``multiply_adds`` or ``parameters``.
        asked: up to 1 the share of what the dense network has, above 1 a number.
        round_to: of methods that keep whole units: ``Rounds.round_to``.
    """

    of: str
    asked: float
    round_to: int = 1

    @classmethod
    def of_call(
        cls, macs: float | None, parameters: float | None, density: float | None, round_to: int
    ) -> Target | None:
        """The target of a call; None where the density is one.

        Raises:
            DensityError: if there is more than one of the three, or a number that is none.
            MaskError: if ``round_to`` is no number of channels, or goes with a density.
        """
        given = {"density": density, "target_macs": macs, "target_parameters": parameters}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise DensityError(f"{' and '.join(given)} each say how much is kept: pass one of them.")
        if type(round_to) is not int or round_to < 1:
            raise MaskError(f"round_to is {round_to!r}, but must be a whole number of channels, as 8.")
        if round_to > 1 and macs is None and parameters is None:
            raise MaskError(
                "round_to keeps whole units, whose weights do not add up to exactly a density: pass target_macs or "
                "target_parameters with it, as target_macs=0.5."
            )
        for (name, value), of in zip(
            (("target_macs", macs), ("target_parameters", parameters)), ("multiply_adds", "parameters"), strict=True
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise DensityError(
                    f"{name} is {value!r}, but must be a share of what the dense network has, up to 1, or a number above 1."
                )
            if value is not None:
                return cls(of, value, round_to)
        return None

    @classmethod
    def of_share(cls, of: SharesOf, share: float) -> float | Target:
        """What a share of this asks: the density itself, or a target."""
        return share if of == "weights" else cls(of, share)

    @property
    def words(self) -> str:
        return words_of(self.of)

    @property
    def _name(self) -> str:
        return "macs" if self.of == "multiply_adds" else self.of

    @property
    def short(self) -> str:
        """For names of folders."""
        return f"{self._name}{self.asked:g}"

    def facts(self, reached: int, dense: int) -> dict[str, Any]:
        """What was asked, what was reached and what the dense network has, for a mask's manifest."""
        figures = {f"target_{self._name}": self.asked, f"reached_{self._name}": reached, f"dense_{self._name}": dense}
        return figures | ({"round_to": self.round_to} if self.round_to > 1 else {})

    def told(self, facts: Mapping[str, Any]) -> str:
        """The facts of a manifest in a sentence."""
        asked, reached, dense = (facts[f"{part}_{self._name}"] for part in ("target", "reached", "dense"))
        told = f"{asked:.3g}" if asked <= 1 else f"{asked:,.0f}"
        return f"{reached:,} of {dense:,} {self.words} are left, {reached / dense:.4g} of the dense network's; asked: {told}"


@dataclass(frozen=True, eq=False)
class Scale:
    """What is left of a network under a mask.

    Attributes:
        dense: of the network without a mask.
        by_mask: of a flat mask, as it counts.
        by_compaction: of the compact network; None where there is none.
    """

    dense: int
    by_mask: Callable[[Tensor], float]
    by_compaction: Callable[[Tensor], int | None]

    @classmethod
    def of(cls, problem: Problem, target: Target) -> Scale:
        model, layout = problem.model, problem.layout

        def by_compaction(mask: Tensor) -> int | None:
            found = compact_cost(problem, Masks(layout, mask.cpu()))
            return None if found is None else int(getattr(found, "n_parameters" if parameters else "multiply_adds"))

        parameters = target.of == "parameters"
        if parameters:
            dense = cost(model, problem.real_example).n_parameters
            return cls(dense, lambda mask: dense - float((~mask).sum()), by_compaction)
        adds = multiply_adds(model, problem.real_example, layout)
        return cls(adds.total, adds.left, by_compaction)


def check_asked(target: Target | None, form: Form, method: str | Pruner | None, all_alive: AllAlive) -> None:
    """Raise MaskError for parts of a call that do not go together (``check_form``), the target among them."""
    check_form(form, method, all_alive)
    if target is not None:
        check_target(target, form, method)


def check_target(target: Target, form: Form, method: str | Pruner | None) -> None:
    """Raise MaskError if no mask of this form and method can be had for a target."""
    if form.shape is not None:
        raise MaskError(
            f"Shape '{form.shape}' goes by weights: pass a density, or for n:m none, in place of a number of {target.words}."
        )
    of_units = method is not None and isinstance(pruner_row(method).pruner, KeepUnits) and form.is_plain
    if target.round_to > 1 and not of_units:
        names = ", ".join(name for name, row in PRUNERS.items() if isinstance(row.pruner, KeepUnits))
        raise MaskError(
            f"round_to goes with methods that keep whole units, without quotas, place and bounds: {names}; given "
            f"'{name_of(method)}'."
        )


def meet(problem: Problem, target: Target, prune: Callable[[float], PruneResult]) -> tuple[PruneResult, dict[str, Any]]:
    """The mask that comes nearest to a target, and for its manifest what was asked and how much it leaves.

    Args:
        prune: the result of a method at a density.

    Raises:
        DensityError: if the target cannot be reached, with the range that can be.
    """
    problem = problem.where_scored
    scale = Scale.of(problem, target)
    wanted = target.asked * scale.dense if target.asked <= 1 else float(target.asked)
    if wanted > scale.dense:
        raise DensityError(
            f"The dense network has {scale.dense:,} {target.words}, fewer than the {wanted:,.0f} asked for."
        )
    fewest = Connectivity.of(problem).smallest_alive()
    search = _Search(scale, target, wanted, _first(problem, wanted / scale.dense, prune), prune, fewest)
    aim, found = wanted, list[tuple[PruneResult, float]]()
    below, above = (0.0, 0.0), (float(scale.dense), float(scale.dense))
    for _ in range(N_AIMS):
        result, counted = search.nearest(aim)
        left = search.told_left(result.mask)
        found.append((result, left))
        if abs(left - counted) < 1 or abs(left - wanted) <= OFF * wanted:
            break
        # No layer's weights count products of attention, biases and norms of units: aim where these lead to what is wanted.
        below, above = ((counted, left), above) if left < wanted else (below, (counted, left))
        aim = below[0] + (wanted - below[1]) * (above[0] - below[0]) / max(above[1] - below[1], 1.0)
    result, left = min(found, key=lambda pair: abs(pair[1] - wanted))
    return result, target.facts(round(left), scale.dense)


def _first(problem: Problem, share: float, prune: Callable[[float], PruneResult]) -> PruneResult:
    """The method's result at a share of all weights or, where the method refuses this density, at another."""
    errors = []
    for density in (max(share, 1 / problem.layout.n_prunable), *ELSEWHERE):
        try:
            return prune(density)
        except DensityError as error:
            errors.append(error)
    raise errors[0]


@dataclass(frozen=True, eq=False)
class _Search:
    """A search over levels, whole numbers of weights or ranks: the higher the level, the more is left.

    Attributes:
        wanted: what is to be left, as a number.
        fewest: weights that connect the input with the output.
    """

    scale: Scale
    target: Target
    wanted: float
    first: PruneResult
    prune: Callable[[float], PruneResult]
    fewest: int

    def nearest(self, aim: float) -> tuple[PruneResult, float]:
        """The result that leaves what is nearest to ``aim``, and what it leaves, both as the mask counts."""
        best, least = (self.first, math.inf), self._least()
        if self.scale.by_mask(least) > (1 + OFF) * aim:
            if (left := self.told_left(least)) > (1 + OFF) * self.wanted:
                raise self._out_of_reach(left, self.scale.dense)
            return replace(self.first, mask=least), self.scale.by_mask(least)
        start, (lowest_level, highest_level), at = self._levels()
        low = (lowest_level - 1, self.scale.by_mask(torch.zeros_like(self.first.mask)))
        high = (highest_level + 1, float(self.scale.dense))
        level, lowest, highest = start, math.inf, 0.0
        for _ in range(N_TRIES):
            result = whole(self.first) if level == start else at(level)
            left = low[1] if level < start else high[1]  # of a level at which the method refuses
            if result is not None:
                left = self.scale.by_mask(result.mask)
                lowest, highest = min(lowest, left), max(highest, left)
                best = min(best, (result, left), key=lambda pair: abs(pair[1] - aim))
            low, high = ((level, left), high) if left < aim else (low, (level, left))
            n = high[0] - low[0]
            if abs(best[1] - aim) <= NEAR * aim or n <= 1:
                break
            share = (aim - low[1]) / max(high[1] - low[1], 1.0)
            level = low[0] + min(max(round(n * min(max(share, 0.25), 0.75)), 1), n - 1)
        if abs(best[1] - aim) > OFF * aim and not lowest <= aim <= highest:
            ends = [self.told_left(end.mask) for end in (at(lowest_level), at(highest_level)) if end is not None]
            raise self._out_of_reach(min([lowest, *ends]), max([highest, *ends]))
        return best

    def _least(self) -> Tensor:
        """The smallest mask of a method that keeps whole units; of others, one that leaves no more than any mask can."""
        if self.first.of_units:
            ranks = self.first.scores.floor()
            return ranks == ranks.max()
        least = torch.zeros_like(self.first.mask)
        if self.target.of == "parameters":  # whatever layers they lie in
            least[: self.fewest] = True
        return least

    def told_left(self, mask: Tensor) -> float:
        """What a mask leaves, as manifests tell it."""
        exact = self.scale.by_compaction(mask) if self.first.of_units else None
        return self.scale.by_mask(mask) if exact is None else exact

    def _levels(self) -> tuple[int, tuple[int, int], Callable[[int], PruneResult | None]]:
        """The level of the first result, the lowest and the highest level, and the result at a level; None where the method
        refuses."""
        first, layout = self.first, self.first.layout
        if first.ranks_once and first.of_units:
            ranks = first.scores.floor()
            values = ranks.unique().flip(0)
            n_kept = int((values >= ranks[whole(first).mask].min()).sum())
            return n_kept, (1, len(values)), lambda level: replace(first, mask=ranks >= values[level - 1])
        if first.ranks_once:
            return (
                int(first.mask.sum()), (self.fewest, layout.n_prunable),
                lambda level: replace(first, mask=allocate(first.scores, level, layout)),
            )  # fmt: skip

        def again(level: int) -> PruneResult | None:
            try:
                return whole(self.prune(level / layout.n_prunable))
            except DensityError:
                return None

        return int(first.mask.sum()), (self.fewest, layout.n_prunable), again

    def _out_of_reach(self, lowest: float, highest: float) -> DensityError:
        return DensityError(
            f"No mask leaves about {self.wanted:,.0f} {self.target.words}: from {lowest:,.0f} to {highest:,.0f} can be had, "
            f"which is {lowest / self.scale.dense:.3g} to {highest / self.scale.dense:.3g} of the dense network's."
        )


def whole(result: PruneResult) -> PruneResult:
    """The result without the unit that is kept in part, of a method that keeps whole units."""
    if not result.of_units or bool(result.mask.all()):
        return result
    ranks = result.scores.floor()
    return replace(result, mask=ranks > ranks[~result.mask].max())
