"""What is known about a tensor of a masked network, unit by unit (neuron or channel) along one axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """The units of one tensor.

    Attributes:
        axis: along which they lie.
        constant: float64 [n]; the value of a unit that depends on no input, NaN for one that does.
        trained: bool [n]; training may change that value.
        parameter: name of the parameter whose entries the trained constants are, if they are one's.
        only_here: nothing else reads what makes the constants, so that training moves them through this tensor alone.
    """

    axis: int
    constant: Tensor
    trained: Tensor
    parameter: str | None = None
    only_here: bool = True

    @classmethod
    def live(cls, axis: int, n: int) -> Units:
        """Units that all depend on the input, as far as is known."""
        return cls(axis, torch.full((n,), torch.nan, dtype=torch.float64), torch.zeros(n, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.constant)

    @property
    def is_constant(self) -> Tensor:
        return ~self.constant.isnan()

    @property
    def stays_zero(self) -> Tensor:
        """Units that are zero now, and that no gradient reaches."""
        return (self.constant == 0) & ~self.trained

    @property
    def is_parameter(self) -> Tensor:
        """A trained constant that is an entry of ``parameter``."""
        return self.is_constant & self.trained if self.parameter is not None else torch.zeros_like(self.trained)

    def only_where(self, known: Tensor) -> Units:
        """The same, with all units but these taken for live."""
        return replace(self, constant=self.constant.masked_fill(~known, torch.nan), trained=self.trained & known)
