"""How a forward pass uses the parameters that no kind covers: what multiplies activations is a weight, whatever its module.

One pass on an example is watched. What depends on the input is told from what is computed of parameters alone. A parameter
(or a view of one) that meets an activation in ``linear``, ``matmul``, ``addmm``, ``einsum`` or a convolution is prunable,
and the axes over which the product sums belong to the input. A parameter of which the weight is computed first, as under
weight_norm, cannot be masked as the weight itself: it stays dense, and its user is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from panning.flow import Example, functions
from panning.flow.hidden import looped
from panning.flow.operators import is_operator, twin
from panning.foundation.device import device_of
from panning.foundation.errors import PanningError
from panning.foundation.nests import tensors_in
from panning.foundation.torch_private import n_writes, packed_in
from panning.foundation.wrappers import own_names, own_parameters, owners
from panning.masks.kinds import Kind, is_scored, prunable_parameters
from panning.masks.operands import COPIES, LOOKED_UP, PRODUCTS


@dataclass
class Uses:
    """What a pass has shown.

    Attributes:
        kinds: the kinds of parameters that no table covers and that are weights, by name.
        dense: parameters that are no weights themselves, but make weights, by name, with the reason why they stay dense.
        failure: why the pass came to no end; empty if it did.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    failure: str = ""


def uses_of(model: nn.Module, example: Example | None) -> Uses:
    """How ``model`` uses what no kind covers.

    Args:
        example: what the network is run on; None looks at the modules alone.
    """
    uses = Uses(dense=_parametrized(model))
    parameters = own_parameters(model, remove_duplicate=False)
    for name, tensor in parameters.items():
        if tensor.dim() > 1 and not is_scored(tensor):
            uses.dense[name] = f"it holds {tensor.dtype}, which no score is known for"
    if example is not None and (unknown := unknown_parameters(model)):
        _watch(model, example, unknown, uses)
    return uses


def unknown_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of at least two axes that no kind covers: only a forward pass shows what they are."""
    parameters = own_parameters(model, remove_duplicate=False)
    known = (*prunable_parameters(model), *_parametrized(model))
    seen = {id(parameters[name]) for name in known}
    return {
        name: p for name, p in parameters.items() if id(p) not in seen and p.dim() > 1 and p.numel() and is_scored(p)
    }


def _parametrized(model: nn.Module) -> dict[str, str]:
    """The parameters of which parametrizations compute weights, with the reason why they stay dense."""
    found, own = {}, own_names(model)
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for key, steps in module.parametrizations.items():
                made = " and ".join(type(step).__name__.lstrip("_") for step in steps)
                for name, _ in steps.named_parameters():
                    full = f"{path}.parametrizations.{key}.{name}" if path else f"parametrizations.{key}.{name}"
                    found[own[full]] = f"the parametrization {made} computes '{key}' from it"
    return found


def packed_weights(model: nn.Module) -> dict[str, int]:
    """The quantised layers of ``model``, whose weights are no parameters, and how many weights each has."""
    own = own_names(model)
    buffers = ((own[name], tensor) for name, tensor in model.named_buffers() if tensor.dim() > 1)
    found = {name: b.numel() for name, b in buffers if b.dtype in EIGHT_BITS or name.endswith("qweight")}
    for name, module in model.named_modules():
        if weights := packed_in(module):
            found[name] = sum(weight.numel() for weight in weights)
    return found


#: What buffers hold of quantised weights, and next to nothing else does.
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)


def _watch(model: nn.Module, example: Example, left: Mapping[str, Tensor], uses: Uses) -> None:
    parameters = {name: p.detach() for name, p in own_parameters(model).items()}
    dtype = next((p.dtype for p in parameters.values() if p.is_floating_point()), torch.float32)
    inputs = example.ones(dtype, device_of(model))
    watching = _Watching(inputs, {name: p for name, p in parameters.items() if name in left})
    rules: dict[Any, Any] = {torch.func.vmap: looped}  # what it wraps could not be told from anything else
    try:
        with warnings.catch_warnings(action="ignore"), torch.enable_grad(), watching:  # what it warns of, it will again
            example.outputs(model, parameters, inputs, rules, dtype)
    except (PanningError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        uses.failure = str(error)
        return  # whatever scores this network will say what is wrong
    modules = owners(model)
    for name, axes in watching.summed.items():
        of, by_default = type(modules[name][1]), name not in watching.looked_up
        uses.kinds[name] = Kind(of, (name.rpartition(".")[2],), by_default=by_default, inputs=axes)
    uses.dense |= {name: why for name, why in watching.dense.items() if name not in uses.kinds}


class _Watching(TorchFunctionMode):
    """Watches which parameters meet activations, and how.

    Attributes:
        summed: the axes over which a product with a parameter sums, by the parameter's name.
        dense: parameters that make weights but are none, or that are used in another way, with the reason.
        looked_up: parameters that are tables for tokens.
    """

    def __init__(self, inputs: Any, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.homes = {p.untyped_storage().data_ptr(): _Home(name, p) for name, p in parameters.items()}
        self.fed = _Known(tensors_in(inputs))
        self.made: dict[int, frozenset[str]] = {}
        self.held: list[
            Tensor
        ] = []  # what has an entry in ``made`` stays alive, or another tensor would get its number
        self.summed: dict[str, tuple[int, ...]] = {}
        self.dense: dict[str, str] = {}
        self.looked_up: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        copies = func in COPIES and bool(args)
        given = list(tensors_in(args[:1] if copies else (args, list(kwargs.values()))))
        fed = any(x in self.fed for x in given)
        func = twin(func, PRODUCTS) if is_operator(func) else func
        if fed and func in PRODUCTS:
            self._look(func, args, kwargs)
        elif fed and func not in LOOKED_UP:
            self._look_elsewhere(func, given, result)
        if copies and not fed and (home := self._home(args[0])) is not None and _is_copy(result, args[0]):
            copied = _Home(home.name, result, args[0], n_writes(result))
            self.homes.setdefault(result.untyped_storage().data_ptr(), copied)
        names = frozenset[str]().union(*(self._names(x) for x in given))
        for made in tensors_in(result):
            if fed:
                self.fed.add(made)
            elif names and made not in self.fed:
                self.made[id(made)] = names
                self.held.append(made)
        return result

    def _names(self, x: Tensor) -> frozenset[str]:
        """The parameters that ``x`` is, or is computed from."""
        if x in self.fed:
            return frozenset()
        if (found := self.made.get(id(x))) is not None:
            return found
        name = self._name(x)
        return frozenset() if name is None else frozenset((name,))

    def _home(self, x: Tensor) -> _Home | None:
        """The parameter or copy of one that ``x`` is, or is a view of."""
        if x.layout != torch.strided:
            return None
        home = self.homes.get(x.untyped_storage().data_ptr())
        if home is None or x.dtype != home.tensor.dtype:
            return None
        return home if home.of is None or n_writes(home.tensor) == home.version else None

    def _name(self, x: Tensor) -> str | None:
        """The parameter that ``x`` is, is a view of or a copy of."""
        return None if (home := self._home(x)) is None else home.name

    def _summed(self, weight: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a parameter that the ``axes`` of a view or copy of it run along."""
        home = self._home(weight)
        assert home is not None
        axes = _axes_of(home.tensor, weight, axes)
        return axes if home.of is None else self._summed(home.of, axes)

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        args = (*args, *kwargs.values()) if func is not torch.einsum else args
        for number, axes in PRODUCTS[func](args):
            weight = args[number] if number < len(args) else None
            if not isinstance(weight, Tensor) or weight in self.fed:
                continue
            name = self._name(weight)
            if name is not None:
                self.summed.setdefault(name, self._summed(weight, axes))
                if func is F.embedding:
                    self.looked_up.add(name)
            else:
                for source in self._names(weight):
                    why = f"it is computed with before {_called(func)} multiplies with the result"
                    self.dense.setdefault(source, why)

    def _look_elsewhere(self, func: Any, given: list[Tensor], result: Any) -> None:
        """Note parameters that meet activations otherwise than as a scale or a shift of theirs."""
        fed = [x for x in given if x in self.fed]
        for x in given:
            name = self._name(x) if x not in self.fed and x.dim() else None
            if name is None:
                continue
            if not _by_element(given, result):
                self.dense.setdefault(name, f"panning does not know how {_called(func)} uses it")
            elif func in functions.PRODUCTS and any(_is_spread(activation, x) for activation in fed):
                self.dense.setdefault(name, "each activation is multiplied with many entries of it, element by element")


