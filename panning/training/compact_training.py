"""Whether the compact network is trained in the masked network's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panning.compaction.compaction import CompactResult, compact
from panning.compaction.cost import multiply_adds_left
from panning.compaction.image_format import adds_parts
from panning.foundation.errors import ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.masks.masks import Masks

#: Making a network compact takes about as long as twenty of its steps, and narrow layers do fewer multiply-adds a second.
COMPACT_FROM_STEPS, COMPACT_BELOW = 100, 0.8
#: Adding parts of the units takes time, too: a compact ResNet-20 with 0.35 of its multiply-adds left is no faster in
#: bfloat16, with 0.08 it takes two thirds of the time.
COMPACT_BELOW_IN_PARTS = 0.25


def worthwhile_compact(model: nn.Module, masks: Masks, n_steps: int, inputs: Tensor) -> CompactResult | None:
    """The compact network if training it repays making it; decided by counts, so equally on every machine.

    None for a network that draws random numbers in training: its compact network would draw others.

    Args:
        inputs: a small batch.
    """
    if n_steps < COMPACT_FROM_STEPS:
        return None
    try:
        result = compact(model, masks, tuple(inputs.shape[1:]))
        most = COMPACT_BELOW_IN_PARTS if adds_parts(result.model) else COMPACT_BELOW
        if multiply_adds_left(result) >= most or _draws(model, inputs):
            return None
    except ModelError:  # it has no compact form, and trains as it is
        return None
    return result


def _draws(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a forward pass in training draws random numbers on its device: dropout, for instance."""
    generators = torch if inputs.device.type == "cpu" else torch.get_device_module(inputs.device)
    with as_it_was(model), torch.no_grad(), isolated_torch_rng(0):
        before = generators.get_rng_state()
        model.train()(inputs)
        return not torch.equal(before, generators.get_rng_state())
