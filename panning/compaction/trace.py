"""The network as a graph that holds in both modes (torch.fx).

A part with hooks, computed weights or a ``train()`` of its own stays one node. What depends on ``self.training`` is traced
in both modes: where the graphs differ in nothing but such flags, the flag is looked up when the network runs.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from panning.foundation.errors import ModelError
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.torch_private import has_hooks, tree_leaves
from panning.models.parts import ByMode, Gather, PartialSum


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what a buffer holds may change; a forward that branches on it cannot be traced

    def __init__(self, opaque: set[str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.inside: list[str] = []
        self.failed_in: str | None = None
        self.n_autocasts = _autocast_depth()
        self.n_saved = 0

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        own = isinstance(module, Gather | PartialSum)  # of a network that is compact already
        return own or name in self.opaque or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._check_surroundings()  # before it counts as inside: it is the caller that cannot be traced
        try:
            self.inside.append(self.path_of_module(module))
        except NameError:
            if type(module) is not nn.Sequential:
                raise
            return forward(*args, **kwargs)  # self.layers[2:], made in the forward; the layers are the network's
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.inside[-1]
            raise
        finally:
            self.inside.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self._check_surroundings()
        node = super().create_node(*args, **kwargs)
        node.meta["inside"] = self.inside[-1] if self.inside else ""
        return node

    def _check_surroundings(self) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("it turns gradients off, which a graph does not say")
        if _autocast_depth() != self.n_autocasts:
            raise RuntimeError("it sets autocast, which a graph does not say")
        before = self.n_saved
        torch.ones((), requires_grad=True).exp()  # saves its result through the innermost hooks
        if self.n_saved == before:
            raise RuntimeError("it has hooks on saved tensors (activation checkpointing), which a graph does not say")

    def count_saved(self, tensor: Tensor) -> Tensor:
        self.n_saved += 1
        return tensor


def _autocast_depth() -> int:
    """Count the autocast contexts that surround this call; a context that turns autocast off counts, too."""
    depth: int = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth


class _Untraceable(Exception):
    def __init__(self, part: str, why: str) -> None:
        super().__init__(why)
        self.part = part


def trace(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """``model`` as a graph, and for each part that is not looked into the reason why; modes are left as they were.

    Raises:
        ModelError: if the forward cannot be traced.
    """
    if (why := stays(model)) is not None:
        raise ModelError(f"{why}, which torch.fx does not see.")
    opaque = {name: why for name, module in model.named_modules() if name and (why := stays(module)) is not None}
    opaque |= {name: "torch.fx does not look into it" for name in _composites(model)}
    with as_it_was(model):
        try:
            graph, modules = _in_both_modes(model, set(opaque))
        except _Untraceable as problem:
            where = f"'{problem.part}' of {type(model).__name__}" if problem.part else type(model).__name__
            raise ModelError(f"torch.fx cannot trace the forward of {where} ({problem}).") from problem
    everything = {str(node.target): _attribute(model, str(node.target)) for node in graph.nodes if node.op in _NAMED}
    return fx.GraphModule({**everything, **modules}, graph), opaque


_NAMED = ("call_module", "get_attr")


def _composites(model: nn.Module) -> list[str]:
    """Names of torch's own modules of several layers (``nn.TransformerEncoderLayer``), the outermost alone.

    ``nn.MultiheadAttention`` is none: it stays in a network that keeps its forward, too. Nor is what is never called, as
    ``nn.ModuleList``.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        is_called = type(module).forward is not nn.Module.forward
        is_composite = is_called and fx.Tracer().is_leaf_module(module, name) and any(True for _ in module.children())
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and is_composite and not inside and not isinstance(module, nn.MultiheadAttention):
            found.append(name)
    return found


def _attribute(model: nn.Module, name: str) -> Any:
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def is_fixed(module: nn.Module) -> str | None:
    """Why a module's own weights keep their shapes; None if they need not."""
    if has_hooks(module):
        return "it has hooks"
    if parametrize.is_parametrized(module):
        return "its weight is computed (a parametrization)"
    return "its forward was replaced" if "forward" in vars(module) else None


def stays(module: nn.Module) -> str | None:
    """Why a module is not looked into; None if it is."""
    if (why := is_fixed(module)) is not None:
        return why
    for name in ("train", "eval"):  # norms that stay in evaluation, mostly
        if name in vars(module) or getattr(type(module), name) is not getattr(nn.Module, name):
            return f"it has a {name}() of its own"
    return None


def _in_both_modes(model: nn.Module, opaque: set[str]) -> tuple[fx.Graph, dict[str, Any]]:
    training, constants = _graph(model.train(), opaque)
    evaluation, others = _graph(model.eval(), opaque)
    modules: dict[str, nn.Module] = {}
    for number, (a, b) in enumerate(zip(training.nodes, evaluation.nodes, strict=False)):
        if a.op == "get_attr" and a.target in constants and not same(constants[a.target], others.get(b.target)):
            raise _Untraceable(_common(a.meta["inside"], b.meta["inside"]), "it makes other tensors at every call")
        flags = _differing_flags(a, b)
        if flags is None:
            raise _Untraceable(_common(a.meta["inside"], b.meta["inside"]), "it does something else in training")
        if flags:
            inside = a.meta["inside"]  # has the mode of the module whose flag it was
            name = f"{inside}.by_mode{number}" if inside else f"by_mode{number}"
            while _attribute(model, name) is not None:
                name += "_"
            modules[name] = ByMode(a.target, [f for f in flags if isinstance(f, int)],
                                   [f for f in flags if isinstance(f, str)])  # fmt: skip
            a.op, a.target = "call_module", name
    if len(training.nodes) != len(evaluation.nodes):
        raise _Untraceable("", "it does something else in training")
    changed = _out_of_place(training, {**dict(model.named_modules()), **modules})
    return training, {**constants, **modules, **changed}


