"""Samplers: what a search in free order tries next. A row in ``SAMPLERS`` makes one for each density.

A sampler is asked for a candidate whenever a worker is free, and told each result as it comes, those of other samplers too.
What it asks for depends on its seed and on what it was told, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from panning.foundation.registry import Table
from panning.searches.samplers.base import Result, Sampler, Setting
from panning.searches.samplers.drawn import Local, Random
from panning.searches.samplers.given import AgentsEpisodes, Fixed

__all__ = ["SAMPLERS", "Result", "Sampler", "SamplerRow", "Setting"]


@dataclass(frozen=True)
class SamplerRow:
    """A row of ``SAMPLERS``.

    Attributes:
        make: makes a sampler for one density.
        is_endless: whether it always has another candidate.
        chooses_actions: whether it makes up actions, which may differ from round to round (``per_round``).
    """

    make: Callable[[Setting], Sampler]
    is_endless: bool = True
    chooses_actions: bool = True


def _of_optuna(name: str) -> SamplerRow:
    def make(setting: Setting) -> Sampler:
        from panning.searches.samplers.optuna_samplers import OfOptuna  # of an extra

        return OfOptuna(setting, name)

    return SamplerRow(make)


_OWN = {
    "fixed": SamplerRow(Fixed, is_endless=False, chooses_actions=False),
    "agent": SamplerRow(AgentsEpisodes, is_endless=False, chooses_actions=False),
    "random": SamplerRow(Random),
    "local": SamplerRow(Local),
    **{name: _of_optuna(name) for name in ("tpe", "cma_es", "qmc")},
}


def _added(found: Any, name: str, package: str) -> SamplerRow | None:
    return found if isinstance(found, SamplerRow) else SamplerRow(found) if callable(found) else None


#: Name -> row. Packages add rows of their own (``panning.foundation.registry``).
SAMPLERS = Table(
    _OWN,
    "panning.samplers",
    "a function of a Setting that makes a panning.searches.samplers.Sampler, or a SamplerRow",
    _added,
)
