"""What is saved of moving masks beside the network and the optimizer, and whether a state is one of theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panning.foundation.errors import MaskError
from panning.foundation.records import canonical_json, content_key
from panning.foundation.tensorfile import under
from panning.masks.masks import digest_of
from panning.training.moving.method import Clock, Movement

#: In the memory: the magnitude that a masked weight had when it was last kept, by which all-alive pruning revives.
LAST = "last magnitude"
#: In the memory: the network to rewind to.
REMEMBERED = "network."
#: Among a state's tensors: the memory.
MEMORY = "memory."
#: Among a state's tensors: the state of the optimizer that moves the second factors of weights.
TWIN = "optimizer."

#: What an identity holds as a hash.
HASHED = ("network", "first mask")

Kinds = dict[str, tuple[torch.dtype, torch.Size]]


def kinds_of(tensors: Mapping[str, Tensor]) -> Kinds:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def start_identity(movement: Movement, first: Tensor, clock: Clock) -> dict[str, Any]:
    """What two states must agree in, by the names that users know: with other values their tensors mean something else."""
    method, layout = movement.method, movement.problem.layout
    return {
        "method": type(method).__name__, "numbers": method.model_dump(mode="json"), "density": float(movement.density),
        "all_alive": movement.all_alive, "shape": movement.shape, "n_steps": clock.schedule, "steps_per_epoch": clock.epoch,
        "seed": int(movement.problem.seed), "network": content_key([layout.names, layout.shapes]),
        "first mask": digest_of(first),
    }  # fmt: skip


@dataclass(frozen=True)
class StateForm:
    """What a state must look like; read from files, it may be anything.

    Attributes:
        identity: of what it must be the state.
        n_prunable: entries of each flat tensor.
        n_kept: the fewest and the most weights that a mask has.
        beside: names of the flat tensors beside the mask: dense weights, or factors.
        n_layers: how many parameters have an entry of their own in a twin's state; None without a twin (``TWIN``).
        wants_gradient: whether a move that waits has a gradient.
        begun: of the memory that the method began with; an empty first axis grows.
        network: of the network's ``state_dict``.
    """

    identity: Mapping[str, Any]
    n_prunable: int
    n_kept: tuple[int, int]
    beside: frozenset[str]
    n_layers: int | None
    wants_gradient: bool
    begun: Kinds
    network: Kinds

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise MaskError, which says what differs, if it is not one."""
        given = state.get("identity") if isinstance(state, Mapping) else None
        own = self.identity
        if isinstance(given, Mapping):
            is_other = not _same(given.get("method"), own["method"])  # whose numbers are others in any case
            if differs := _differences(given, {"method": own["method"]} if is_other else own):
                raise MaskError(f"This state is not one of these moving masks: {'; '.join(differs)}.")
        if not isinstance(given, Mapping) or not self._is_whole(state):
            raise MaskError(
                "This state is not one of these moving masks: it is not what state_dict() gives, or is damaged."
            )

    def _is_whole(self, state: Mapping[str, Any]) -> bool:
        try:
            tensors, step, due = state["tensors"], state["step"], state["due"]
            flat = {name: tensor for name, tensor in tensors.items() if not name.startswith((MEMORY, TWIN))}
            memory, twin = under(tensors, MEMORY), under(tensors, TWIN)
            of_twin = () if self.n_layers is None else ((self.n_prunable,), (self.n_layers,))
            waits = due is not None and self.wants_gradient
            return (
                all(type(n) is int and n >= 0 for n in (step, state["n_grown"]))
                and (due is None or (type(due) is int and due == step))
                and math.isfinite(state["dense_steps"])
                and set(flat) == {"mask", *self.beside, *(["grad"] if waits else [])}
                and all(tensor.shape == (self.n_prunable,) for tensor in flat.values())
                and flat["mask"].dtype == torch.bool
                and self.n_kept[0] <= int(flat["mask"].sum()) <= self.n_kept[1]
                and all(tensor.shape in of_twin and tensor.is_floating_point() for tensor in twin.values())
                and self._has_memory(memory)
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


def _differences(given: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """How one identity differs from another, in words."""
    found = []
    for name, value in own.items():
        if _same(other := given.get(name), value):
            continue
        if name in HASHED:
            found.append(f"it has another {name}")
        elif isinstance(value, Mapping) and isinstance(other, Mapping):
            found += _differences(other, value)
        else:
            found.append(f"its {name} is {other!r:.80}, not {value!r:.80}")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same as JSON; what came from a file may be anything."""
    try:
        return canonical_json(one) == canonical_json(other)
    except (TypeError, ValueError):
        return False
