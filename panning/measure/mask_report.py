"""What a mask is good for, in figures: size, multiply-adds, and times measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.compaction.compaction import CompactResult
from panning.compaction.cost import cost
from panning.compaction.image_format import put_channels_last
from panning.foundation.device import accelerator_name, find_device
from panning.foundation.seeding import torch_generator
from panning.masks.enforce import enforce_masks
from panning.masks.masks import Masks
from panning.measure.clock import Run, median_seconds

Forms = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Timing:
    """How long a network takes for one batch: medians in milliseconds.

    Attributes:
        step_ms: forward, backward and an SGD step with momentum, the mask enforced.
        inference_ms: a forward pass in evaluation, without gradients.
        n: repetitions.
    """

    step_ms: float
    inference_ms: float
    n: int


def report(
    result: CompactResult, masks: Masks, n_classes: int, batch_size: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """JSON-able facts of a masked network and its compact form, a dict for each.

    Args:
        masks: those that ``result`` was made by.
        batch_size: of the batch of noise that both are timed on; None times nothing.
        device: where they are timed.
    """
    facts: dict[str, Any] = {
        "density": masks.density,
        "effective_density": masks.effective_density(result.original, result.input_shape),
        **sizes(result, masks),
        "notes": list(result.notes),
    }
    if batch_size is None:
        return facts
    inputs, labels = noise(result, n_classes, batch_size, find_device(device))
    for name, timing in times(result, masks, inputs, labels).items():
        facts[name] |= {"step_ms": timing.step_ms, "inference_ms": timing.inference_ms}
    facts["threads"], facts["batch_size"] = torch.get_num_threads(), batch_size
    if (accelerator := accelerator_name(device)) is not None:
        facts["accelerator"] = accelerator
    return facts


def sizes(result: CompactResult, masks: Masks) -> Forms:
    """Parameters, multiply-adds and bytes, of the form "dense" and of "compact"."""
    return {
        name: {
            **asdict(cost(model, result.input_shape, kept)),
            "weight_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        }
        for name, (model, kept) in _forms(result, masks).items()
    }


def noise(result: CompactResult, n_classes: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch to time a network on."""
    generator = torch_generator(0, "export report")
    inputs = torch.randn(batch_size, *result.input_shape, generator=generator)
    return inputs.to(device), torch.randint(n_classes, (batch_size,), generator=generator).to(device)


def times(
    result: CompactResult, masks: Masks, inputs: Tensor, labels: Tensor, budget_s: float = 10.0
) -> dict[str, Timing]:
    """Time both forms in turns, "dense" and "compact", where the inputs are.

    Args:
        labels: class indices [batch].
        budget_s: for all repetitions together; at least three are made.
    """
    runs = {
        name: _step_and_inference(copy.deepcopy(model).to(inputs.device), kept, inputs, labels)
        for name, (model, kept) in _forms(result, masks).items()
    }
    found, n = median_seconds({(which, name): runs[name][which] for which in (0, 1) for name in runs}, budget_s)
    return {name: Timing(1e3 * found[0, name], 1e3 * found[1, name], n) for name in runs}


def _forms(result: CompactResult, masks: Masks) -> Mapping[str, tuple[nn.Module, Masks | None]]:
    return {"dense": (result.original, masks), "compact": (result.model, result.masks)}


def _step_and_inference(model: nn.Module, masks: Masks | None, inputs: Tensor, labels: Tensor) -> tuple[Run, Run]:
    """A training step and a forward pass of ``model``, to be called again and again."""
    images = put_channels_last(model, inputs[:2])  # as in our training
    inputs = inputs.contiguous(memory_format=images)
    # The rate is too low to learn: a network that diverges ends with NaN, with which some kernels are slow.
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)
    if masks is not None:
        enforce_masks(model, masks, optimizer)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            model(inputs)

    return step, infer
