"""What a network costs: parameters and multiply-adds, dense, by its mask, and compact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from panning.compaction import kernels
from panning.compaction.compaction import CompactResult, compact
from panning.flow import Example, explained, uncompiled
from panning.foundation.errors import ForwardError, ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.nests import map_tensors, told
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.wrappers import owners
from panning.masks.layout import Layout
from panning.masks.masks import Masks
from panning.scoring.problem import Problem

#: No prunable parameter.
NOTHING = Layout((), ())


@dataclass(frozen=True)
class Cost:
    """The parameters of a network, and the multiply-adds of one forward pass of one input.

    Attributes:
        n_parameters: all parameters, biases and norms included.
        multiply_adds: those of convolutions and matrix products, as the network runs.
        masked_multiply_adds: those with a kept weight, which a kernel that skips every zero would have to do. Those of
            attention are all counted: most of them multiply activations.
    """

    n_parameters: int
    multiply_adds: int
    masked_multiply_adds: int


def cost(model: nn.Module, example: Sequence[int] | Example, masks: Masks | None = None) -> Cost:
    """The cost of ``model`` in evaluation; the model is left as it is.

    Args:
        example: the shape of one input, without the batch, of numbers or else of tokens; or what the network is run on.
        masks: of its weights; None means dense.
    """
    n_parameters = sum(p.numel() for p in model.parameters())
    if masks is None:
        total = multiply_adds(model, example, NOTHING).total
        return Cost(n_parameters, total, total)
    adds = multiply_adds(model, example, masks.layout)
    return Cost(n_parameters, adds.total, round(adds.left(masks.flat)))


@dataclass(frozen=True)
class MultiplyAdds:
    """The multiply-adds of one forward pass of one input, by layer.

    Attributes:
        total: those of the dense network, including what no mask saves.
        by_layer: for each parameter of ``layout``, those that zeros in the parameter save.
    """

    layout: Layout
    total: int
    by_layer: Sequence[int]

    def left(self, mask: Tensor) -> float:
        """The multiply-adds with a weight that a flat mask keeps."""
        counts = zip(self.layout.counts(mask), self.layout.sizes, self.by_layer, strict=True)
        return self.total - sum(n_ops * (1.0 - n / size) for n, size, n_ops in counts)


def multiply_adds(model: nn.Module, example: Sequence[int] | Example, layout: Layout) -> MultiplyAdds:
    """Count the multiply-adds in one forward pass.

    Args:
        example: as for ``cost``.
        layout: the parameters whose multiply-adds are wanted.

    Raises:
        ModelError: if the network does not run on the inputs.
    """
    if isinstance(example, Example):
        counter = _run_counted(model, example)
    else:
        try:
            counter = _run_counted(model, Example.of_shape(model, example))
        except ForwardError as error:
            try:
                counter = _run_counted(model, Example(torch.zeros(1, *example, dtype=torch.long)))  # tokens
            except ForwardError:
                raise error from None
    by_module = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    by_layer, modules = [], owners(model)
    for name in layout.names:
        owner, module = modules[name]
        attention = isinstance(module, nn.MultiheadAttention)
        by_layer.append(0 if attention else by_module.get(f"{type(model).__name__}.{owner}".rstrip("."), 0))
    return MultiplyAdds(layout, by_module.get("Global", 0), by_layer)


def _run_counted(model: nn.Module, example: Example) -> FlopCounterMode:
    """The counts of one forward pass."""
    reference = next(model.parameters())
    inputs = map_tensors(lambda x: x.to(reference.device), example.inputs)
    counter = FlopCounterMode(display=False, custom_mapping=kernels.rows())
    try:
        with (
            explained(model, inputs), as_it_was(model), kernels.plain_attention(), counter, uncompiled(), torch.no_grad(),
            isolated_torch_rng(0),
        ):  # fmt: skip
            example.forward(model.eval(), inputs)
    except ForwardError as error:
        raise ForwardError(
            f"The model fails on one input, {told(inputs)}. If its inputs are of another kind, pass data. {error}"
        ) from error
    return counter


def multiply_adds_left(result: CompactResult, example: Example | None = None) -> float:
    """The compact network's multiply-adds, as a share of the dense network's.

    Args:
        example: what both are run on; None takes the shape that is known.
    """
    on = example or result.input_shape
    dense, small = (cost(model, on).multiply_adds for model in (result.original, result.model))
    return small / max(dense, 1)


def compute_left(problem: Problem, masks: Masks) -> float:
    """The share of the dense network's multiply-adds that compaction leaves; 1 where there is no compact form."""
    result = compacted(problem, masks)
    return 1.0 if result is None else multiply_adds_left(result, problem.real_example)


def compact_cost(problem: Problem, masks: Masks) -> Cost | None:
    """The cost of a problem's compact network; None where there is no compact form."""
    result = compacted(problem, masks)
    return None if result is None else cost(result.model, problem.real_example)


def compacted(problem: Problem, masks: Masks) -> CompactResult | None:
    """The compact form of a problem's network, if there is one."""
    try:
        if problem.input_shape is not None:
            return compact(problem.model, masks, problem.input_shape)
        return compact(problem.model, masks, example_inputs=problem.example.inputs, forward=problem.example.forward)
    except ModelError:
        return None
