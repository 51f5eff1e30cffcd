"""Layer quotas: the rows of ``QUOTAS``, random masks that have them, and sources of quotas as text ("erk + synflow")."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from panning.foundation.errors import ConfigError
from panning.masks.allocation import (
    allocate_by_layer,
    erk_counts,
    igq_counts,
    smart_ratio_counts,
    uniform_counts,
    uniform_plus_counts,
)
from panning.masks.layout import Layout
from panning.masks.masks import n_kept_at
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.scoring.problem import Problem

QUOTAS: dict[str, Callable[[Layout, int], list[int]]] = {
    "uniform": uniform_counts,
    "uniform_plus": uniform_plus_counts,
    "erk": erk_counts,
    "igq": igq_counts,
    "smart_ratio": smart_ratio_counts,
    "smart_ratio_vgg": partial(smart_ratio_counts, depth_power=2.0),
}

#: What tables call the rows of ``QUOTAS``.
QUOTA_LABELS = {
    "uniform": "uniform", "uniform_plus": "uniform+", "erk": "ERK", "igq": "IGQ", "smart_ratio": "smart ratio",
    "smart_ratio_vgg": "smart ratio for VGG",
}  # fmt: skip


@dataclass(frozen=True)
class RandomQuotas:
    """A pruner that keeps random weights in each layer, as many as a row of ``QUOTAS`` says. It has one round."""

    quotas: str
    n_rounds: int = 1
    indices: tuple[str, ...] = ()

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        counts = QUOTAS[self.quotas](problem.layout, n_kept_at(density, problem.layout.n_prunable))
        mask = allocate_by_layer(problem.noise, counts, problem.layout)
        return PruneResult(problem.layout, mask, problem.noise, ({"round": 1, "density": density},))


@dataclass(frozen=True)
class QuotaSource:
    """Where layer quotas come from: one source, or a blend of several in the log.

    Attributes:
        shares: name -> its exponent in the blend; they sum to 1.
    """

    shares: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> QuotaSource:
        """The source that ``text`` names: ``erk``, ``erk + synflow`` (the geometric mean), ``0.3 erk + 0.7 synflow``.

        Raises:
            ConfigError: if the text is no such thing; whether there are such names is for the caller to say.

        Examples:
            >>> from panning.pruners.quotas import QuotaSource
            >>> QuotaSource.parse("0.3 erk+0.7 synflow").shares, QuotaSource.parse("0.5 erk + 0.5 snip").text
            ({'erk': 0.3, 'synflow': 0.7}, 'erk + snip')
        """
        how = "write a name, or a blend like 'erk + synflow' or '0.3 erk + 0.7 synflow'"
        parts = [re.fullmatch(r"(?:(\d*\.?\d+)\s+)?([^\s+]+)", part.strip()) for part in str(text).split("+")]
        found = [(part[2], part[1]) for part in parts if part is not None]
        if len(found) < len(parts):
            raise ConfigError(f"Quotas {text!r} name no source: {how}.")
        if len({name for name, _ in found}) < len(found):
            raise ConfigError(f"Quotas '{text}' name one source twice.")
        given = [share for _, share in found if share is not None]
        if given and len(given) < len(found):
            raise ConfigError(f"Quotas '{text}' give some sources a share and some none: {how}.")
        shares = {name: float(share) if share else 1 / len(found) for name, share in found}
        if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise ConfigError(f"Quotas '{text}' have shares that are not above 0 with the sum 1.")
        return cls(shares)

    def told(self, label: Callable[[str], str] = str) -> str:
        """The text, with names as ``label`` has them; shares only where they differ."""
        equal = len(set(self.shares.values())) == 1
        return " + ".join(label(name) if equal else f"{share:g} {label(name)}" for name, share in self.shares.items())

    @property
    def text(self) -> str:
        """The text that ``parse`` reads, one for equal sources."""
        return self.told()
