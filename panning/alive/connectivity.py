"""Connectivity: which kept weights are alive.

A weight is alive if it is kept, some unmasked path leads from the input to it, and some unmasked path from it to the
output. Computed exactly by booleans: one forward and one backward pass of a single all-ones input through the network's
own graph with masks as weights, where every product is cut to 0 or 1 in both directions. Residual sums, concatenations,
flatten, grouped convolutions, padding and small maps are then what they are in the network; nothing over- or underflows
at any depth. Biases keep nothing alive; max-pooling counts every tap that could win.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from panning import flow
from panning.foundation.device import device_of
from panning.foundation.errors import DensityError, ForwardError, MaskError, ModelError
from panning.foundation.wrappers import own_parameters, unwrapped
from panning.masks.layout import Layout, prunable_parameters
from panning.masks.masks import Masks, fitted
from panning.masks.selection import n_true
from panning.scoring.problem import Problem

#: In ``smallest_alive``, how much less a path counts for being one layer longer, in powers of two.
LONGER_BY_BITS = 40
#: The weight of one path in the count of paths, which may exceed float64 otherwise. A power of two rounds nothing.
FEW = 2.0**-900


@dataclass(frozen=True, eq=False)
class Connectivity:
    """The alive test of one network, ready for any number of masks.

    Attributes:
        example: what the network is run on, or the shape of its one input, without the batch.
    """

    model: nn.Module
    layout: Layout
    example: tuple[int, ...] | flow.Example

    @classmethod
    def of(cls, problem: Problem) -> Connectivity:
        """The alive test of a problem's network, made once: what it has found of the network stays known."""
        if problem not in _KNOWN:
            _KNOWN[problem] = cls(problem.where_scored.model, problem.layout, problem.example)
        return _KNOWN[problem]

    def connected(self, mask: Tensor) -> Tensor:
        """Flat bool: where a kept weight would be alive, given all *other* kept weights.

        True also for a masked weight between a unit that the input reaches and one that reaches the output: keeping it
        as well makes exactly this one more weight alive.
        """
        with torch.enable_grad():  # callers may ask inside an evaluation loop
            return self._connected(mask)

    def _connected(self, mask: Tensor) -> Tensor:
        gates = mask.view(torch.uint8).to(self._device, torch.float32).requires_grad_()
        others = ones_beside(self.model, self.layout, torch.float32)
        outputs = self._run({**others, **self.layout.views(gates)}, flow.BOOLEAN)
        if not outputs:  # none of them depends on the input or on a weight
            return torch.zeros_like(mask)
        # A weight that no output depends on is dead, like those of a head that is used in training only.
        starts = [torch.ones_like(output) for output in outputs]
        (grad,) = flow.gradients(outputs, gates, starts)
        return (grad > 0.5).to(mask.device)

    def reached_outputs(self, mask: Tensor) -> tuple[int, int]:
        """The number of output entries (of a classifier: classes) that some path from the input reaches, and of all."""
        outputs = self._outputs(mask, flow.BOOLEAN, torch.float32)
        return sum(int((output > 0).sum()) for output in outputs), sum(output.numel() for output in outputs)

    @cached_property
    def n_outputs(self) -> int:
        """The number of output entries; of a classifier its classes."""
        return self.reached_outputs(self.dense)[1]

    def log10_paths(self, mask: Tensor) -> float | None:
        """The decimal logarithm of the number of paths from input to output, entry by entry (``flow.counting``).

        None where there is no path, more than float64 can tell, or a function that the count does not follow.
        """
        try:
            total = sum(float(output.sum()) for output in self._outputs(mask, flow.counting(), torch.float64, FEW))
        except ForwardError:
            return None
        return math.log10(total) - math.log10(FEW) if 0.0 < total < math.inf else None

    def _outputs(
        self, mask: Tensor, rules: Mapping[Any, flow.Rule], dtype: torch.dtype, start: float = 1.0
    ) -> list[Tensor]:
        """The outputs under a mask of zeros and ones, on an input whose entries are all ``start``."""
        with torch.enable_grad():
            gates = mask.to(self._device, dtype).requires_grad_()
            parameters = {**ones_beside(self.model, self.layout, dtype), **self.layout.views(gates)}
            return [output.detach() for output in self._run(parameters, rules, dtype, start)]

    def alive(self, mask: Tensor) -> Tensor:
        """Flat bool: the alive weights of ``mask``."""
        return self.connected(mask) & mask

    def n_alive(self, mask: Tensor) -> int:
        return n_true(self.alive(mask))

    @cached_property
    def dense(self) -> Tensor:
        """Flat bool: the weights that are alive where all are kept."""
        return self.alive(torch.ones(self.layout.n_prunable, dtype=torch.bool, device=self._device))

    def smallest_alive(self) -> int:
        """The fewest prunable weights that connect the input with the output; 0 where a path goes around all of them.

        Where weights are tied this is a bound from below: a path that needs two different weights of a matrix that is
        used twice is taken to need one.

        Raises:
            ModelError: if no prunable weight lies on any path.
        """
        return self._smallest

    @cached_property
    def _smallest(self) -> int:
        shares = self.path_shares()
        if shares is None:
            return 1  # a bound that refuses nothing
        uses = [(float(part.sum()), n) for part, n in zip(shares.split(self.layout.sizes), self.n_uses, strict=True)]
        tied = sum(use / n for use, n in uses if n > 1)
        return round(sum(use for use, n in uses if n == 1)) + math.ceil(tied - 1e-3)

    def path_shares(self, mask: Tensor | None = None) -> Tensor | None:
        """Flat float64: how often a shortest path through ``mask`` (None: through all weights) uses each weight, on average
        over all such paths; None where float64 cannot tell.

        With every weight a tiny e over its fan-in, the output sums e^length over all paths, nearly all of it from the
        shortest; its derivative by a weight's logarithm is the part that passes through the weight. A use of a weight that
        is used n times is a path's n-th part of a layer.

        Raises:
            ModelError: if no prunable weight lies on any path.
        """
        for bits in (LONGER_BY_BITS, min(LONGER_BY_BITS, 1450 // len(self.layout.names))):  # what all layers can have
            try:
                total, shares = self._path_sum(bits, mask)
            except ForwardError:  # what fails here may still run on booleans
                return None
            if shares.any() and 2.0**-900 < total < math.inf:
                return shares / total
        if mask is None and not shares.any():
            raise ModelError(
                "No prunable weight of this network lies on a path from the input to the output that panning can follow: "
                "docs/layers.md names the layers that it knows."
            )
        return None

    def _path_sum(self, bits: int, mask: Tensor | None) -> tuple[float, Tensor]:
        """The sum over all paths, and for each weight [n_prunable] the part of it that passes through the weight."""
        n_kept = self.layout.sizes if mask is None else self.layout.counts(mask)
        tiny = [
            2.0 ** (-bits / n) / max(1, min(math.prod(shape[1:]), kept))
            for shape, n, kept in zip(self.layout.shapes, self.n_uses, n_kept, strict=True)
        ]
        flat = self.layout.per_layer(tiny, torch.float64).to(self._device)
        flat = flat if mask is None else flat * mask.view(torch.uint8)
        # Both directions start large, since they shrink by e at every layer.
        start = 2.0 ** min(490, bits * len(tiny) // 3)
        with torch.enable_grad():
            flat.requires_grad_()
            parameters = {**ones_beside(self.model, self.layout, torch.float64), **self.layout.views(flat)}
            outputs = self._run(parameters, flow.SHORTEST, torch.float64, start)
            if not outputs:
                return 0.0, torch.zeros_like(flat)
            seeds = [torch.full_like(output, start) for output in outputs]
            (grad,) = flow.gradients(outputs, flat, seeds)
        total = sum(float((output.detach() * seed).sum()) for output, seed in zip(outputs, seeds, strict=True))
        return total, flat.detach() * grad

    @cached_property
    def n_uses(self) -> tuple[int, ...]:
        """How often the network multiplies with each parameter: more than once where weights are tied."""
        with torch.enable_grad():
            flat = torch.ones(self.layout.n_prunable, device=self._device, requires_grad=True)
            views = self.layout.views(flat)
            parameters = {**ones_beside(self.model, self.layout, torch.float32), **views}
            outputs = self._run(parameters, flow.BOOLEAN)
        uses: dict[Any, int] = {view.grad_fn: 0 for view in views.values()}
        seen: set[Any] = {None}
        todo: list[Any] = [output.grad_fn for output in outputs]
        while todo:
            if (node := todo.pop()) in uses:
                uses[node] += 1  # every use is one more edge of the graph to the parameter
            elif node not in seen:
                seen.add(node)
                todo += [source for source, _ in node.next_functions]
        return tuple(max(1, n) for n in uses.values())

    @cached_property
    def output_layers(self) -> frozenset[str]:
        """The prunable parameters whose units are the network's outputs: no other layer reads them.

        Told from the graph of one pass: from the output back, up to the first product with a parameter of ``KINDS``.
        """
        registered = own_parameters(self.model)
        kinds = prunable_parameters(self.model, self.layout.found)
        names = [name for name in registered if name in kinds]
        with torch.enable_grad():
            gates = {n: torch.ones_like(registered[n], dtype=torch.float32, requires_grad=True) for n in names}
            views = {n: gate.view(gate.shape) for n, gate in gates.items()}
            others = {n: torch.ones_like(p, dtype=torch.float32) for n, p in registered.items() if n not in gates}
            outputs = self._run({**others, **views}, flow.BOOLEAN)
        weights: dict[Any, str] = {view.grad_fn: name for name, view in views.items()}
        readers: dict[Any, list[Any]] = {}  # node -> the nodes that read what it makes
        ends: list[Any] = [output.grad_fn for output in outputs]
        todo, seen = [*ends], {None, *ends}
        while todo:
            node = todo.pop()
            for source, _ in node.next_functions:
                readers.setdefault(source, []).append(node)
                if source not in seen:
                    seen.add(source)
                    todo.append(source)
        products: dict[Any, str] = {}
        for weight, name in weights.items():
            reading = list(readers.get(weight, ()))
            while reading:  # a weight may be reshaped before it is multiplied with
                node = reading.pop()
                if sum(source is not None for source, _ in node.next_functions) > 1:
                    products[node] = name
                else:
                    reading += readers.get(node, ())
        found, todo, seen = set(), [*ends], {None}
        while todo:
            if (node := todo.pop()) in products:
                found.add(products[node])
            elif node not in seen:
                seen.add(node)
                todo += [source for source, _ in node.next_functions]
        return frozenset(found)

    @property
    def _device(self) -> torch.device:
        return device_of(self.model)

    @cached_property
    def _example(self) -> flow.Example:
        given = self.example
        return given if isinstance(given, flow.Example) else flow.Example.of_shape(self.model, given)

    def _run(
        self, parameters: Mapping[str, Tensor], rules: Mapping[Any, flow.Rule], dtype: torch.dtype = torch.float32,
        start: float = 1.0,
    ) -> list[Tensor]:  # fmt: skip
        """The outputs on an input whose entries are all ``start``."""
        return self._example.paths(self.model, parameters, rules, dtype, start)

    def check_reachable(self, n_kept: int) -> int:
        """``smallest_alive``; raises DensityError if fewer weights are asked for."""
        if n_kept < (smallest := self.smallest_alive()):
            raise DensityError(
                f"{n_kept} weights cannot connect the input with the output of this network: a path needs {smallest}. "
                f"The smallest density is {smallest / self.layout.n_prunable:.3g}."
            )
        return smallest


#: The alive tests of the problems that are in use.
_KNOWN: WeakKeyDictionary[Problem, Connectivity] = WeakKeyDictionary()


def ones_beside(model: nn.Module, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Ones for every parameter that is not masked: it cuts nothing, and flows drop what it adds."""
    masked = set(layout.names)
    return {name: torch.ones_like(p, dtype=dtype) for name, p in own_parameters(model).items() if name not in masked}


def connectivity_of(
    model: nn.Module, masks: Masks, input_shape: tuple[int, ...] | None = None, example_inputs: Any = None,
    forward: flow.Forward | None = None,
) -> tuple[Connectivity, Masks]:  # fmt: skip
    """The alive test of a network that ``masks`` are for, and the masks with the network's own names.

    Raises:
        MaskError: if the mask belongs to another network, or neither it nor the caller gives the input shape.
    """
    model = unwrapped(model)
    masks = fitted(model, masks)
    shape = input_shape or masks.input_shape
    if example_inputs is None and shape is None:
        raise MaskError(
            "This mask does not say the network's input shape; pass input_shape=(channels, height, width), or "
            "example_inputs= for a network that takes more than one tensor."
        )
    call = forward or flow.call
    if example_inputs is not None or shape is None:
        example = flow.Example(example_inputs, call)
    else:
        example = flow.Example.of_shape(model, shape, call)
    return Connectivity(model, masks.layout, example), masks


def alive_flat(
    model: nn.Module, masks: Masks, input_shape: tuple[int, ...] | None = None, example_inputs: Any = None,
    forward: flow.Forward | None = None,
) -> Tensor:  # fmt: skip
    """The alive weights of ``masks``, flat bool [n_prunable]; arguments and errors as for ``connectivity_of``."""
    connectivity, masks = connectivity_of(model, masks, input_shape, example_inputs, forward)
    return connectivity.alive(masks.flat)