def _common(a: str, b: str) -> str:
    """The innermost module around both."""
    shared = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)


def _graph(model: nn.Module, opaque: set[str]) -> tuple[fx.Graph, dict[Any, Tensor]]:
    """The graph, and the tensors that the forward makes from nothing; the tracer leaves these on the model."""
    tracer, before = _Tracer(opaque), set(vars(model))
    arguments = inspect.signature(type(model).forward).parameters
    absent = {name: None for name, argument in arguments.items() if argument.default is None}
    try:
        hooks = torch.autograd.graph.saved_tensors_hooks(tracer.count_saved, lambda tensor: tensor)
        with torch.enable_grad(), hooks:
            graph = tracer.trace(model, absent)  # a call that passes one of these is refused
    except Exception as error:  # whatever a forward does with a proxy
        raise _Untraceable(tracer.failed_in or "", f"{type(error).__name__}: {error}".splitlines()[0]) from error
    finally:
        left = {
            name: vars(model).pop(name) for name in set(vars(model)) - before if name.startswith("_tensor_constant")
        }
    for node in graph.nodes:  # of the signature: torch 2.6 cannot pickle an annotation that is a string
        node.type = None
    return graph, left


def _differing_flags(a: fx.Node, b: fx.Node) -> list[int | str] | None:
    """Positions and names of the arguments that are True in training alone; None if the nodes differ in more."""
    if (a.op, a.target, len(a.args), set(a.kwargs)) != (b.op, b.target, len(b.args), set(b.kwargs)):
        return None
    flags: list[int | str] = []
    pairs: list[tuple[int | str, Any, Any]] = [(i, x, y) for i, (x, y) in enumerate(zip(a.args, b.args, strict=True))]
    pairs += [(key, a.kwargs[key], b.kwargs[key]) for key in a.kwargs]
    for where, x, y in pairs:
        if x is True and y is False:
            flags.append(where)
        elif repr(x) != repr(y):  # nodes by their names, which depend on what is before them alone
            return None
    return flags if not flags or a.op == "call_function" else None


_OPERATORS = {"iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "itruediv": operator.truediv}
_FUNCTIONS = (torch, F)


def _out_of_place(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Let no operation write into its operand; returns the modules that no longer do.

    In a smaller network another tensor may lie where the operand was. What read the operand after it was written into reads
    the result instead.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    changed = {}
    for node in graph.nodes:
        if node.kwargs.get("out") is not None:
            raise _Untraceable(node.meta["inside"], "it writes into a tensor with out=")
        if not node.args or not isinstance(node.args[0], fx.Node):
            continue
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module":
            module = modules[str(node.target)]
            if not getattr(module, "inplace", False):
                continue
            changed[str(node.target)] = small = copy.copy(module)
            small.inplace = False  # type: ignore[assignment]
        elif node.kwargs.get("inplace", False):
            node.update_kwarg("inplace", False)
        elif node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
            if not callable(getattr(Tensor, name[:-1], None)):
                raise _Untraceable(node.meta["inside"], f"it writes into a tensor with {name}")
            node.target = name[:-1]
        elif node.op == "call_function" and name in _OPERATORS:
            node.target = _OPERATORS[name]
        elif node.op == "call_function" and name.endswith("_") and not name.endswith("__"):
            found = [getattr(home, name[:-1]) for home in _FUNCTIONS if hasattr(home, name[:-1])]
            if not found:
                raise _Untraceable(node.meta["inside"], f"it writes into a tensor with {name}")
            node.target = found[0]
        else:
            continue
        written: fx.Node = node.args[0]
        if written.op == "get_attr":
            raise _Untraceable(node.meta["inside"], f"it writes into {written.target}")
        for user in [user for user in written.users if order[user] > order[node]]:
            user.replace_input_with(written, node)
    return changed


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def record_shapes(network: fx.GraphModule, module: nn.Module, inputs: Tensor) -> None:
    """Write the shape of every tensor into its node: ``node.meta["shape"]``, None for what is no tensor.

    Raises:
        ModelError: if the graph does not compute what ``module`` does: its forward branches on optional arguments, writes
            into a tensor that goes by another name too, or counts its calls.
    """
    results = []
    try:
        with as_it_was(module), as_it_was(network), torch.no_grad():
            for run in (module.eval().__call__, _Shapes(network.eval()).run):
                with isolated_torch_rng(1):  # another seed than when it was traced
                    results.append(run(inputs.clone()))
    except Exception as error:  # a branch that is never taken
        raise ModelError(f"Its traced graph does not run ({type(error).__name__}: {error}).") from error
    expected, found = (tree_leaves(result) for result in results)
    if not all_same(expected, found):
        raise ModelError("Its traced graph computes something else than its forward does.")


def all_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two networks gave as many values, each the ``same`` as the other's."""
    return len(first) == len(second) and all(map(same, first, second))


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, up to what a device's order of summation changes."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    rtol = torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b, rtol, rtol * float(a.nan_to_num().abs().max()), equal_nan=True)
