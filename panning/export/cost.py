"""What a network costs: parameters and multiply-adds, dense, by its mask, and compact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from panning.errors import ModelError
from panning.export.compaction import CompactResult, compact
from panning.export.trace import as_it_was
from panning.masks import Masks
from panning.problem import Problem
from panning.seeding import isolated_torch_rng


@dataclass(frozen=True)
class Cost:
    """Of one forward pass of one input.

    Attributes:
        n_parameters: all of them, biases and norms included.
        multiply_adds: of convolutions and matrix products, as the network runs.
        masked_multiply_adds: those with a kept weight: what a kernel that skips every zero would have to do. An attention's
            are all counted: most of them multiply activations.
    """

    n_parameters: int
    multiply_adds: int
    masked_multiply_adds: int


def cost(model: nn.Module, input_shape: Sequence[int], masks: Masks | None = None) -> Cost:
    """The cost of ``model`` in evaluation; it is left as it is.

    Args:
        input_shape: of one input, without the batch.
        masks: of its weights; None means dense.
    """
    densities = masks.layer_densities() if masks is not None else {}
    total, by_layer = multiply_adds(model, input_shape, densities)
    saved = sum(by_layer[name] * (1.0 - density) for name, density in densities.items())
    return Cost(sum(p.numel() for p in model.parameters()), total, round(total - saved))


def multiply_adds(
    model: nn.Module, input_shape: Sequence[int], names: Iterable[str], inputs: Tensor | None = None
) -> tuple[int, dict[str, int]]:
    """The multiply-adds of one forward pass of one input, and those of the named parameters, which zeros in them save.

    Args:
        inputs: a batch of one; None takes zeros.

    Raises:
        ModelError: if the network does not run on it.
    """
    reference = next(model.parameters())
    if inputs is None:
        inputs = torch.zeros(1, *input_shape, dtype=reference.dtype)
    counter = FlopCounterMode(display=False)
    try:
        with as_it_was(model), _no_fused_attention(), counter, torch.no_grad(), isolated_torch_rng(0):
            model.eval()(inputs.to(reference.device))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"The model fails on one input of shape {tuple(inputs.shape[1:])} and {inputs.dtype}: {error}. If its inputs "
            "are of another kind, pass data."
        ) from error
    by_module = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    by_layer = {}
    for name in names:
        owner = name.rpartition(".")[0]
        attention = isinstance(model.get_submodule(owner), nn.MultiheadAttention)
        by_layer[name] = 0 if attention else by_module.get(f"{type(model).__name__}.{owner}".rstrip("."), 0)
    return by_module.get("Global", 0), by_layer


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Encoder layers as single operations; the counter takes the kernel that is one for the whole layer for nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def multiply_adds_left(result: CompactResult) -> float:
    """Those of the compact network, as a share of the dense one's."""
    dense, small = (cost(model, result.input_shape).multiply_adds for model in (result.original, result.model))
    return small / max(dense, 1)


def compute_left(problem: Problem, masks: Masks) -> float:
    """The share of the dense network's multiply-adds that compaction leaves; 1 where there is no compact form."""
    try:
        return multiply_adds_left(compact(problem.model, masks, problem.input_shape))
    except ModelError:
        return 1.0
