"""Joint quantisation and pruning during training (Zhang et al. 2021, arXiv 2110.08271).

Weights and the inputs of layers run through uniform fake quantisation, and weights are pruned by magnitude along a schedule;
gradients pass straight through both to the dense weights. The two operators do not commute:

- ``prune_quantize``: the largest |w| are kept, then quantised;
- ``quantize_prune``: weights are quantised, and the largest of the *quantised* are kept: small weights are then equal.

What is shipped has quantised masked weights, and its layers keep quantising their inputs. Biases, norms and the first
layer's input stay as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from panning.allocation import top_k
from panning.layout import Layout
from panning.problem import Problem
from panning.training.dynamic import Clock, Holds, Memory, Move, Ramp, Share, View

#: In the memory: 1 once quantisation has begun, and the largest input of each layer seen, as a running mean.
IS_ON, LARGEST = "quantizing", "largest inputs"
#: Of the running mean of the largest inputs.
MEMORY = 0.99


class Quantized(Ramp):
    """
    Attributes:
        weight_bits, activation_bits: None leaves them in full precision.
        order: which operator comes first.
        quantize_from: share of the training; before, only pruning acts.
    """

    holds: ClassVar[Holds] = "feedback"

    every: Annotated[int, Field(ge=1)] | None = 16
    weight_bits: Annotated[int, Field(ge=2, le=16)] | None = 8
    activation_bits: Annotated[int, Field(ge=2, le=16)] | None = 8
    order: Literal["prune_quantize", "quantize_prune"] = "prune_quantize"
    quantize_from: Share = 0.0

    def _starts(self, clock: Clock) -> int:
        return round(self.quantize_from * clock.n_steps)

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) or clock.step == self._starts(clock)

    def begin(self, view: View) -> Move:
        view.memory[IS_ON] = torch.tensor(self.quantize_from == 0.0)
        view.memory[LARGEST] = torch.zeros(len(view.layout.names))
        return Move(view.mask)

    def move(self, view: View) -> Move:
        if view.clock.step >= self._starts(view.clock):
            view.memory[IS_ON] = torch.tensor(True)
        weight = view.weight
        if self.order == "quantize_prune" and bool(view.memory[IS_ON]):
            weight = self._quantize(weight, view.layout)
        return Move(top_k(weight.abs(), self.n_kept(view)))

    def run_weights(self, weight: Tensor, mask: Tensor, problem: Problem, memory: Memory) -> Tensor:
        if bool(memory[IS_ON]):
            weight = self._quantize(weight, problem.layout)
        return torch.where(mask, weight, 0.0)

    def _quantize(self, weight: Tensor, layout: Layout) -> Tensor:
        bits = self.weight_bits
        if bits is None:
            return weight
        return torch.cat([quantize(part, bits, part.abs().max()) for part in weight.split(layout.sizes)])

    def attach(self, model: nn.Module, problem: Problem, memory: Memory) -> list[Any]:
        bits = self.activation_bits
        if bits is None:
            return []
        owners = [model.get_submodule(name.rpartition(".")[0]) for name in problem.layout.names]
        return [
            owner.register_forward_pre_hook(QuantizedInput(memory, number, bits))
            for number, owner in enumerate(owners)
            if number > 0
        ]


class QuantizedInput:
    """The hook that quantises the input of layer ``number``; its range is learned in training and fixed in evaluation."""

    def __init__(self, memory: Memory, number: int, bits: int) -> None:
        self.memory = memory
        self.number = number
        self.bits = bits

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
        if not bool(self.memory[IS_ON]):
            return None
        given = inputs[0]
        largest = self.memory[LARGEST]
        if module.training:
            now, before = given.detach().abs().max().float().cpu(), largest[self.number]
            largest[self.number] = now if before == 0 else MEMORY * before + (1.0 - MEMORY) * now
        scale = largest[self.number].to(given.device, given.dtype)
        quantized = given + (quantize(given.detach(), self.bits, scale) - given.detach())
        return (quantized, *inputs[1:])


def quantize(values: Tensor, bits: int, largest: Tensor) -> Tensor:
    """The nearest of the 2^bits - 1 values that lie evenly in [-largest, largest], zero among them."""
    levels = 2 ** (bits - 1) - 1
    step = (largest / levels).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / step).round().clamp(-levels, levels) * step
