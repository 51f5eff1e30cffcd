"""Site: where signals are taken. A network, a mask, a scoring batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from panning import flow
from panning.data.batches import Batch
from panning.flow.functions import LOSSES
from panning.foundation.errors import DataError, ModelError, NonFiniteError, PanningError
from panning.foundation.nests import logits_of, map_tensors, same_tensors, tensors_in, told
from panning.scoring.losses import labels_of, own_loss
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
        return same_tensors(self.batch, other.batch)

    @property
    def kept(self) -> Tensor:
        """The mask as a factor, 1 where a weight is kept: torch multiplies by bytes several times as fast as by booleans."""
        return self.mask.view(torch.uint8)

    def effective(self) -> Tensor:
        """w * m, flat, a leaf that gradients are taken at."""
        return (self.problem.weight * self.kept).requires_grad_()

    def outputs(
        self, effective: Tensor, inputs: Any, others: Mapping[str, Tensor] | None = None,
        extra: Mapping[Any, flow.Rule] | None = None,
    ) -> Any:  # fmt: skip
        """What the network gives at the given flat weights, as it is scored.

        Args:
            others: in place of the parameters that are not prunable.
            extra: rules beside those of scoring.
        """
        problem = self.problem
        others = problem.other_parameters() if others is None else others
        parameters = {**others, **problem.layout.views(effective)}
        return flow.run(problem.model, parameters, inputs, self.rules(extra), effective.dtype, problem.forward)

    def rules(self, extra: Mapping[Any, flow.Rule] | None = None) -> dict[Any, flow.Rule]:
        """The rules of scoring with a loss, and ``extra`` ones."""
        rules = flow.BATCH_STATISTICS if self.scoring.batch_statistics else flow.TWICE_DIFFERENTIABLE
        return {**rules, **flow.layout_rules(self.problem.model), **(extra or {})}

    def loss(
        self, effective: Tensor, batch: Batch, others: Mapping[str, Tensor] | None = None,
        extra: Mapping[Any, flow.Rule] | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss on a batch at the given flat weights; arguments as for ``outputs``.

        Raises:
            ForwardError, DataError: if the network or the loss fails.
            ModelError, NonFiniteError: if the loss is no scalar or not finite.
        """
        problem, scoring = self.problem, self.scoring
        inputs, targets = batch
        softened = Softened(scoring.temperature)
        outputs = softened(self.outputs(effective, inputs, others, {**softened.rules(), **(extra or {})}))
        compared = (problem.loss, outputs, targets)
        if scoring.loss is not None:
            compared = (scoring.loss, *logits_and_labels(outputs, batch))
        try:
            loss = compared[0](*compared[1:])
        except PanningError:
            raise
        except Exception as error:
            raise DataError(
                f"The loss fails on outputs {told(outputs)} and targets {told(targets)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(f"The loss must be a scalar, given {given}: use a mean over the batch.")
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"The loss on the scoring batch is {float(loss.detach())} at density {self.density:.3g}: "
                "check the model's initialisation, the input scaling and the loss."
            )
        return loss


class Softened:
    """Divides by a temperature what a loss compares: what the network gives, or what a loss inside the network takes."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.inside = False

    def rules(self) -> dict[Any, flow.Rule]:
        return {} if self.temperature == 1.0 else dict.fromkeys(LOSSES, self._loss)

    def _loss(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.inside = True
        n_outputs = LOSSES[function]
        return function(*(x / self.temperature for x in args[:n_outputs]), *args[n_outputs:], **kwargs)

    def __call__(self, outputs: Any) -> Any:
        """What the network gave, softened.

        Raises:
            ModelError: if the network has made a loss of it that no rule could soften.
        """
        if self.temperature == 1.0 or self.inside:
            return outputs
        if own_loss(outputs) is not None:
            raise ModelError(
                f"This method divides the outputs by {self.temperature:g} before the loss, and the network makes its loss "
                "by code of its own. Let forward= return the outputs and loss= compare them, or take another method."
            )
        logits = logits_of(outputs)
        inside = [outputs] if isinstance(outputs, Tensor) else tensors_in(outputs)
        known = not isinstance(logits, Tensor) or any(logits is x for x in inside)
        whole = outputs if known else logits  # of an object that nothing is known of but its logits
        return map_tensors(lambda x: x / self.temperature if x.is_floating_point() else x, whole)


def logits_and_labels(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the losses of released code take.

    Raises:
        ModelError: if a network gives no tensor of logits, or the batch has no labels.
    """
    logits, labels = logits_of(outputs), labels_of(batch)
    if not isinstance(logits, Tensor) or not logits.dim() or labels is None:
        raise ModelError(
            f"This form of the method has a loss of its own, on logits and labels; given are {told(outputs)} and "
            f"{told(batch[1])}. Take the method as its paper has it."
        )
    return logits, labels


def gradient(scalar: Tensor, at: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None) -> Tensor:
    """d scalar / d at; zeros where the scalar does not depend on it at all."""
    if not scalar.requires_grad:
        return torch.zeros_like(at)
    (grad,) = flow.gradients(scalar, at, create_graph=create_graph, retain_graph=retain_graph)
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
