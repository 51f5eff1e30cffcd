"""What a training under moving masks costs, counted in steps of the dense network."""

from __future__ import annotations

from torch import Tensor

from panning.compaction.cost import multiply_adds
from panning.scoring.problem import Problem


class Spending:
    """Counts multiply-adds. A step is a forward pass, the gradient by activations and the gradient by weights, a third each.

    Attributes:
        dense_steps: the multiply-adds of all steps so far, in steps of the dense network.
    """

    def __init__(self, problem: Problem) -> None:
        few = None if problem.batches is None else problem.batches(0)[0][:1]
        self._adds = multiply_adds(problem.model, problem.input_shape, problem.layout, few)
        self._last: tuple[Tensor, float] | None = None
        self.dense_steps = 0.0

    def share(self, mask: Tensor) -> float:
        """What a flat mask leaves of the dense network's multiply-adds; counted once while the mask stays."""
        if self._last is None or self._last[0] is not mask:
            self._last = (mask, self._adds.left(mask) / max(self._adds.total, 1))
        return self._last[1]

    def count(self, share_run: float, whole_gradient: bool) -> None:
        """Count one step.

        Args:
            share_run: of the dense network's multiply-adds.
            whole_gradient: the weight-gradient third is counted in full, for methods that read gradients of masked weights.
        """
        self.dense_steps += (2.0 * share_run + (1.0 if whole_gradient else share_run)) / 3.0
