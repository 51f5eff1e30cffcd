"""A network from a file, without its code: a graph of known layers and functions, and all numbers.

    network.safetensors     parameters and buffers; the graph is JSON in the metadata (``panning.models.graph``)

Reading runs no code of the file: every step is looked up in the tables of ``panning.models.vocabulary``, and a module
interprets the graph, for which nothing is generated. ``panning.export.network`` writes such files.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from panning.foundation.config import first_error
from panning.foundation.errors import ModelError
from panning.foundation.modes import in_evaluation_mode
from panning.foundation.tensorfile import DAMAGE, read_tensors
from panning.foundation.torch_private import slots
from panning.models.graph import Given, Graph, Node, Part, Ref, filled, read, refs
from panning.models.rehearsal import Rehearsal, check_flat
from panning.models.vocabulary import FUNCTIONS, KINDS, LAYERS, METHODS

KEY = "network"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


class GraphNetwork(nn.Module):
    """A network that goes through the steps of a graph; ``load_network`` makes it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        for name in graph.modules:
            _put(self, name, nn.Module())  # holds the place of a layer, or of what loose tensors are put into
        for name, part in graph.layers.items():
            _put(self, name, _made(name, part))
        tensors = {*state_of(self), *graph.loose}
        first = len(graph.inputs)
        self._steps = [_Step(number, node, self, tensors) for number, node in enumerate(graph.nodes, start=first)]
        try:
            self._output = read(graph.output, len(graph.inputs) + len(graph.nodes))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"its output: {error}") from None
        last = {number: step for step in self._steps for number in step.reads}
        for number in last.keys() - refs(self._output):
            last[number].frees.append(number)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return self._graph.inputs[0].shape[1:]

    @property
    def label(self) -> str:
        """The class of the network that the file was made from, where that is a plain name."""
        return self._graph.label if _PLAIN.fullmatch(self._graph.label) else GraphNetwork.__name__

    def forward(self, x: Any) -> Any:
        return self._run((x,))

    def _run(self, inputs: tuple[Any, ...], seen: Callable[[Any], None] = lambda result: None) -> Any:
        """What the network gives.

        Args:
            seen: told the result of every step.
        """
        results: dict[int, Any] = dict(enumerate(inputs))
        for step in self._steps:
            results[step.number] = result = step(self, results)
            seen(result)
            for number in step.frees:
                del results[number]
        return filled(self._output, results)

    def extra_repr(self) -> str:
        digest = hashlib.sha256(self._graph.model_dump_json().encode()).hexdigest()
        return f"{self._graph.label}, {len(self._graph.nodes)} steps, graph {digest[:20]}"  # two of one repr are equal


