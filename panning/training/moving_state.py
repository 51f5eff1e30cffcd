"""What is saved of moving masks beside the network and the optimizer, and whether a state is one of theirs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panning.problem import Problem
from panning.records import content_key
from panning.training.dynamic import Clock, Dynamic

#: In the memory: the magnitude that a masked weight had when it was last kept, by which all-alive pruning revives.
LAST = "last magnitude"
#: In the memory: the network to rewind to.
REMEMBERED = "network."
#: Among a state's tensors: the memory.
MEMORY = "memory."

Kinds = dict[str, tuple[torch.dtype, torch.Size]]


def kinds_of(tensors: Mapping[str, Tensor]) -> Kinds:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def start_identity(
    problem: Problem, method: Dynamic, density: float, all_alive: bool, first: Tensor, clock: Clock
) -> str:
    """What two states must agree in: of another method, start or network, the tensors mean something else."""
    how = [type(method).__name__, method.model_dump(mode="json"), density, all_alive]
    length = [clock.n_steps, clock.schedule, clock.epoch, problem.seed]
    mask = hashlib.sha256(first.cpu().numpy().tobytes()).hexdigest()
    return content_key([*how, *length, problem.layout.names, problem.layout.shapes, mask])


@dataclass(frozen=True)
class StateForm:
    """What a state must look like; read from files, it may be anything.

    Attributes:
        identity: of what it must be the state.
        n_prunable: entries of each flat tensor.
        has_dense: whether there are dense weights beside the network's.
        wants_gradient: whether a move that waits has a gradient.
        begun: of the memory that the method began with; an empty first axis grows.
        network: of the network's ``state_dict``.
    """

    identity: str
    n_prunable: int
    has_dense: bool
    wants_gradient: bool
    begun: Kinds
    network: Kinds

    def fits(self, state: Mapping[str, Any]) -> bool:
        try:
            tensors, due = state["tensors"], state["due"]
            flat = {name: tensor for name, tensor in tensors.items() if not name.startswith(MEMORY)}
            waits = due is not None and self.wants_gradient
            numbers = [state["step"], state["n_grown"], *([] if due is None else [due])]
            return (
                state["identity"] == self.identity
                and all(type(n) is int and n >= 0 for n in numbers)
                and math.isfinite(state["dense_steps"])
                and set(flat) == {"mask", *(["dense"] if self.has_dense else []), *(["grad"] if waits else [])}
                and all(tensor.shape == (self.n_prunable,) for tensor in flat.values())
                and flat["mask"].dtype == torch.bool
                and self._has_memory({n.removeprefix(MEMORY): t for n, t in tensors.items() if n not in flat})
            )
        except (KeyError, TypeError, AttributeError):
            return False

    def _has_memory(self, loaded: Mapping[str, Tensor]) -> bool:
        """Whether there is what the method began with, of the same kind, and of what may come nothing or all."""
        network = {REMEMBERED + name: kind for name, kind in self.network.items()}
        wanted = dict(self.begun)
        if LAST in loaded:
            wanted[LAST] = (torch.float32, torch.Size([self.n_prunable]))
        if any(name in network for name in loaded):
            wanted |= network
        return set(loaded) == set(wanted) and all(
            loaded[name].dtype == dtype
            and loaded[name].shape[grows:] == shape[grows:]
            and loaded[name].dim() == len(shape)
            for name, (dtype, shape) in wanted.items()
            for grows in [int(shape[:1] == (0,))]
        )
