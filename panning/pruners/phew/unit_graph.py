"""The units of a network and what connects them, found by one pass in which every activation carries its unit's number.

For walks (``pruners.phew``): which channel or neuron leads to which, through the user's own code, without knowing its
modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panning import flow
from panning.flow import functions
from panning.flow.linear import depends
from panning.foundation.errors import ModelError
from panning.foundation.nests import map_tensors, tensors_in, told
from panning.scoring.problem import Problem

IN_PLACE = (*functions.ADDITIONS_IN_PLACE, Tensor.mul_, Tensor.div_)


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """Kernels [groups, outputs, inputs, taps], their flat positions (None: not prunable), the taps that read the map."""

    weight: Tensor
    positions: Tensor | None
    taps: Tensor

    def cpu(self) -> UnitLayer:
        return UnitLayer(self.weight.cpu(), None if self.positions is None else self.positions.cpu(), self.taps.cpu())


@dataclass(frozen=True, eq=False)
class UnitNode:
    """Units start .. start + n_units - 1, and the (earlier unit, slot) pairs that lead to them.

    A layer's slots are its input units, in a group each connected with all output units. Without a layer, slot j belongs
    to unit j alone: where two branches meet, and at the output. A node of the input has no pairs.
    """

    start: int
    n_units: int
    units: Tensor
    slots: Tensor
    layer: UnitLayer | None = None

    def slots_to(self, units: Tensor) -> Tensor:
        """Bool: the slots from which one of some units of this node (a bool each) is reached."""
        if self.layer is None:
            return units
        groups, outputs, inputs, _ = self.layer.weight.shape
        return units.view(groups, outputs).any(1).repeat_interleave(inputs)


def trace(problem: Problem) -> tuple[list[UnitNode], Tensor]:
    """The nodes in the order of the forward pass, the output's last; and, for each unit, whether it leads to the output."""
    tracer = _Trace(problem.weight)
    others = {name: p.double() if p.is_floating_point() else p for name, p in problem.other_parameters().items()}
    parameters = {**others, **problem.layout.views(tracer.flat)}
    with torch.enable_grad():  # what requires a gradient carries units, everything else is a constant
        inputs = _numbered(problem.example, tracer)
        outputs = problem.example.outputs(problem.model, parameters, inputs, tracer.rules(), torch.float64)
    units = torch.cat([tracer.read(output).unique() for output in outputs]).unique()
    units = units[units > 0]
    if not units.numel():
        raise ModelError("PHEW finds no walk from the input of this network to its output; 'synflow_l2' needs none.")
    output_units = tracer.append(units.numel(), units, torch.arange(units.numel(), device=units.device))
    return tracer.nodes, tracer.above(output_units)


def _numbered(example: flow.Example, tracer: _Trace) -> Any:
    """The example's inputs, each with the numbers of its units: those along the first axis after the batch.

    Raises:
        ModelError: if the example is not one sample of real inputs, beside what stays the same for all.
    """

    def one(tensor: Tensor) -> Tensor:
        if example.flows(tensor):
            shape = tensor.shape[1:]
            ids = tracer.input_units(shape[0])
            return _planes(ids.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape))
        return tensor.to(tracer.flat.device).expand(3, *tensor.shape[1:]) if tensor.dim() else tensor

    shaped = [tensor for tensor in tensors_in(example.inputs) if tensor.dim()]
    flowing = any(example.flows(tensor) for tensor in shaped)
    if not flowing or any(len(tensor) != 1 or tensor.dim() < 2 and example.flows(tensor) for tensor in shaped):
        raise ModelError(
            f"PHEW walks from the units of real inputs, one sample of each, and this network takes {told(example.inputs)}; "
            "'synflow_l2' can follow it."
        )
    return map_tensors(one, example.inputs)


def _key(ids: Tensor) -> Tensor:
    return torch.sin(ids * ids) + 2.0


def _planes(ids: Tensor) -> Tensor:
    """Activations [3n, ...] that carry unit numbers ids [n, ...], 0 for none: (1, id, key(id)).

    Pools, means, shifts and scalings change all three alike and leave the ratios as they are; where different units mix,
    the key no longer fits.
    """
    value = ids.double()
    present = (ids > 0).double()
    return torch.cat([present, value, present * _key(value)]).requires_grad_().clone()  # a leaf cannot be written into


