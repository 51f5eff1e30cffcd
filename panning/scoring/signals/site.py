"""Site: where signals are taken. A network, a mask, a scoring batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from panning import flow
from panning.data.batches import Batch
from panning.foundation.errors import ModelError, NonFiniteError
from panning.scoring.problem import PLAIN, Problem, Scoring


@dataclass(frozen=True, eq=False)
class Site:
    """A network under a mask, with the scoring batch of a round and a method's way to score.

    Attributes:
        mask: bool, flat [n_prunable].
        round_number: which of the problem's scoring batches is used.
    """

    problem: Problem
    mask: Tensor
    round_number: int = 0
    scoring: Scoring = PLAIN

    @property
    def density(self) -> float:
        return float(self.mask.double().mean())

    @cached_property
    def batch(self) -> Batch:
        """The scoring batch, drawn once."""
        return self.batch_at(self.round_number)

    def batch_at(self, number: int) -> Batch:
        """The problem's batch of this number, or the first one where the method scores the same batch throughout."""
        return self.problem.batch(0 if self.scoring.same_batch else number)

    def has_batch_of(self, other: Site) -> bool:
        """Whether both score the same samples, in the same order."""
        if self.round_number == other.round_number:
            return True
        return all(torch.equal(mine, theirs) for mine, theirs in zip(self.batch, other.batch, strict=True))

    def effective(self) -> Tensor:
        """w * m, flat, a leaf that gradients are taken at."""
        return (self.problem.weight * self.mask).requires_grad_()

    def loss(self, effective: Tensor, batch: Batch, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss on a batch at the given flat weights.

        Args:
            others: in place of the parameters that are not prunable.

        Raises:
            ModelError, NonFiniteError: if the loss is no scalar or not finite.
        """
        problem, scoring = self.problem, self.scoring
        inputs, targets = batch
        others = problem.other_parameters() if others is None else others
        rules = flow.BATCH_STATISTICS if scoring.batch_statistics else flow.TWICE_DIFFERENTIABLE
        parameters = {**others, **problem.layout.views(effective)}
        logits = flow.run(problem.model, parameters, inputs, rules, effective.dtype)
        loss = (scoring.loss or problem.loss)(logits / scoring.temperature, targets)
        if loss.numel() != 1:
            raise ModelError(f"The loss must be a scalar, given shape {tuple(loss.shape)}: use a mean over the batch.")
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"The loss on the scoring batch is {float(loss.detach())} at density {self.density:.3g}: "
                "check the model's initialisation, the input scaling and the loss."
            )
        return loss


def gradient(scalar: Tensor, at: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None) -> Tensor:
    """d scalar / d at; zeros where the scalar does not depend on it at all."""
    if not scalar.requires_grad:
        return torch.zeros_like(at)
    (grad,) = torch.autograd.grad(
        scalar, at, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    if create_graph:
        check_twice_differentiable(grad)
    return grad


#: Where torch ends the graph of a gradient that must not be differentiated.
CUT = "torch::autograd::Error"


def check_twice_differentiable(*grads: Tensor) -> None:
    """Refuse gradients whose derivative torch would give in part, without a word.

    Behind a function that is marked ``once_differentiable`` the graph ends in a node that raises when it is run. A
    derivative with respect to given tensors does not run it, for it leads to none of them.

    Raises:
        NotImplementedError: if there is such a node.
    """
    waiting = [grad.grad_fn for grad in grads]
    met = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        if node.name() == CUT:
            raise NotImplementedError("a second derivative of a function marked once_differentiable is not implemented")
        met.add(node)
        waiting += [following for following, _ in node.next_functions]
