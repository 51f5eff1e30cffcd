"""So many values of a range, both ends included, evenly in the log: a config says a grid of targets by three numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from panning.foundation.config import Config
from panning.masks.masks import Density


class _LogRange(Config):
    low: float
    high: float
    n: Annotated[int, Field(ge=2, le=1000)]

    @model_validator(mode="after")
    def _ascends(self) -> _LogRange:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, but must be below high, {self.high:g}")
        return self

    @property
    def values(self) -> tuple[float, ...]:
        """The values, with three digits."""
        steps = (self.low * (self.high / self.low) ** (i / (self.n - 1)) for i in range(self.n))
        return tuple(float(f"{value:.3g}") for value in steps)


class DensityRange(_LogRange):
    """So many densities from ``low`` to ``high``, both included, evenly in the log.

    >>> from panning.agents.ranges import DensityRange
    >>> DensityRange(low=0.01, high=0.1, n=3).values
    (0.01, 0.0316, 0.1)
    """

    low: Density
    high: Density


Inputs = Annotated[float, Field(gt=0, le=1e6)]


class KeptRange(_LogRange):
    """So many targets, as inputs that a unit keeps: what a density means hangs on a network's width, and this does not.

    >>> from panning.agents.ranges import KeptRange
    >>> KeptRange(low=1, high=9, n=3).densities([100, 100])
    (0.01, 0.03, 0.09)

    Attributes:
        low, high: of a mask with the same density in every layer; the mean over layers is geometric, as in the observation
            ``kept_fan_in``.
        most: no target is a higher density than this: those that would be are this one.
    """

    low: Inputs
    high: Inputs
    most: Density = 0.5

    def densities(self, fan_ins: Sequence[int]) -> tuple[float, ...]:
        """The targets of a network, none of them twice.

        Args:
            fan_ins: the inputs of a unit of each layer.
        """
        mean = statistics.geometric_mean(fan_ins)
        return tuple(dict.fromkeys(min(self.most, float(f"{kept / mean:.3g}")) for kept in self.values))
