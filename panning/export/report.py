"""What a mask is good for, in figures: size, multiply-adds, and times measured on this machine."""

from __future__ import annotations

import copy
from typing import Any

import torch

from panning.export.compaction import CompactResult
from panning.export.cost import cost
from panning.export.sparse import sparse_where_faster
from panning.export.timing import time_side_by_side
from panning.masks import Masks
from panning.seeding import torch_generator


def report(result: CompactResult, masks: Masks, n_classes: int, batch_size: int | None = None) -> dict[str, Any]:
    """JSON-able facts of a masked network and its compact form, a dict for each.

    Args:
        masks: those that ``result`` was made by.
        batch_size: of the batch of noise that both are timed on; None times nothing.
    """
    shape = result.input_shape
    dense, small = cost(result.original, shape, masks), cost(result.model, shape, result.masks)
    forms: dict[str, dict[str, Any]] = {
        name: {
            "n_parameters": of.n_parameters,
            "multiply_adds": of.multiply_adds,
            "masked_multiply_adds": of.masked_multiply_adds,
            "weight_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        }
        for name, of, model in (("dense", dense, result.original), ("compact", small, result.model))
    }
    facts: dict[str, Any] = {
        "density": masks.density,
        "effective_density": masks.effective_density(result.original, shape),
        **forms,
        "notes": list(result.notes),
    }
    if batch_size is None:
        return facts
    generator = torch_generator(0, "export report")
    inputs = torch.randn(batch_size, *shape, generator=generator)
    labels = torch.randint(n_classes, (batch_size,), generator=generator)
    networks = {
        "dense": (copy.deepcopy(result.original), masks),
        "compact": (copy.deepcopy(result.model), result.masks),
    }
    for name, timing in time_side_by_side(networks, inputs, labels).items():
        forms[name] |= {"step_ms": timing.step_ms, "inference_ms": timing.inference_ms}
    _, layers = sparse_where_faster(result.model, inputs)
    facts["threads"], facts["batch_size"] = torch.get_num_threads(), batch_size
    facts["sparse_layers"] = [
        {"layer": t.name, "density": t.density, "dense_ms": t.dense_ms, "csr_ms": t.sparse_ms, "csr_wins": t.faster}
        for t in layers
    ]
    return facts
