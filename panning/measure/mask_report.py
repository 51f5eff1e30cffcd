"""What a mask is good for, in figures: size, multiply-adds, and times measured on this machine."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from panning.compaction.compaction import CompactResult
from panning.compaction.cost import cost
from panning.foundation.seeding import torch_generator
from panning.masks.masks import Masks
from panning.measure.sparse import sparse_where_faster
from panning.measure.timing import Timing, time_side_by_side

Forms = dict[str, dict[str, Any]]


def report(result: CompactResult, masks: Masks, n_classes: int, batch_size: int | None = None) -> dict[str, Any]:
    """JSON-able facts of a masked network and its compact form, a dict for each.

    Args:
        masks: those that ``result`` was made by.
        batch_size: of the batch of noise that both are timed on; None times nothing.
    """
    facts: dict[str, Any] = {
        "density": masks.density,
        "effective_density": masks.effective_density(result.original, result.input_shape),
        **sizes(result, masks),
        "notes": list(result.notes),
    }
    if batch_size is None:
        return facts
    inputs, labels = noise(result, n_classes, batch_size)
    for name, timing in times(result, masks, inputs, labels).items():
        facts[name] |= {"step_ms": timing.step_ms, "inference_ms": timing.inference_ms}
    _, layers = sparse_where_faster(result.model, inputs)
    facts["threads"], facts["batch_size"] = torch.get_num_threads(), batch_size
    facts["sparse_layers"] = [
        {"layer": t.name, "density": t.density, "dense_ms": t.dense_ms, "csr_ms": t.sparse_ms, "csr_wins": t.faster}
        for t in layers
    ]
    return facts


def sizes(result: CompactResult, masks: Masks) -> Forms:
    """Parameters, multiply-adds and bytes, of the form "dense" and of "compact"."""
    forms = {"dense": (result.original, masks), "compact": (result.model, result.masks)}
    return {
        name: {
            **asdict(cost(model, result.input_shape, kept)),
            "weight_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        }
        for name, (model, kept) in forms.items()
    }


def noise(result: CompactResult, n_classes: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """A batch to time a network on."""
    generator = torch_generator(0, "export report")
    inputs = torch.randn(batch_size, *result.input_shape, generator=generator)
    return inputs, torch.randint(n_classes, (batch_size,), generator=generator)


def times(
    result: CompactResult, masks: Masks, inputs: Tensor, labels: Tensor, budget_s: float = 10.0
) -> dict[str, Timing]:
    """Both forms timed in turns, "dense" and "compact"; copies are trained."""
    forms = {"dense": (result.original, masks), "compact": (result.model, result.masks)}
    copies = {name: (copy.deepcopy(model), kept) for name, (model, kept) in forms.items()}
    return time_side_by_side(copies, inputs, labels, budget_s)
