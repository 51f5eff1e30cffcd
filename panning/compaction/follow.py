"""The operations of a network, followed while it runs on example inputs.

Where torch.fx cannot trace a forward (branches on shapes, keyword inputs, output objects, contexts), one run says which
operation reads which tensor. The graph holds for the run's sizes, so that no network is made from it: it tells which units
belong together, and what was found is tried on a copy of the network itself.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from panning.compaction.inputs import outputs_in
from panning.compaction.probing import not_followed
from panning.compaction.trace import is_fixed
from panning.flow import Example
from panning.foundation.nests import map_tensors, tensors_in
from panning.foundation.torch_private import n_writes

#: Layers by the function that a forward calls: where the function finds input, weight and bias.
_LAYERS: dict[Any, tuple[int, int, int]] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), (0, 1, 2)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), (0, 1, 2)),
    F.batch_norm: (0, 3, 4),
    torch.addmm: (1, 2, 0),
}
#: Names of tensor methods -> the operator of Python that each of them computes.
_OPERATORS: dict[str, Any] = {
    **dict.fromkeys(("add", "add_", "__iadd__", "__radd__"), operator.add),
    **dict.fromkeys(("mul", "mul_", "__imul__", "__rmul__"), operator.mul),
    **dict.fromkeys(("sub", "sub_", "__isub__"), operator.sub),
    **dict.fromkeys(("div", "div_", "true_divide", "__itruediv__", "__truediv__"), operator.truediv),
    **dict.fromkeys(("pow", "__pow__"), operator.pow),
    "neg": operator.neg,
    "__getitem__": operator.getitem,
}
#: Questions about a tensor that are answered without its entries.
_ABOUT = {
    "size", "dim", "ndimension", "numel", "nelement", "__len__", "stride", "is_contiguous", "get_device", "type",
    "is_floating_point", "is_complex", "element_size", "storage_offset", "data_ptr", "requires_grad_", "__repr__",
    "__format__", "__hash__",
}  # fmt: skip


@dataclasses.dataclass
class Followed:
    """A run as a graph: ``meta`` of a node has its ``shape``, the module ``inside`` which it ran, and which ``part`` of
    an operation's several tensors it is. ``whole`` names modules that stay as they are, and says why."""

    model: nn.Module
    graph: fx.Graph
    whole: dict[str, str]

    def get_submodule(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def get_parameter(self, name: str) -> nn.Parameter:
        return self.model.get_parameter(name)


def follow(model: nn.Module, leaves: Callable[[nn.Module], bool], example: Example) -> Followed:
    """Run a network and record what it does.

    Args:
        leaves: whether a module's call is one operation.
    """
    recorder = _Recorder(model, leaves)
    inputs = map_tensors(lambda tensor: tensor.clone(), example.inputs)
    for module in model.modules():  # tensors that are no buffers
        recorder.given += [t for value in vars(module).values() if not isinstance(value, dict) for t in _nested(value)]
    for tensor in (*tensors_in(inputs), *recorder.given):
        recorder.write(tensor, recorder.node("call_function", not_followed, (), {}, tensor))
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(recorder.enter(name), prepend=True, with_kwargs=True),
            module.register_forward_hook(recorder.leave(name)),
        )
    ]
    try:
        with recorder:
            output = example.forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = [recorder.node_of(tensor) for tensor in outputs_in(output)]
    recorder.graph.output(tuple(found))
    return Followed(model, recorder.graph, recorder.stay_whole())


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, leaves: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.model = model
        self.graph = fx.Graph()
        self.stack: list[str] = []
        self.leaf: str | None = None
        self.taken: tuple[Any, Any] = (), {}
        self.nodes: dict[int, tuple[fx.Node, Tensor, int]] = {}  # the tensor, so that its id is not given again
        self.given: list[Tensor] = []
        self.read: dict[str, int] = {}
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self.names = {id(tensor): name for name, tensor in named}
        self.whole = {name: why for name, module in model.named_modules() if name and (why := is_fixed(module))}
        self.leaves = {name for name, module in model.named_modules() if name not in self.whole and leaves(module)}

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(name)
            if self.leaf is None and name in self.leaves:
                self.leaf = name
                self.taken = self.mapped(args), self.mapped(kwargs)  # before a module that works in place

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.stack.pop()
            if self.leaf == name:
                if isinstance(output, Tensor):
                    self.count(name)
                    self.write(output, self.node("call_module", name, *self.taken, output))
                self.leaf = None  # after what asks these tensors for their shapes

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.leaf is not None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if (name in _ABOUT or name == "__get__") and not list(_nested(answer := func(*args, **kwargs))):
            return answer
        taken = list(_nested((args, kwargs)))
        versions = [(tensor, _version(tensor)) for tensor in taken]
        layer = self.layer(func, args, kwargs)
        operands = self.mapped(args if layer is None else (args[_LAYERS[func][0]],))
        result = func(*args, **kwargs)
        if layer is not None:
            self.count(layer)
            node = self.node("call_module", layer, operands, {}, result)
            node.meta["function"] = func
            self.write(result, node)
            return result
        found = list(_nested(result))
        if not taken and not found:
            return result
        options = self.mapped(kwargs)
        op, target = ("call_function", func) if not _is_method(func) else ("call_method", name)
        op, target = ("call_function", _OPERATORS[name]) if name in _OPERATORS and not options else (op, target)
        for part, tensor in enumerate(found):
            self.write(tensor, self.node(op, target, operands, options, tensor, part if tensor is not result else None))
        changed = [tensor for tensor, version in versions if _version(tensor) != version and tensor is not result]
        for tensor in changed:  # by an operation that returns something else, or a part of it
            self.write(tensor, self.node("call_function", not_followed, operands, {}, tensor))
        if not found and not changed:  # a value that Python asks for
            self.node("call_function", not_followed, operands, options, None)
        return result

    def layer(self, func: Any, args: Any, kwargs: Any) -> str | None:
        """The module whose weight and bias a function takes, if that is what it takes."""
        if func not in _LAYERS or len(args) <= _LAYERS[func][0]:
            return None
        _, weight, bias = _LAYERS[func]
        tensors = [args[i] if i < len(args) else kwargs.get(k) for i, k in ((weight, "weight"), (bias, "bias"))]
        name = self.names.get(id(tensors[0]), "").rpartition(".")[0]
        if not name or name in self.whole:
            return None
        module: Any = self.model.get_submodule(name)
        own = tensors[0] is getattr(module, "weight", None) and tensors[1] is getattr(module, "bias", None)
        return name if own else None

    def count(self, name: str) -> None:
        if any(True for _ in self.model.get_submodule(name).state_dict()):
            self.read[name] = self.read.get(name, 0) + 1
            if self.read[name] > 1:
                self.whole.setdefault(name, "it is used twice")

    def node(
        self, op: str, target: Any, args: Any, kwargs: Any, result: Tensor | None, part: int | None = None
    ) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs, name=f"n{len(self.graph.nodes)}")
        node.meta.update(shape=None if result is None else tuple(result.shape), part=part, value=result)
        node.meta["inside"] = self.stack[-1] if self.stack else ""
        return node

    def write(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = (node, tensor, _version(tensor))

    def mapped(self, value: Any) -> Any:
        """Arguments with nodes in the place of tensors."""
        if isinstance(value, Tensor):
            return self.node_of(value)
        if isinstance(value, tuple | list):
            return tuple(map(self.mapped, value)) if isinstance(value, tuple) else [*map(self.mapped, value)]
        if isinstance(value, dict):
            return {str(key): self.mapped(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self.mapped(value.start), self.mapped(value.stop), self.mapped(value.step))
        return value

    def node_of(self, tensor: Tensor) -> fx.Node:
        if (seen := self.nodes.get(id(tensor))) is not None:
            node, _, version = seen
            if _version(tensor) == version:
                return node
            node = self.node("call_function", not_followed, (node,), {}, tensor)  # through another name of its memory
        elif (name := self.names.get(id(tensor))) is not None:
            owner = name.rpartition(".")[0]
            self.whole.setdefault(owner, "something else reads its weights")
            node = self.node("get_attr", name, (), {}, tensor)
        else:  # an input, or the work of something that cannot be followed, which may have read whatever nobody else has
            loose = tuple(node for node in self.graph.nodes if not node.users and node.op != "get_attr")
            node = self.node("call_function", not_followed, loose, {}, tensor)
        self.write(tensor, node)
        return node

    def stay_whole(self) -> dict[str, str]:
        """Modules that stay, those apart that only read their own weights in their own forward."""
        owners: dict[int, set[str]] = {}
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(tensor), set()).add(name.rpartition(".")[0])
        shared = {owner for some in owners.values() if len(some) > 1 for owner in some}
        return {**dict.fromkeys(shared, "it shares a weight"), **self.whole}


def _nested(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _nested(part)
    elif isinstance(value, slice):
        yield from _nested((value.start, value.stop, value.step))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else n_writes(tensor)


def _is_method(func: Any) -> bool:
    return getattr(Tensor, getattr(func, "__name__", ""), None) is func