@dataclass(frozen=True)
class _Home:
    """A parameter, or a copy with its values and positions.

    Attributes:
        name: of the parameter.
        of: what was copied; None of the parameter itself.
        version: the copy's, before code writes into it.
    """

    name: str
    tensor: Tensor
    of: Tensor | None = None
    version: int = 0


class _Known:
    """A set of tensors by identity, which keeps them alive."""

    def __init__(self, tensors: Any) -> None:
        self.tensors = {id(x): x for x in tensors}

    def add(self, x: Tensor) -> None:
        self.tensors[id(x)] = x

    def __contains__(self, x: Tensor) -> bool:
        return id(x) in self.tensors


def _is_copy(result: Any, x: Tensor) -> bool:
    """Whether a result has the values of ``x`` in memory without gaps, so that its strides tell its axes."""
    dense = isinstance(result, Tensor) and not any(step == 0 for step in result.stride())
    return dense and result.is_floating_point() and result.shape == x.shape


def _called(func: Any) -> str:
    return getattr(func, "__name__", "a function").strip("_")


def _by_element(given: list[Tensor], result: Any) -> bool:
    """Whether a function's result has the shape that its arguments have together, if it is one tensor."""
    if not isinstance(result, Tensor):
        return False
    try:
        return torch.broadcast_shapes(*(x.shape for x in given)) == result.shape
    except RuntimeError:
        return False


def _is_spread(activation: Tensor, weight: Tensor) -> bool:
    """Whether a product by element repeats an activation over one axis of a weight and runs along another with it."""
    n = max(activation.dim(), weight.dim())
    axes = [
        (size > 1 and step != 0, wide > 1)
        for size, step, wide in zip(
            (*(1,) * (n - activation.dim()), *activation.shape), (*(0,) * (n - activation.dim()), *activation.stride()),
            (*(1,) * (n - weight.dim()), *weight.shape), strict=True,
        )
    ]  # fmt: skip
    return (True, True) in axes and (False, True) in axes


def _axes_of(parameter: Tensor, view: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of ``parameter`` that the ``axes`` of a view of it run along."""
    summed = {axis % view.dim() for axis in axes}
    found = []
    for axis, (stride, size) in enumerate(zip(parameter.stride(), parameter.shape, strict=True)):
        along = [
            (step, number)
            for number, (step, n) in enumerate(zip(view.stride(), view.shape, strict=True))
            if size > 1 and step and stride % step == 0 and stride < step * n
        ]
        if along and max(along)[1] in summed:
            found.append(axis)
    return tuple(found)
