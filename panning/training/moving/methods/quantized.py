"""Joint quantisation and pruning during training (Zhang et al. 2021, arXiv 2110.08271).

Weights and the inputs of layers run through uniform fake quantisation, and weights are pruned by magnitude along a schedule;
gradients pass straight through both to the dense weights. The two operators do not commute:

- ``prune_quantize``: the largest |w| are kept, then quantised;
- ``quantize_prune``: weights are quantised, and the largest of the *quantised* are kept: small weights are then equal, and
  lots are drawn among them.

Weights are quantised by the largest of their layer, the inputs of a layer by the largest of each sample: nothing is learned
about ranges, and training, evaluation and a network that is loaded later quantise alike. What is shipped has quantised
masked weights; its layers keep quantising their inputs by hooks, which no ``state_dict`` holds: ``quantize_inputs`` puts
them on a network that weights are loaded into, ``run_in_full`` takes them away. Biases, norms and the first layer's input
stay as they are.

NOTE: the paper's library (QSPARSE) learns the ranges; here they are the largest values, as said above.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from panning.foundation.torch_private import drop_forward_pre_hooks
from panning.foundation.wrappers import owners
from panning.masks.layout import Layout
from panning.scoring.problem import Problem
from panning.training.moving.abilities import HooksNetwork, KeepsDenseWeights
from panning.training.moving.hooks import OutOfGraphs
from panning.training.moving.method import N_OF_M, Clock, Count, Memory, Move, Share, View
from panning.training.moving.selection import highest
from panning.training.moving.timing import Ramp

#: In the memory: whether quantisation has begun.
IS_ON = "quantizing"
#: What torch's layers take beside their inputs: masks, and the states of recurrent ones.
NO_INPUTS = ("attn_mask", "key_padding_mask", "hx")


class Quantized(KeepsDenseWeights, HooksNetwork, Ramp):
    """Quantises weights and inputs of layers, and prunes by magnitude along a ramp.

    Attributes:
        weight_bits, activation_bits: None leaves them in full precision.
        order: which operator comes first.
        quantize_from: share of the training; before, only pruning acts.
    """

    shapes: ClassVar[frozenset[str]] = frozenset({N_OF_M})

    every: Count | None = 16
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
        return Move(view.mask)

    def move(self, view: View) -> Move:
        if view.clock.step >= self._starts(view.clock):
            view.memory[IS_ON] = torch.tensor(True)
        weight = view.weight
        if self.order == "quantize_prune" and bool(view.memory[IS_ON]):
            weight = self._quantize(weight, view.layout)
        return Move(highest(weight.abs(), self.n_kept(view), view.generator))

    def run_weights(self, weight: Tensor, mask: Tensor, problem: Problem, memory: Memory) -> Tensor:
        if bool(memory[IS_ON]):
            weight = self._quantize(weight, problem.layout)
        return torch.where(mask, weight, 0.0)

    def _quantize(self, weight: Tensor, layout: Layout) -> Tensor:
        bits = self.weight_bits
        if bits is None:
            return weight
        return torch.cat([quantize(part, bits, part.abs().max()) for part in weight.split(layout.sizes)])

    def attach(self, model: nn.Module, problem: Problem, memory: Memory) -> None:
        if self.activation_bits is not None:
            quantize_inputs(model, problem.layout.names, self.activation_bits, memory)

    def has_arrived(self, clock: Clock, mask: Tensor, n_final: int, memory: Memory) -> bool:
        return super().has_arrived(clock, mask, n_final, memory) and bool(memory[IS_ON])


def quantize_inputs(model: nn.Module, names: Sequence[str], bits: int, memory: Memory | None = None) -> None:
    """Let the layers of these parameters quantise their inputs, all but the first; hooks that were there are replaced.

    What a layer reads within itself is not reached: the input of attention's output projection, the states of a recurrent
    layer.

    Args:
        names: as in ``Layout.names`` or the keys of a mask.
        memory: of a method, which says when it begins; None: at once.
    """
    run_in_full(model)
    modules = owners(model)
    layers = dict.fromkeys(modules[name][1] for name in names)
    for layer in list(layers)[1:]:
        layer.register_forward_pre_hook(QuantizedInput(layer, bits, memory or {}), with_kwargs=True)


def run_in_full(model: nn.Module) -> None:
    """Take the hooks of ``quantize_inputs`` away."""
    for module in model.modules():
        drop_forward_pre_hooks(module, lambda hook: isinstance(hook, QuantizedInput))


class QuantizedInput(OutOfGraphs):  # it asks the memory, which a graph cannot
    """The hook: every input, whether by place or by name, each of its samples by its largest value.

    Samples lie along the first axis, of layers that say ``batch_first=False`` along the second.
    """

    def __init__(self, layer: nn.Module, bits: int, memory: Memory) -> None:
        self.names = tuple(inspect.signature(layer.forward).parameters)
        self.batch_axis = 0 if getattr(layer, "batch_first", True) else 1
        self.bits = bits
        self.memory = memory

    def __call__(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not bool(self.memory.get(IS_ON, True)):
            return None
        by_place = zip_longest(self.names[: len(inputs)], inputs)
        return tuple(self._run(name, given) for name, given in by_place), {n: self._run(n, g) for n, g in named.items()}

    def _run(self, name: str | None, given: Any) -> Any:
        if name in NO_INPUTS or not isinstance(given, Tensor) or not given.is_floating_point():
            return given
        plain = given.detach()
        axes = [axis for axis in range(plain.dim()) if axis != self.batch_axis]
        return given + (quantize(plain, self.bits, plain.abs().amax(axes, keepdim=True)) - plain)


def quantize(values: Tensor, bits: int, largest: Tensor) -> Tensor:
    """The nearest of the 2^bits - 1 values that lie evenly in [-largest, largest], zero among them."""
    levels = 2 ** (bits - 1) - 1
    step = (largest / levels).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / step).round().clamp(-levels, levels) * step
