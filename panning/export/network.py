"""Write a network as one file, for those who do not have its code (``panning.models.graph_network`` reads it)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from panning.compaction.trace import all_same, trace
from panning.foundation.errors import ModelError
from panning.foundation.files import write_atomic
from panning.foundation.modes import as_it_was
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.tensorfile import packed
from panning.foundation.torch_private import is_passing, slots, tree_leaves
from panning.foundation.wrappers import unwrapped
from panning.models.graph import Given, Graph, Loose, Node, Part, written
from panning.models.graph_network import KEY, at, network_of, owner_of, state_of
from panning.models.vocabulary import KINDS, LAYERS, METHODS, name_of

WAY_OUT = (
    "Such a network stays with its code (panning.save_compact, or a state_dict); ONNX, .pt2 and TorchScript are written by "
    "torch itself, and are not read here, as reading them may run code."
)


def save_network(model: nn.Module, path: str | Path, example_inputs: Any) -> None:
    """Write a network so that it can be read, pruned and trained without its code.

    torch.fx must be able to trace it, and every layer and function in it must be in the tables of
    ``panning.models.vocabulary``; a compact network is one of these where the original is. What was written is compared with
    the network on the example before the file takes its place.

    Args:
        path: of a safetensors file.
        example_inputs: a batch that the network is called with, or a tuple of several inputs.

    Raises:
        ModelError: if the network cannot be written so, with the part that stands in the way.
        OutputError: if the file cannot be written.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import panning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> small = panning.compact(model, panning.prune(model, input_shape=(4,), density=0.25))
        >>> inputs = torch.randn(3, 4)
        >>> panning.save_network(small.model, "network.safetensors", inputs)
        >>> again = panning.load_network("network.safetensors")
        >>> torch.equal(again(inputs), small.model(inputs))
        True
    """
    model = unwrapped(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ModelError(
            f"example_inputs must be a tensor or a tuple of tensors, given {type(example_inputs).__name__}."
        )
    try:
        expected = _outputs(model, inputs)
        graph = _graph_of(model, inputs)
        state = {name: tensor for name, tensor in state_of(model).items() if name not in graph.tied}
        data = packed(state, {"format": "pt", KEY: json.dumps(graph.model_dump(mode="json"), separators=(",", ":"))})
        found = _outputs(network_of(graph, state), inputs)
        if not all_same(expected, found):
            raise ValueError("the graph computes something else than its forward does.")
    except (ValueError, ModelError) as error:
        raise ModelError(
            f"This {type(model).__name__} cannot be written as a network file: {error} {WAY_OUT}"
        ) from None
    write_atomic(Path(path), data)


def _graph_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """
    Raises:
        ModelError, ValueError: with what cannot be written.
    """
    traced, opaque = trace(model)
    for name, why in opaque.items():
        raise ValueError(f"'{name}' is not looked into: {why}.")
    _drop_assertions(traced.graph)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if any(node.users for node in placeholders[len(inputs) :]) or len(placeholders) < len(inputs):
        raise ValueError(f"its forward takes {len(placeholders)} inputs, and example_inputs has {len(inputs)}.")
    steps = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    numbers = {node: number for number, node in enumerate([*placeholders[: len(inputs)], *steps])}
    called = {str(node.target): at(traced, str(node.target)) for node in steps if node.op == "call_module"}
    layers = dict(_layers(model, called))
    state, names_read = state_of(model), {str(node.target) for node in steps if node.op == "get_attr"}
    loose = {name: _role(model, name) for name in state if not any(name.startswith(f"{layer}.") for layer in layers)}
    if made := names_read - state.keys():
        raise ValueError(f"its forward makes tensors from nothing ('{min(made)}'); make them buffers.")
    first: dict[int, str] = {}
    tied = {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    return Graph(
        label=type(model).__name__,
        inputs=tuple(
            Given(name=str(node.target), shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."))
            for node, x in zip(placeholders, inputs, strict=False)
        ),
        layers={name: _part(name, layer) for name, layer in layers.items()},
        loose={name: Loose(role=role) for name, role in loose.items()},
        modules=_order(model, layers, loose),
        tied=tied,
        frozen=tuple(name for name, p in model.named_parameters() if not p.requires_grad),
        nodes=tuple(_node(node, numbers) for node in steps),
        output=written(output.args[0], numbers.__getitem__),
    )


def _order(model: nn.Module, layers: Collection[str], loose: Collection[str]) -> tuple[str, ...]:
    """The layers and the modules with loose tensors, in the order of the network, if there are any of the second."""
    owners = {name.rpartition(".")[0] for name in loose} - {""}
    return tuple(name for name, _ in model.named_modules() if name in owners or name in layers) if owners else ()


def _drop_assertions(graph: fx.Graph) -> None:
    """Take out what only checks shapes, and what only that reads."""
    for node in reversed(graph.nodes):
        checks = getattr(node.target, "__name__", "").startswith("_assert")
        if node.op == "call_function" and not node.users and (checks or name_of(node.target) is not None):
            graph.erase_node(node)


def _layers(model: nn.Module, called: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of the table, also those that no step calls, in the order of the network."""
    inside = ""
    for name, module in model.named_modules():
        if name and type(module) in KINDS and not (inside and name.startswith(inside)):
            yield name, called.get(name, module)
            inside = f"{name}."
    known = dict(model.named_modules())
    for name, module in called.items():
        if name not in known:
            yield name, module
        elif type(module) not in KINDS:
            raise ValueError(f"'{name}' is a {type(module).__name__}, which is not in the table.")


def _part(name: str, layer: nn.Module) -> Part:
    kind = KINDS[type(layer)]
    return Part(kind=kind, fields={key: written(value, _no_node) for key, value in LAYERS[kind].fields(layer).items()})


def _no_node(node: fx.Node) -> int:
    raise ValueError(f"a layer holds a step of the graph ({node}).")


def _role(model: nn.Module, name: str) -> Any:
    owner, own = owner_of(model, name)
    if own in slots(owner).parameters:
        return "parameter"
    return "passing buffer" if is_passing(owner, own) else "buffer"


def _node(node: fx.Node, numbers: Mapping[fx.Node, int]) -> Node:
    ops = {"call_module": "layer", "call_function": "function", "call_method": "method", "get_attr": "tensor"}
    target = name_of(node.target) if node.op == "call_function" else str(node.target)
    if target is None or (node.op == "call_method" and target not in METHODS):
        named = getattr(node.target, "__name__", node.target)
        home = getattr(node.target, "__module__", None) or "torch.Tensor"
        raise ValueError(f"its forward calls {home}.{named}, which is not in the table.")
    args = [written(arg, numbers.__getitem__) for arg in node.args]
    return Node(op=ops[node.op], target=target, args=args,
                kwargs={name: written(arg, numbers.__getitem__) for name, arg in node.kwargs.items()})  # fmt: skip


def _outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    """What a network gives in evaluation.

    Raises:
        ValueError: if it fails.
    """
    with as_it_was(network), torch.no_grad(), isolated_torch_rng(0):
        try:
            return tree_leaves(network.eval()(*(x.clone() for x in inputs)))
        except Exception as error:  # whatever a forward raises
            raise ValueError(f"it fails on the example: {type(error).__name__}: {str(error)[:200]}.") from error
