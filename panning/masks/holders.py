"""Who holds a network's parameters: optimizers, wrappers, other ranks, and masks that are enforced or move."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.foundation.errors import MaskError
from panning.foundation.torch_private import gradient_hooks
from panning.masks.gates import Gate
from panning.masks.masks import Masks


class Mover(Protocol):
    @property
    def parameters(self) -> Sequence[Tensor]: ...


#: The objects that move masks just now.
MOVERS: WeakSet[Mover] = WeakSet()


def first_enforced(parameters: Mapping[str, Tensor]) -> str | None:
    """The first of the parameters on which a mask is enforced; None if there is none."""
    return next((name for name, parameter in parameters.items() if any(_gates_of(parameter))), None)


def first_moving(parameters: Mapping[str, Tensor]) -> str | None:
    """The first of the parameters whose mask moves; None if there is none."""

    def first() -> str | None:
        moving = {id(parameter) for mover in MOVERS for parameter in mover.parameters}
        return next((name for name, parameter in parameters.items() if id(parameter) in moving), None)

    if first() is not None:
        gc.collect()  # what nobody holds any more, an optimizer and its hooks still hold each other
    return first()


def _gates_of(parameter: Tensor) -> Iterator[Gate]:
    owners = (getattr(hook, "__self__", None) for hook in gradient_hooks(parameter))
    return (owner for owner in owners if isinstance(owner, Gate))


def check_held(parameters: Mapping[str, nn.Parameter], optimizers: Iterable[Optimizer]) -> None:
    """Raise MaskError if one of the parameters that learn is in no optimizer."""
    held = {parameter for one in optimizers for group in one.param_groups for parameter in group["params"]}
    loose = [name for name, parameter in parameters.items() if parameter.requires_grad and parameter not in held]
    if loose:
        raise MaskError(
            f"{len(loose)} masked parameters are in no optimizer, '{loose[0]}' first: pass the optimizers that train "
            "this very model. An optimizer made for a copy, or before the parameters were replaced, trains others."
        )


def check_ranks_agree(masks: Masks) -> None:
    """Raise MaskError if the ranks of a distributed training hold different masks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    layout = repr((masks.layout.names, masks.layout.shapes)).encode()
    digest = hashlib.sha256(layout + masks.flat.cpu().numpy().tobytes()).hexdigest()
    digests = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, digest)
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise MaskError(
            f"Ranks {others} hold another mask than rank 0. Make the mask on one rank and send it to all with "
            "torch.distributed.broadcast_object_list, or load one file everywhere."
        )
