"""The loss of a problem: a network's own, or cross-entropy; and what of a batch its outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning.data.batches import Batch
from panning.foundation.errors import DataError
from panning.foundation.nests import entry, logits_of, told

#: (what the network gives, what it is compared with) -> one number.
Loss = Callable[[Any, Any], Tensor]

#: The entry of a mapping that a network compares its outputs with, as Hugging Face's networks call it.
LABELS = "labels"


def own_loss(outputs: Any) -> Tensor | None:
    """The loss that a network has computed itself: one number, or the ``loss`` of an output object or mapping."""
    found = outputs if isinstance(outputs, Tensor) else entry(outputs, "loss")
    return found if isinstance(found, Tensor) and not found.dim() and found.is_floating_point() else None


def labels_of(batch: Batch) -> Tensor | None:
    """The tensor that outputs are compared with; None if the batch holds no such tensor.

    Of a whole pair that ``forward`` takes, this is the second part; of a mapping, its ``labels``.
    """
    inputs, targets = batch
    return _labels_in(targets[1] if inputs is targets and _is_pair(targets) else targets)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _labels_in(targets: Any) -> Tensor | None:
    found = targets.get(LABELS) if isinstance(targets, Mapping) else targets
    return found if isinstance(found, Tensor) else None


def default_loss(outputs: Any, targets: Any) -> Tensor:
    """The network's own loss, or else the cross-entropy of its logits with the targets.

    Raises:
        DataError: if there is neither, or the targets are numbers that are no probabilities.
    """
    if (own := own_loss(outputs)) is not None:
        return own
    logits, labels = logits_of(outputs), _labels_in(targets)
    if not isinstance(logits, Tensor) or labels is None:
        raise DataError(
            f"The network gives {told(outputs)} and no loss of its own, and cross-entropy cannot compare it with "
            f"{told(targets)}: pass loss=, a function that makes one number of both."
        )
    if labels.is_floating_point():
        _check_probabilities(labels)
    return F.cross_entropy(logits, labels)


def _check_probabilities(targets: Tensor) -> None:
    """Cross-entropy takes any numbers for the probabilities of classes; those of a regression make scores of nothing."""
    sums = targets.float().sum(min(1, targets.dim() - 1))
    if bool((targets < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise DataError(
            "Cross-entropy, the loss without loss=, compares logits with whole numbers or with probabilities of classes; "
            f"the targets, {told(targets)}, are neither. Pass loss=, like torch.nn.functional.mse_loss for a regression or "
            "binary_cross_entropy_with_logits for yes and no."
        )


def default_loss_of_batch(outputs: Any, batch: Any) -> Tensor:
    """``default_loss`` where ``forward`` takes the whole batch."""
    return default_loss(outputs, batch[1] if _is_pair(batch) else batch)
