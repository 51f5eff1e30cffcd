"""The form of a mask: layer quotas, places inside the layers, a shape and caps, whatever method ranks the weights.

A method's mask says two things at once: how many weights each layer keeps (its quotas), and which (their places). ``Form``
takes the two apart, so that each can come from elsewhere. All of it acts once, on the method's result: the layers' counts
are found first, then an order inside each layer, and both make one ranking of all weights (``ranked_by_counts``), by which
all-alive pruning and blocks go on. The number of weights is exactly that of the density.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import ConfigError, DensityError, MaskError, ModelError, UnknownNameError
from panning.foundation.registry import unknown_name_message
from panning.masks.allocation import check_finite, top_k
from panning.masks.budgets import blended_quotas, fitted_counts, ordered, ranked_by_counts
from panning.masks.layout import Layout
from panning.masks.masks import n_kept_at
from panning.masks.shape import Shape, Shaped
from panning.pruners.balance import dealt
from panning.pruners.quotas import QuotaSource
from panning.pruners.rounds import PruneResult, make_shaped, ranking_of
from panning.scoring.indices import INDICES
from panning.scoring.mixing import mix
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

#: Places that are drawn, and what stands before an index or ``lot`` whose units are balanced.
LOT, BALANCED = "lot", "balanced:"
#: What manifests call the method of a mask whose quotas and places say all.
PLACED = "placed"


@dataclass(frozen=True)
class Form:
    """What a mask is to have beside its density, or in place of what the method would give.

    Attributes:
        quotas: whence the layers' counts: a row of ``QUOTAS``, a method (of its own mask at this density), or a blend of
            such in the log, ``erk + synflow`` or ``0.3 erk + 0.7 synflow``.
        place: which weights inside a layer: by a row of ``INDICES`` at the dense network, by ``lot``, or ``balanced:``
            before either (``panning.pruners.balance``). None: as the method ranks them; what a method of several rounds has
            cut ranks last.
        shape: ``2:4``, ``4x1`` (``panning.masks.shape``).
        min_density, max_density: shell pattern of parameters' names -> bound of each layer's density. What a bound takes or
            gives, the other layers share in proportion to their counts.
    """

    quotas: str | None = None
    place: str | None = None
    shape: str | None = None
    min_density: Mapping[str, float] = field(default_factory=dict)
    max_density: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.quotas is not None:
            object.__setattr__(self, "quotas", QuotaSource.parse(self.quotas).text)
        if self.place is not None and self._index != LOT and self._index not in INDICES:
            raise UnknownNameError(
                unknown_name_message("place", self.place, [LOT, *INDICES]) + f" Each may stand behind '{BALANCED}'."
            )
        for name, bounds in (("min_density", self.min_density), ("max_density", self.max_density)):
            _check_bounds(name, bounds)
        if self.shape is None:
            return
        if not Shape.parse(self.shape).is_of_blocks and self.quotas is not None:
            raise MaskError(
                f"Shape '{self.shape}' itself says how many weights a layer keeps: leave quotas away, or the shape; blocks "
                "like 4x1 go with quotas."
            )
        if self.has_bounds or self.is_balanced:
            what = "Balanced places count" if self.is_balanced else "min_density and max_density count"
            raise MaskError(
                f"{what} single weights, and shape '{self.shape}' moves whole groups: leave one of them away."
            )

    @property
    def _index(self) -> str:
        return str(self.place).removeprefix(BALANCED)

    @property
    def is_balanced(self) -> bool:
        return self.place is not None and self.place.startswith(BALANCED)

    @property
    def has_bounds(self) -> bool:
        return bool(self.min_density or self.max_density)

    @property
    def says_all(self) -> bool:
        """Whether quotas and places both come from elsewhere, so that no method has a say."""
        return self.quotas is not None and self.place is not None

    @property
    def sources(self) -> dict[str, float]:
        """The sources of quotas, with their shares."""
        return {} if self.quotas is None else QuotaSource.parse(self.quotas).shares

    @property
    def indices(self) -> tuple[str, ...]:
        """The index that places the weights, if one does."""
        return () if self.place is None or self._index == LOT else (self._index,)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is asked but a shape at most."""
        return self.quotas is None and self.place is None and not self.has_bounds

    def facts(self) -> dict[str, object]:
        """What is asked, for a mask's manifest."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

    def told(self, label: Callable[[str], str]) -> tuple[str, ...]:
        """What is asked, in words for tables.

        Args:
            label: what tables call a source of quotas.
        """
        balanced = "balanced " if self.is_balanced else ""
        bounds = [("at least", self.min_density), ("at most", self.max_density)]
        return (
            *((self.shape,) if self.shape else ()),
            *((f"quotas of {QuotaSource.parse(self.quotas).told(label)}",) if self.quotas else ()),
            *((f"{balanced}places by {self._index}",) if self.place else ()),
            *(f"{name} {how} {bound:g}" for how, some in bounds for name, bound in some.items()),
        )

    def shaped(self, model: nn.Module, layout: Layout) -> Shaped | None:
        """The layers that the shape covers, if one is asked for."""
        return None if self.shape is None else Shaped.of(model, layout, self.shape)

    def n_kept(self, model: nn.Module, layout: Layout, density: float | None) -> int:
        """The number of weights of a mask of this form.

        Raises:
            DensityError: if there is no density where one is needed, or the form cannot have it, with what it can have.
        """
        if (shaped := self.shaped(model, layout)) is not None:
            return shaped.n_kept(density)
        if density is None:
            raise DensityError("Pass density, the fraction of weights to keep; only a shape like '2:4' says it alone.")
        n_kept, (lows, highs) = n_kept_at(density, layout.n_prunable), self.bounds(layout)
        if not sum(lows) <= n_kept <= sum(highs):
            low, high = (sum(bounds) / layout.n_prunable for bounds in (lows, highs))
            raise DensityError(
                f"min_density and max_density leave densities from {low:.9g} to {high:.9g} of all prunable weights, given "
                f"{density}."
            )
        return n_kept

    def bounds(self, layout: Layout) -> tuple[list[int], list[int]]:
        """The fewest and the most weights of each layer.

        Raises:
            ModelError: if a pattern matches no layer.
            DensityError: if a layer's bounds leave it no number of weights.
        """
        for pattern in (*self.min_density, *self.max_density):
            if not any(fnmatchcase(name, pattern) for name in layout.names):
                raise ModelError(
                    f"Pattern '{pattern}' of min_density or max_density matches none of the prunable weights: "
                    f"{', '.join(layout.names)}."
                )
        lows = [math.ceil(size * _tightest(self.min_density, name, 0.0, max) - 1e-9) for name, size in _layers(layout)]
        highs = [
            math.floor(size * _tightest(self.max_density, name, 1.0, min) + 1e-9) for name, size in _layers(layout)
        ]
        for (name, size), low, high in zip(_layers(layout), lows, highs, strict=True):
            if low > high:
                raise DensityError(
                    f"min_density asks for at least {low} of the {size} weights of '{name}', and max_density for at most "
                    f"{high}: raise this one, or lower the other."
                )
        return lows, highs

    def check_needless(self, asked: Mapping[str, object]) -> None:
        """Raise MaskError for what only a method could heed, where quotas and places say all."""
        if given := " and ".join(name for name, value in asked.items() if value not in (None, False)):
            raise MaskError(
                f"Quotas of {self.quotas} and places by {self.place} need no method, and {given} would change one: leave "
                f"{given} away, or name a method beside one of the two."
            )

    def check_open(self, problem: Problem) -> None:
        """Raise DensityError if no path is left where max_density leaves a layer no weight."""
        layout, (_, highs) = problem.layout, self.bounds(problem.layout)
        if all(highs):
            return
        mask = torch.ones(layout.n_prunable, dtype=torch.bool)
        for part, high in zip(layout.slices(), highs, strict=True):
            mask[part] = high > 0
        if not Connectivity.of(problem).n_alive(mask):
            number = highs.index(0)
            raise DensityError(
                f"max_density leaves no weight of '{layout.names[number]}', and no path gets around it: allow at least 1 of "
                f"its {layout.sizes[number]} weights, a density of {1 / layout.sizes[number]:.3g}."
            )

    def check_bounds(self, layout: Layout, mask: Tensor) -> None:
        """Raise DensityError if a repaired mask has left the bounds."""
        for name, low, n, high in zip(layout.names, *self._around(layout, mask), strict=True):
            if not low <= n <= high:
                raise DensityError(
                    f"All-alive pruning would leave {n} weights in '{name}', outside its {low} to {high} of min_density and "
                    "max_density: widen the bounds, or take all_alive='in_layers', which keeps the layers' counts, or none."
                )

    def _around(self, layout: Layout, mask: Tensor) -> tuple[list[int], list[int], list[int]]:
        lows, highs = self.bounds(layout)
        return lows, layout.counts(mask), highs

    def apply(
        self, problem: Problem, result: PruneResult | None, n_kept: int, density: float | None,
        counts_of: Callable[[str], Sequence[int]],
    ) -> PruneResult:  # fmt: skip
        """A method's result in this form, with exactly ``n_kept`` weights.

        Args:
            result: None where the form says all.
            counts_of: the layers' counts of a source of quotas.
        """
        layout, shaped = problem.layout, self.shaped(problem.model, problem.layout)
        if result is not None and self.is_plain:
            return result if shaped is None else make_shaped(result, shaped, density)
        counts = self._counts(layout, result, n_kept, counts_of)
        scores = self._scores(problem, result)
        if shaped is not None:
            ranking = ranking_of(result) if self.place is None and result is not None else scores
            mask = shaped.mask(ranking.cpu(), density, counts).to(scores.device)
        else:
            orders = self._orders(problem, result, scores, counts)
            ranking = torch.cat(ranked_by_counts(orders, counts))
            mask = top_k(ranking, n_kept)
        history = ({"round": 1, "density": n_kept / layout.n_prunable},) if result is None else result.history
        return PruneResult(layout, mask, ranking, history, start=None if result is None else result.start)

    def _counts(
        self, layout: Layout, result: PruneResult | None, n_kept: int, counts_of: Callable[[str], Sequence[int]]
    ) -> list[int]:
        if self.quotas is not None:
            quotas = blended_quotas({name: counts_of(name) for name in self.sources}, self.sources)
        else:
            assert result is not None, "quotas or a method's mask say the counts"
            quotas = [float(n) for n in layout.counts(result.mask)]
        return fitted_counts(quotas, n_kept, layout.sizes, *self.bounds(layout))

    def _scores(self, problem: Problem, result: PruneResult | None) -> Tensor:
        """By what the weights of a layer are ranked, flat."""
        if self.place is None:
            assert result is not None, "a place or a method's scores rank the weights"
            return result.scores
        if self._index == LOT:
            return problem.noise
        scores = mix({self._index: 1.0}, Signals(problem, torch.ones_like(problem.weight, dtype=torch.bool)))
        check_finite(scores, problem.layout)
        return scores

    def _orders(
        self, problem: Problem, result: PruneResult | None, scores: Tensor, counts: Sequence[int]
    ) -> list[Tensor]:
        """The positions of each layer, the best first."""
        layout = problem.layout
        first: Sequence[Tensor | None] = [None] * len(counts)
        if self.is_balanced:
            parts = scores.split(layout.sizes)
            first = [dealt(problem, number, parts[number], count) for number, count in enumerate(counts)]
        elif self.place is None and result is not None:
            first = result.mask.split(layout.sizes)  # the method's own before what it has cut
        return [ordered(part, before) for part, before in zip(scores.split(layout.sizes), first, strict=True)]


def _layers(layout: Layout) -> list[tuple[str, int]]:
    return list(zip(layout.names, layout.sizes, strict=True))


def _tightest(bounds: Mapping[str, float], name: str, default: float, tightest: Callable[..., float]) -> float:
    """The tightest bound of a layer's density among the patterns that match its name."""
    return tightest([default, *(bound for pattern, bound in bounds.items() if fnmatchcase(name, pattern))])


def _check_bounds(name: str, bounds: Mapping[str, float]) -> None:
    if not isinstance(bounds, Mapping) or not all(isinstance(pattern, str) for pattern in bounds):
        raise ConfigError(
            f"{name} is {bounds!r}, but must be bounds by name pattern, like {{'fc*': 0.1}} or {{'*': 0.1}}."
        )
    for pattern, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 <= bound <= 1:
            raise ConfigError(f"{name} of '{pattern}' is {bound!r}, but must be a density, a number from 0 to 1.")


#: A mask as its method gives it.
PLAIN_FORM = Form()
