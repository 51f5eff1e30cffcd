"""Masks that a trainer holds: what the callbacks for several trainers have in common.

A training that begins afresh makes its masks or starts to move them. A training that goes on from a checkpoint takes both
from there: by then the weights are trained, and a mask made from them would be another.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from panning.foundation.errors import MaskError
from panning.masks.enforce import MaskEnforcement, enforce_masks
from panning.masks.file import dump_masks, parse_masks
from panning.masks.masks import Masks
from panning.moves import move_masks
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Dynamic

#: Masks, or what makes them from the network at its initial weights and the trainer's DataLoader.
MaskSource = Masks | Callable[[nn.Module, Any], Masks]
#: What a checkpoint keeps: tensors, text and numbers.
State = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """What a trainer says when it begins to train.

    Attributes:
        model: with the weights of the checkpoint, if the training goes on from one.
        optimizers: with their states, too.
        n_steps: optimizer steps of the whole training; None where the trainer does not know.
        steps_per_epoch: optimizer steps of an epoch; None where the trainer does not know.
    """

    model: nn.Module
    optimizers: Sequence[Any]
    loader: Any
    n_steps: int | None
    steps_per_epoch: int | None


class Held(ABC):
    """Base of masks that a trainer holds from ``begin`` to ``end``."""

    masks: Masks | None = None

    @abstractmethod
    def begin(self, fit: Fit, saved: State | None) -> None:
        """Hold the masks: fresh ones, or those of a checkpoint."""

    @abstractmethod
    def state(self) -> State | None:
        """For checkpoints; None before the training has begun."""

    @abstractmethod
    def end(self) -> None:
        """Let go; may be called twice."""


class Enforced(Held):
    """Masks that stay as they are."""

    def __init__(self, masks: MaskSource) -> None:
        if not isinstance(masks, Masks) and not callable(masks):
            raise MaskError(
                f"masks is a {type(masks).__name__}; pass panning.Masks, or a function of the network and its DataLoader "
                "that returns them."
            )
        self.source = masks
        self.enforcement: MaskEnforcement | None = None

    def begin(self, fit: Fit, saved: State | None) -> None:
        self.end()
        own = self.masks or (self.source if isinstance(self.source, Masks) else None)
        if saved is not None:
            masks = _masks_in(saved)
            if own is not None and own != masks:
                raise MaskError(
                    "The checkpoint is of a training under other masks: go on with the masks it began with."
                )
        elif own is None:
            assert not isinstance(self.source, Masks)
            masks = self.source(fit.model, fit.loader)
        else:
            masks = own
        self.enforcement = enforce_masks(fit.model, masks, [inner(one) for one in fit.optimizers])
        self.masks = masks

    def state(self) -> State | None:
        return None if self.masks is None else {"masks": _bytes_of(self.masks)}

    def end(self) -> None:
        if self.enforcement is not None:
            self.enforcement.remove()
        self.enforcement = None


class Moved(Held):
    """Masks that move by a method of ``DYNAMICS``.

    Args:
        n_steps, steps_per_epoch: in place of what the trainer says.
        options: of ``panning.move_masks``.
    """

    def __init__(
        self, method: str | Dynamic, density: float, n_steps: int | None, steps_per_epoch: int | None, **options: Any
    ) -> None:
        self.method, self.density, self.options = method, density, options
        self.n_steps, self.steps_per_epoch = n_steps, steps_per_epoch
        self.moving: MovingMasks | None = None
        self._last: State | None = None

    def begin(self, fit: Fit, saved: State | None) -> None:
        self.end()
        n_steps = self.n_steps or fit.n_steps
        if n_steps is None:
            raise MaskError("The trainer does not know its number of steps: pass n_steps to the callback.")
        if len(fit.optimizers) != 1:
            raise MaskError(f"Masks that move want one optimizer for all, and there are {len(fit.optimizers)}.")
        optimizer, options = inner(fit.optimizers[0]), dict(self.options)
        given = options.get("masks")
        if saved is not None:
            said = {} if given is None else given.manifest
            given = options["masks"] = _masks_in(saved).with_manifest(**said)
            options |= {"include": None, "exclude": ()}  # the masks say it
        shape = options.get("input_shape") or (given.input_shape if given is not None else None)
        if options.get("data") is None and shape is None:
            options["data"] = fit.loader
        before = None if saved is None else _State(fit.model, optimizer)
        moving = move_masks(
            fit.model, optimizer, self.method, density=self.density, n_steps=n_steps,
            steps_per_epoch=self.steps_per_epoch or fit.steps_per_epoch, **options,
        )  # fmt: skip
        if before is not None and saved is not None:
            try:
                moving.load_state_dict(saved.get("moving", {}))
            except MaskError as error:
                with warnings.catch_warnings(action="ignore"):  # that it ends before its time
                    moving.finish()
                raise MaskError(f"The checkpoint is of a training whose masks moved otherwise. {error}") from None
            finally:  # the first mask has cleared what the checkpoint's weights and momenta had since gained
                before.restore()
        self.moving = moving

    def state(self) -> State | None:
        if self.moving is None:
            return self._last
        first = Masks(self.moving.problem.layout, self.moving.first.cpu())
        return {"masks": _bytes_of(first), "moving": self.moving.state_dict()}

    def end(self) -> None:
        if self.moving is not None:
            self._last = self.state()
            self.masks = self.moving.finish()
        self.moving = None


class _State:
    """What a network and its optimizer hold now."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.state = copy.deepcopy(optimizer.state_dict())

    def restore(self) -> None:
        self.model.load_state_dict(self.weights)
        self.optimizer.load_state_dict(self.state)


def inner(optimizer: Any) -> Any:
    """The optimizer inside a trainer's wrapper, which may pretend to be one."""
    while (wrapped := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = wrapped
    return optimizer


def _bytes_of(masks: Masks) -> Tensor:
    return torch.frombuffer(bytearray(dump_masks(masks)), dtype=torch.uint8)


def _masks_in(saved: State) -> Masks:
    data = saved.get("masks")
    if not isinstance(data, Tensor) or data.dtype != torch.uint8:
        raise MaskError("The checkpoint was made without these masks; begin anew, or go on without the callback.")
    return parse_masks(data.cpu().numpy().tobytes(), "the masks in the checkpoint")
