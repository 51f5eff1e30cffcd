"""Combinations of levers: all of them, or so many drawn, the same for each task, density and seed (common random numbers).

A draw is a point of a low-discrepancy sequence in the unit cube with an axis a lever; each axis is cut into as many equal
parts as the lever has levels. The first draws stay the first when more are asked for, so that a study can be extended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator, model_validator

from panning.foundation.config import DISTINCT, Config, Name
from panning.foundation.extras import extra_packages
from panning.foundation.seeding import numpy_rng
from panning.jobs.by import DynamicSpec
from panning.jobs.levers import LeverAction
from panning.jobs.ways import Way
from panning.pruners import AllAlive

Points = NDArray[np.floating]


@extra_packages()
def _sobol(n_axes: int, n: int, seed: int) -> Points:
    from scipy.stats.qmc import Sobol

    return Sobol(n_axes, rng=np.random.default_rng(seed)).random_base2(max(0, n - 1).bit_length())[:n]


@extra_packages()
def _halton(n_axes: int, n: int, seed: int) -> Points:
    from scipy.stats.qmc import Halton

    return Halton(n_axes, rng=np.random.default_rng(seed)).random(n)


def _lot(n_axes: int, n: int, seed: int) -> Points:
    return numpy_rng(seed, "levers").random((n, n_axes))


#: Name -> the first points [n, axes] of a sequence in [0, 1), from axes, n and a seed.
SEQUENCES: dict[str, Callable[[int, int, int], Points]] = {"sobol": _sobol, "halton": _halton, "lot": _lot}


class Draws(Config):
    """So many combinations of levers. As a number: so many, by Sobol's sequence with seed 0.

    Attributes:
        sequence: a row of ``SEQUENCES``.
    """

    n: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0)] = 0
    sequence: Annotated[str, Name(SEQUENCES, "sequence")] = "sobol"

    @model_validator(mode="before")
    @classmethod
    def _by_number(cls, given: Any) -> Any:
        return {"n": given} if isinstance(given, int) else given

    def of(self, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        """The numbers of the levels, a row a draw, no row twice, of axes with so many levels; at most all there are.

        Examples:
            >>> from panning.compare.drawn import Draws
            >>> Draws(n=4).of([2, 1, 3]) == Draws(n=6).of([2, 1, 3])[:4]
            True
        """
        free = [axis for axis, size in enumerate(sizes) if size > 1]
        wanted, n_asked = min(self.n, prod(sizes)), self.n
        found: dict[tuple[int, ...], None] = {}
        while free and len(found) < wanted:
            points = SEQUENCES[self.sequence](len(free), n_asked, self.seed)
            rows = np.zeros((n_asked, len(sizes)), int)
            rows[:, free] = np.minimum(points * np.take(sizes, free), np.take(sizes, free) - 1)
            found, n_asked = dict.fromkeys(tuple(row) for row in rows.tolist()), 2 * n_asked
        return list(found)[:wanted] or [(0,) * len(sizes)]


def _several(given: Any) -> Any:
    """One level stands for a list of it."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)


class LeverLevels(Config):
    """The levels of each lever of ``LeverAction``, and of all-alive repair, that are crossed or drawn from.

    >>> from panning.compare.drawn import LeverLevels
    >>> levels = LeverLevels(mix=["snip", "synflow"], quotas=["own", "erk"], start="gain")
    >>> [way.label for way in levels.ways(None)][:2]
    ['levers (snip; gain start)', 'levers (snip; quotas erk; gain start)']
    """

    mix: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = ("synflow",)
    quotas: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = ("own",)
    spread: Annotated[tuple[float, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = (0.0,)
    balance: Annotated[tuple[float, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = (0.0,)
    n_rounds: Annotated[tuple[int, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = (1,)
    step: Annotated[tuple[float, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = (0.0,)
    start: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = ("none",)
    all_alive: Annotated[tuple[AllAlive, ...], BeforeValidator(_several), Field(min_length=1), DISTINCT] = (False,)

    @field_validator("mix", "quotas", "spread", "balance", "n_rounds", "step", "start")
    @classmethod
    def _are_levels(cls, levels: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        """Each is checked as in the action that it will be part of, and said as there."""
        made = [
            getattr(LeverAction.model_validate({"policy": "levers", info.field_name: level}), info.field_name)
            for level in levels
        ]
        if len(set(made)) < len(made):
            raise ValueError(f"two of the levels {list(levels)} are the same")
        return tuple(made)

    @property
    def of_all(self) -> Mapping[str, tuple[Any, ...]]:
        """Lever -> its levels."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @property
    def n_combinations(self) -> int:
        return prod(map(len, self.of_all.values()))

    def ways(self, drawn: Draws | None, dynamic: DynamicSpec | None = None, members: int = 1) -> list[Way]:
        """A way for each combination, or for each that is drawn."""
        sizes = [len(levels) for levels in self.of_all.values()]
        rows = list(product(*map(range, sizes))) if drawn is None else drawn.of(sizes)
        found = []
        for row in rows:
            said = {name: levels[i] for i, (name, levels) in zip(row, self.of_all.items(), strict=True)}
            all_alive = said.pop("all_alive")
            by = LeverAction(policy="levers", dynamic=dynamic, members=members, **said)
            found.append(Way(by=by, all_alive=all_alive))
        return found