class _OfSeveral(GraphNetwork):
    """A graph network of several inputs."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        names = [given.name for given in self._graph.inputs]
        by_name = {**dict(zip(names, inputs, strict=False)), **named}
        if len(inputs) + len(named) != len(names) or by_name.keys() != set(names):
            raise ModelError(f"This network takes {len(names)} inputs, by place or name: {', '.join(names)}.")
        return self._run(tuple(by_name[name] for name in names))


class _Step:
    """A node, ready to be run.

    Attributes:
        reads: the nodes before that it names.
        frees: those that no step reads after it.

    Args:
        tensors: names of all parameters and buffers.
    """

    def __init__(self, number: int, node: Node, network: nn.Module, tensors: Collection[str]) -> None:
        self.number, self.op, self.target = number, node.op, node.target
        try:
            self.args, self.kwargs = (
                tuple(read(node.args, number)),
                {k: read(v, number) for k, v in node.kwargs.items()},
            )
            self._check(network, tensors)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"step {number} ({node.op} '{node.target[:60]}'): {error}") from None
        self.reads, self.frees = refs([*self.args, self.kwargs]), list[int]()

    def _check(self, network: nn.Module, tensors: Collection[str]) -> None:
        if self.op == "tensor" and self.target not in tensors:
            raise ValueError("there is no such parameter or buffer")
        if self.op == "function" and self.target not in FUNCTIONS:
            raise ValueError("this function is not in the table")
        if self.op == "method" and (self.target not in METHODS or not self.args):
            raise ValueError("this method is not in the table, or nothing has it")
        if self.op == "layer" and type(at(network, self.target)) not in KINDS:
            raise ValueError("there is no such layer")
        if not isinstance(device := self.kwargs.get("device"), Ref | None):
            raise ValueError(
                f"the device {device!r:.20} has a name; it must be that of a tensor, as in device=x.device"
            )

    def __call__(self, network: nn.Module, results: Mapping[int, Any]) -> Any:
        if self.op == "tensor":
            return at(network, self.target)
        args, kwargs = filled(self.args, results), filled(self.kwargs, results)
        if self.op == "function":
            return FUNCTIONS[self.target](*args, **kwargs)
        if self.op == "layer":
            return at(network, self.target)(*args, **kwargs)
        if isinstance(args[0], str | bytes | int | float):
            raise ModelError(f"step {self.number}: a {type(args[0]).__name__} has no method '{self.target}'.")
        return getattr(args[0], self.target)(*args[1:], **kwargs)


def load_network(path: str | Path) -> GraphNetwork:
    """Read a network that ``save_network`` wrote. No code of the file is run, and what it asks for is checked first.

    The network has the original's names of parameters, so that masks of one fit the other.

    Raises:
        ModelError: if the file is broken or names what is not in the tables.

    Examples:
        >>> import torch
        >>> import panning
        >>> panning.save_network(torch.nn.Linear(4, 2), "network.safetensors", torch.ones(1, 4))
        >>> network = panning.load_network("network.safetensors")
        >>> list(network.state_dict()), network.input_shape
        (['weight', 'bias'], (4,))
    """
    try:
        values, tensors = read_tensors(Path(path), KEY)
        graph = Graph.model_validate(values, strict=False)
        return network_of(graph, tensors)
    except ModelError as error:
        said = str(error)
    except (ValidationError, *DAMAGE) as error:
        said = first_error(error) if isinstance(error, ValidationError) else str(error)
    raise ModelError(f"{path} is no network file that can be read: {said}")


def network_of(graph: Graph, tensors: Mapping[str, Tensor]) -> GraphNetwork:
    """Build the network of a graph, run it once on tensors without numbers, and give it the numbers of ``tensors``."""
    kind = GraphNetwork if len(graph.inputs) == 1 else _OfSeveral
    with torch.device("meta"):
        network = kind(graph)
    _put_loose(network, graph, tensors)
    for alias, name in graph.tied.items():
        _tie(network, alias, name)
    expected = {name: tensor for name, tensor in state_of(network).items() if name not in graph.tied}
    if expected.keys() != tensors.keys():
        lacking = sorted(expected.keys() ^ tensors.keys())[:3]
        raise ModelError(f"its layers and its tensors do not belong together: {', '.join(lacking)}.")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(f"'{name}' is {list(tensors[name].shape)}, but its layer says {list(tensor.shape)}.")
    _fill(network, graph, {name: tensor.to("meta") for name, tensor in tensors.items()})
    _try(network, graph)
    _fill(network, graph, tensors)
    return network


def _try(network: GraphNetwork, graph: Graph) -> None:
    """Run the network on inputs without numbers, which takes no memory; refuse what would take too much."""
    try:
        inputs = tuple(torch.empty(given.shape, dtype=_dtype(given), device="meta") for given in graph.inputs)
        with in_evaluation_mode(network), torch.no_grad(), torch.device("meta"), Rehearsal():
            network._run(inputs, check_flat)
    except ModelError:
        raise
    except Exception as error:  # whatever torch says of shapes that do not fit
        raise ModelError(f"it does not run on its inputs: {type(error).__name__}: {str(error)[:200]}.") from None


# --- parts of a network by their dotted names ---


def at(network: nn.Module, name: str) -> Any:
    found: Any = network
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def owner_of(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has what is called ``name``, and its name there; plain modules are put in where there is none."""
    owner, (*parents, own) = network, name.split(".")
    for part in parents:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]
    return owner, own


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, own = owner_of(network, name)
    try:
        owner.add_module(own, module)
    except KeyError as error:
        raise ModelError(f"a layer cannot be called '{name}': {error.args[0]}.") from None


def _made(name: str, part: Part) -> nn.Module:
    if part.kind not in LAYERS:
        raise ModelError(f"the layer '{name}' is a {part.kind!r:.40}, which is not in the table.")
    if taken := sorted(field for field in part.fields if field in ("device", "dtype") or field.startswith("_")):
        raise ModelError(f"the layer '{name}' has the field '{taken[0]:.40}', which is not a layer's to say.")
    try:
        return LAYERS[part.kind].make(**read({"dict": part.fields}, 0))
    except Exception as error:  # whatever a constructor says of its arguments
        raise ModelError(f"the layer '{name}' cannot be made: {type(error).__name__}: {str(error)[:200]}.") from None


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones under each of their names."""
    buffers = network.named_buffers(remove_duplicate=False)
    return dict(itertools.chain(network.named_parameters(remove_duplicate=False), buffers))


def _put_loose(network: nn.Module, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    for name, loose in graph.loose.items():
        like = tensors.get(graph.tied.get(name, name))
        owner, own = owner_of(network, name)
        try:
            if like is None:
                raise KeyError("its numbers are missing")
            empty = torch.empty_like(like, device="meta")
            if loose.role == "parameter":
                owner.register_parameter(own, nn.Parameter(empty, requires_grad=False))
            else:
                owner.register_buffer(own, empty, persistent=loose.role == "buffer")
        except KeyError as error:
            raise ModelError(f"a tensor cannot be called '{name}': {error.args[0]}.") from None


def _tie(network: nn.Module, alias: str, name: str) -> None:
    state = state_of(network)
    kinds = {isinstance(state[one], nn.Parameter) for one in (alias, name) if one in state}
    if alias not in state or name not in state or len(kinds) > 1 or state[alias].shape != state[name].shape:
        raise ModelError(f"'{alias}' and '{name}' cannot share their numbers.")


def _fill(network: nn.Module, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Give all parameters and buffers their numbers."""
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        is_trained = name not in graph.frozen and tensor.is_floating_point()
        made[name] = nn.Parameter(tensor.detach(), requires_grad=is_trained) if name in parameters else tensor.detach()
    for name in state_of(network):
        owner, own = owner_of(network, name)
        of_owner: dict[str, Any] = slots(owner).parameters if name in parameters else slots(owner).buffers
        of_owner[own] = made[graph.tied.get(name, name)]


def _dtype(given: Given) -> torch.dtype:
    dtype: torch.dtype = read({"dtype": given.dtype}, 0)
    return dtype
