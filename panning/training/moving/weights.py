"""How masked weights behave between two moves: what the network runs with, what the optimizer moves, what is shipped.

Outside of a step, the model's parameters are always those that the next forward pass runs with.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from panning.masks.enforce import MaskEnforcement, enforce_masks, remove_all
from panning.masks.masks import Masks
from panning.training.moving.abilities import KeepsDenseWeights
from panning.training.moving.flat import FlatParameters
from panning.training.moving.method import Clock, Memory, Movement


class ZeroWeights:
    """Masked weights are zero and learn nothing. Base class of the other behaviours, which override what differs.

    Attributes:
        flat: the network's prunable parameters.
        may_differ: whether the network may run with other weights than those that are shipped.
    """

    may_differ = False

    def __init__(self, movement: Movement, flat: FlatParameters, first: Tensor, memory: Memory) -> None:
        self.movement, self.flat, self.first, self.memory = movement, flat, first, memory
        self._enforcement: MaskEnforcement | None = None

    @property
    def dense(self) -> Tensor:
        """Flat [n_prunable], what the optimizer moves; a copy."""
        return self.flat.read()

    def hold(self, masks: Masks, optimizer: Optimizer, owner: object) -> None:
        """Register the hooks that hold masked weights, for as long as ``owner`` lives."""
        self._enforcement = enforce_masks(self.movement.problem.model, masks, optimizer)
        self._enforcement.trusts_loads = True
        # Where nobody holds the owner any more, the hooks of the parameters would go on with its last mask.
        weakref.finalize(owner, remove_all, self._enforcement.handles).atexit = False

    def release(self) -> None:
        """Remove these hooks."""
        if self._enforcement is not None:
            self._enforcement.remove()

    def show_gradients(self, whole: bool) -> None:
        """Whether the next step's gradients of masked weights are left as they are."""
        if self._enforcement is not None:
            self._enforcement.let_gradients_through(whole)

    def adopt(self, mask: Tensor, clock: Clock) -> None:
        """Apply external writes to the running weights (loading, clipping, averaging) to what the optimizer moves."""

    def before_step(self, mask: Tensor, clock: Clock) -> None:
        """Put in what the optimizer is to move."""

    def after_step(self, mask: Tensor, clock: Clock) -> None:
        """Take what the optimizer has moved; ``clock`` is that of before the step."""

    def put(self, weight: Tensor, mask: Tensor, clock: Clock) -> None:
        """Give the network the weights and the mask of a move."""
        self.flat.write(torch.where(mask, weight, 0.0))

    def change(self, masks: Masks) -> None:
        """Hold another mask."""
        if self._enforcement is not None:
            self._enforcement.change(masks)

    def run(self, mask: Tensor, clock: Clock) -> None:
        """Let the network run with what follows from the dense weights."""

    def write(self, flat: Tensor) -> None:
        """Let the network run with these weights."""
        self.flat.write(flat)

    def shipped(self, mask: Tensor) -> Tensor:
        """The flat weights that would be shipped now."""
        return torch.where(mask, self.flat.read(), 0.0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what ``saved`` gave."""

    def saved(self) -> dict[str, Tensor]:
        """The tensors that a state needs beside the mask."""
        return {}

    def trust_loads(self) -> None:
        """Until the next step, what is loaded into the network says nothing about the dense weights."""

    def share_run(self, of_mask: float, of_first: float, clock: Clock) -> float:
        """The share of the dense network that the next step runs, given the shares of the present and the first mask."""
        return of_mask

    def needs_whole_gradient(self, looks: bool, clock: Clock) -> bool:
        """Whether the next step needs the gradients of masked weights; ``looks``: the method does."""
        return looks


class _Unenforced(ZeroWeights):
    """Masked weights that no hooks of parameters hold."""

    def hold(self, masks: Masks, optimizer: Optimizer, owner: object) -> None:
        """Nothing to register."""


class WholeGradientWeights(_Unenforced):
    """Masked weights are zero after every step, but their gradients reach the optimizer's state."""

    def after_step(self, mask: Tensor, clock: Clock) -> None:
        self.flat.write(torch.where(mask, self.flat.read(), 0.0))

    def needs_whole_gradient(self, looks: bool, clock: Clock) -> bool:
        return True


class FreeWeights(_Unenforced):
    """A move sets masked weights to zero, then they learn again; only what the first mask masks stays zero."""

    may_differ = True

    def after_step(self, mask: Tensor, clock: Clock) -> None:
        self.flat.write(torch.where(self.first, self.flat.read(), 0.0))

    def share_run(self, of_mask: float, of_first: float, clock: Clock) -> float:
        return of_first


class DenseWeights(_Unenforced):
    """Dense weights lie beside the network's, which runs with what follows from them (feedback).

    The dense weights are put in before the optimizer's step, which therefore decays and moves *them* by the gradient taken
    at the running weights; the running weights are put back after it. No forward pass is changed.
    """

    may_differ = True

    def __init__(self, movement: Movement, flat: FlatParameters, first: Tensor, memory: Memory) -> None:
        super().__init__(movement, flat, first, memory)
        assert isinstance(movement.method, KeepsDenseWeights)
        self._method: KeepsDenseWeights = movement.method
        self._dense = flat.read()
        #: True between a load and the next step: the model's weights may be stale, so ``adopt`` must not copy them.
        self._trusts_loads = False
        self._written: Tensor | None = None  # what the network was given last

    @property
    def dense(self) -> Tensor:
        return self._dense

    def adopt(self, mask: Tensor, clock: Clock) -> None:
        """Apply external writes to the running weights (loading, clipping, averaging) to the dense weights as well.

        A dense weight that runs as it is gets the new value; one that runs as something else (quantised, of low rank) moves
        by as much. Written weights that the mask hides are not adopted.
        """
        if self._written is None or self._trusts_loads:
            return
        now = self.flat.read()
        changed = now != self._written  # by value: what is written through ``data`` counts no version
        if not self._method.runs_whole(clock):
            changed &= mask
        new = torch.where(self._written == self._dense, now, self._dense + (now - self._written))
        self._dense = torch.where(changed, new, self._dense)
        self._written = now

    def before_step(self, mask: Tensor, clock: Clock) -> None:
        self.adopt(mask, clock)
        if self._method.learns_kept_only(clock):
            self.flat.clear_gradients(mask)
        self.flat.write(self._dense)

    def after_step(self, mask: Tensor, clock: Clock) -> None:
        stepped = self.flat.read()
        # Momentum and weight decay move weights without a gradient, too.
        self._dense = torch.where(mask, stepped, self._dense) if self._method.learns_kept_only(clock) else stepped
        self._trusts_loads = False

    def put(self, weight: Tensor, mask: Tensor, clock: Clock) -> None:
        self._dense = weight.clone()
        self.run(mask, clock)

    def run(self, mask: Tensor, clock: Clock) -> None:
        self.write(self._dense if self._method.runs_whole(clock) else self.shipped(mask))

    def write(self, flat: Tensor) -> None:
        self.flat.write(flat)
        self._written = self.flat.read()

    def shipped(self, mask: Tensor) -> Tensor:
        return self._method.run_weights(self._dense, mask, self.movement.problem, self.memory)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._dense = tensors["dense"].to(self.flat.device).clone()

    def saved(self) -> dict[str, Tensor]:
        return {"dense": self._dense}

    def trust_loads(self) -> None:
        self._trusts_loads = True

    def share_run(self, of_mask: float, of_first: float, clock: Clock) -> float:
        return 1.0 if self._method.runs_whole(clock) else of_mask

    def needs_whole_gradient(self, looks: bool, clock: Clock) -> bool:
        return not self._method.learns_kept_only(clock)