class _Trace:
    """Numbers units from 1 and notes nodes while the network runs under ``rules``."""

    def __init__(self, weight: Tensor) -> None:
        self.flat = weight.detach().clone()  # storage of its own, by which a layer's weight is recognised
        self.positions = torch.arange(weight.numel(), device=weight.device)
        self.nodes: list[UnitNode] = []
        self.n_ids = 1

    def append(self, n_units: int, units: Tensor, slots: Tensor, layer: UnitLayer | None = None) -> Tensor:
        """The numbers of a new node's units."""
        self.nodes.append(UnitNode(self.n_ids, n_units, units, slots, layer))
        self.n_ids += n_units
        return torch.arange(self.n_ids - n_units, self.n_ids, device=self.flat.device)

    def input_units(self, n_units: int) -> Tensor:
        """The numbers of new units where walks begin."""
        none = torch.empty(0, dtype=torch.long, device=self.flat.device)
        return self.append(n_units, none, none)

    def above(self, units: Tensor) -> Tensor:
        """Bool [n_ids]: some units and all from which a walk leads to one of them."""
        reached = torch.zeros(self.n_ids, dtype=torch.bool, device=self.flat.device)
        reached[units.flatten()] = True
        for node in reversed(self.nodes):
            slots = node.slots_to(reached[node.start : node.start + node.n_units])
            reached[node.units[slots[node.slots]]] = True
        return reached

    def read(self, x: Tensor) -> Tensor:
        """The unit numbers [n, ...] that x [3n, ...] carries; 0 where there is none, or a mixture."""
        if x.dim() == 0 or x.shape[0] % 3:
            raise ModelError("PHEW cannot follow a network that moves the batch axis; 'synflow_l2' can.")
        present, value, key = x.detach().chunk(3)
        ratio = value / present
        ids = ratio.round()
        pure = ((ratio - ids).abs() < 1e-3) & ((key / present - _key(ids)).abs() < 1e-9)
        return torch.where(pure & (ids > 0) & (ids < self.n_ids), ids, 0.0).long()

    def rules(self) -> dict[Any, flow.Rule]:
        return {
            **dict.fromkeys(
                (*functions.BATCH_NORMS, *functions.CHANNEL_NORMS, *functions.LAST_NORMS, *functions.UNSCALED_NORMS),
                _same,
            ),
            **dict.fromkeys(
                (
                    *functions.DROPOUTS,
                    *functions.ACTIVATIONS,
                    *functions.SIGMOIDS,
                    *functions.SOFTMAXES,
                    *functions.TO_INTEGERS,
                ),
                _same,
            ),
            **dict.fromkeys((torch.exp, Tensor.exp, torch.sqrt, Tensor.sqrt, torch.pow, Tensor.pow), _same),
            **dict.fromkeys((Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type_as), _cast),
            **dict.fromkeys((*functions.ADDITIONS, *functions.ADDITIONS_IN_PLACE), self._add),
            **dict.fromkeys(functions.PRODUCTS, self._multiply),
            **dict.fromkeys((torch.div, Tensor.div, Tensor.div_), self._divide),
            **dict.fromkeys(functions.MATRIX_PRODUCTS, self._matrix_product),
            **dict.fromkeys((*functions.LINEAR, *functions.CONVOLUTIONS), self._layer),
            torch.einsum: self._einsum,
            torch.autograd.Function: lambda function, x, at_zero: _same(function, x),
            torch.func.vmap: _refuse_vmap,
            F.embedding: self._embedding,
            F.glu: lambda function, x, dim=-1: self._multiply(torch.mul, *x.chunk(2, dim)),
            F.scaled_dot_product_attention: _refuse_attention,
            F.multi_head_attention_forward: _refuse_attention,
        }

    def _layer(self, function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        if not depends(x):  # only the shape of a constant matters
            return function(x.to(weight.dtype), weight, None, *args, **kwargs).double()
        if function is F.linear:
            shape, taps, groups = x.shape[1:-1], torch.ones(1, device=x.device), 1
        else:
            shape, taps = _map_of(function, x, weight, args, kwargs)
            groups = args[3] if len(args) > 3 else kwargs.get("groups", 1)
        transposed = "transpose" in function.__name__
        kernels, positions = (_canonical(view, groups, transposed) for view in self._recognise(weight))
        by_slot = self.read(x).movedim(-1 if function is F.linear else 1, 0)
        if by_slot.shape[0] != kernels.shape[0] * kernels.shape[2]:
            raise RuntimeError(f"{by_slot.shape[0]} inputs do not fit a weight of shape {tuple(weight.shape)}")
        n_batch = by_slot.shape[1]
        units, slots = _pairs(by_slot.flatten(1), self.n_ids)
        fed = torch.zeros(by_slot.shape[0], dtype=torch.bool, device=units.device)
        fed[slots] = True
        n_outputs = kernels.shape[1]
        ids = self.append(groups * n_outputs, units, slots, UnitLayer(kernels, positions, taps > 0))
        ids = torch.where(fed.view(groups, -1).any(1).repeat_interleave(n_outputs), ids, 0)
        if function is F.linear:
            return _planes(ids.expand(n_batch, *shape, -1))
        return _planes(ids.view(1, -1, *[1] * len(shape)).expand(n_batch, -1, *shape))

    def _recognise(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """A layer's weight, and the flat positions of its entries if it is prunable."""
        weight = weight.detach()
        if weight.untyped_storage().data_ptr() != self.flat.untyped_storage().data_ptr():
            return weight, None
        return weight, self.positions.as_strided(weight.shape, weight.stride(), weight.storage_offset())

    def _embedding(self, function: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not depends(x):
            return function(x.long(), weight, *args, **kwargs).double()
        tokens = self.input_units(weight.shape[0])  # walks begin at a token
        return self._layer(F.linear, _planes(tokens.expand(x.shape[0] // 3, *x.shape[1:], -1)), weight.t())

    def _add(self, function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        return self._combine(function, a, b, args, kwargs, skips=True)

    def _multiply(self, function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        return self._combine(function, a, b, args, kwargs, skips=False)

    def _divide(self, function: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        return self._combine(function, a, b.detach() if depends(b) and depends(a) else b, args, kwargs, skips=False)

    def _combine(self, function: Any, a: Any, b: Any, args: Any, kwargs: Any, skips: bool) -> Any:
        if depends(a) and depends(b):
            result = self._meet(a, b, skips)
        elif depends(a):
            result = a * torch.ones_like(b) if isinstance(b, Tensor) else a.clone()
        elif depends(b):
            result = b * torch.ones_like(a) if isinstance(a, Tensor) else b.clone()
        else:
            return function(a, b, *args, **kwargs)
        return a.copy_(result) if function in IN_PLACE else result

    def _meet(self, a: Tensor, b: Tensor, skips: bool) -> Tensor:
        """Activations from which a walk goes back along one of two branches, or along ``b`` if ``a`` is a skip of it."""
        ids_a, ids_b = torch.broadcast_tensors(self.read(a), self.read(b))
        none = (ids_a == 0) | (ids_b == 0)
        ids = torch.maximum(ids_a, ids_b)
        for skip, block in ((ids_a, ids_b), (ids_b, ids_a)) if skips else ():
            if bool(self.above(block)[skip[skip > 0]].all()):
                return _planes(torch.where(none, ids, block))
        both = ~none & (ids_a != ids_b)
        pairs, number = torch.unique(ids_a[both] * self.n_ids + ids_b[both], return_inverse=True)
        if pairs.numel():
            sources = torch.cat([pairs // self.n_ids, pairs % self.n_ids])
            slots = torch.arange(pairs.numel(), device=pairs.device).repeat(2)
            ids[both] = self.append(pairs.numel(), sources, slots)[number]
        return _planes(ids)

    def _matrix_product(self, function: Any, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if depends(a) and depends(b):
            _refuse_attention(function)
        if depends(a) and b.dim() == 2:
            return self._layer(F.linear, a, b.t())
        return function(a.double(), b.double(), *args, **kwargs)

    def _einsum(self, function: Any, equation: str, *operands: Any) -> Tensor:
        if sum(depends(x) for x in operands) > 1:
            _refuse_attention(function)
        return function(equation, *operands)


def _same(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.clone() if depends(x) else x  # a normalised weight is still recognised


def _cast(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x if depends(x) else function(x, *args, **kwargs)  # unit numbers need all bits of a float64


def _refuse_attention(function: Any, *args: Any, **kwargs: Any) -> Any:
    raise ModelError(
        f"PHEW has no walk through attention (a product of two activations, {function.__name__}): use 'synflow_l2', its "
        f"relative by the same authors, or any other method."
    )


def _refuse_vmap(function: Any, *args: Any, **kwargs: Any) -> Any:
    raise ModelError(
        "PHEW finds no walk through torch.func.vmap, which takes the batch apart: use 'synflow_l2', its relative by the "
        "same authors, or any other method."
    )


def _canonical(x: Any, groups: int, transposed: bool) -> Any:
    """A layer's weight, or what has its shape, as [groups, outputs, inputs, taps]."""
    if x is None:
        return None
    x = x.reshape(groups, x.shape[0] // groups, x.shape[1], -1)
    return x.transpose(1, 2) if transposed else x


def _map_of(function: Any, x: Tensor, weight: Tensor, args: Any, kwargs: Any) -> tuple[torch.Size, Tensor]:
    """The shape of a convolution's output map, and how many places of the input each tap reads."""
    with_one_group = [*args[:3], 1, *args[4:]] if len(args) > 3 else args
    options = {**kwargs, "groups": 1} if "groups" in kwargs else kwargs
    kernel = torch.ones(1, 1, *weight.shape[2:], device=x.device, requires_grad=True)
    output = function(torch.ones(1, 1, *x.shape[2:], device=x.device), kernel, None, *with_one_group, **options)
    (reads,) = torch.autograd.grad(output.sum(), kernel)
    return output.shape[2:], reads.flatten()


def _pairs(by_slot: Tensor, n_ids: int) -> tuple[Tensor, Tensor]:
    """The different (unit, slot) of unit numbers [slots, places]."""
    slots = torch.arange(by_slot.shape[0], device=by_slot.device)
    units = by_slot[:, 0]
    if not bool((by_slot == by_slot[:, :1]).all()):
        key = torch.unique(slots.unsqueeze(1) * n_ids + by_slot)
        slots, units = key // n_ids, key % n_ids
    return units[units > 0], slots[units > 0]
