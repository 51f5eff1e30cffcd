"""Training checkpoints: weights, buffers and momentum as safetensors, the history as JSON in its metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panning.foundation.errors import MaskError, PanningError
from panning.foundation.files import write_atomic
from panning.foundation.tensorfile import DAMAGE, packed, read_tensors, under
from panning.masks.layout import Layout
from panning.masks.masks import Masks
from panning.training.moving.engine import MovingMasks
from panning.training.moving.state import kinds_of
from panning.training.result import Entry

#: Figures of an epoch: where the validation part was looked at, and where masks move.
VALIDATED = ("accuracy", "loss")
MOVED = ("density", "effective_density", "n_grown")
#: What each optimizer keeps of a parameter: a number, or a tensor of the parameter's shape.
STATES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}}


@dataclass(frozen=True)
class Checkpoint:
    """What a resumed run must know beside the present tensors; the random streams follow from seed and epoch.

    Attributes:
        history: the entries of all epochs so far.
        best: for each network that the training gives, the entry and the ``state_dict`` of the epoch that was best on the
            validation part; empty without ``keep_best``.
        masks: the masks of these epochs, flat bool; empty unless masks move.
    """

    history: list[Entry] = field(default_factory=list)
    best: dict[int, tuple[Entry, dict[str, Tensor]]] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)

    def keep_if_best(self, member: int | None, entry: Entry, model: nn.Module, moving: MovingMasks | None) -> None:
        """Keep the weights and the mask of this epoch if ``member`` was never as accurate; None is no member."""
        if member is None or (member in self.best and entry["accuracy"] <= self.best[member][0]["accuracy"]):
            return
        self.best[member] = (entry, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        if moving is not None:
            self.masks[member] = moving.mask.cpu()

    def member_masks(self, layout: Layout) -> tuple[Masks, ...]:
        """The masks of ``best`` in the order of their members."""
        return tuple(Masks(layout, self.masks[member]) for member in sorted(self.masks))


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, training: str,
    moving: MovingMasks | None = None,
) -> None:  # fmt: skip
    """Write all tensors of model, optimizer and moving masks, whole or not at all.

    Args:
        training: names what is trained and how. Shapes do not tell: compact networks of two masks may have the same.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    facts: dict[str, Any] = {"history": checkpoint.history, "best": {}, "moving": None}
    for member, (entry, weights) in checkpoint.best.items():
        facts["best"][str(member)] = int(entry["epoch"])
        tensors |= {f"best.{member}.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"masks.{member}": mask for member, mask in checkpoint.masks.items()}
    if moving is not None:
        state = moving.state_dict()
        tensors |= {f"moving.{name}": tensor for name, tensor in state.pop("tensors").items()}
        facts["moving"] = state
    write_atomic(path, packed(tensors, {f"history of {training}": json.dumps(facts)}))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, training: str, moving: MovingMasks | None = None,
    n_epochs: int | None = None, looks: bool = False,
) -> Checkpoint | None:  # fmt: skip
    """Put a checkpoint's tensors into model, optimizer and moving masks; None if there is no file.

    Args:
        n_epochs: of the whole training, if that is known.
        looks: whether the training looks at the validation part after every epoch.

    Raises:
        PanningError: if the file is broken or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        facts, tensors = read_tensors(path, f"history of {training}")
        figures = {"train_loss", *(VALIDATED if looks else ()), *(() if moving is None else MOVED)}
        history = _history(facts["history"], n_epochs, figures)
        own = {name: t for name, t in tensors.items() if name.startswith(("model.", "optimizer."))}
        epochs = {int(member): epoch for member, epoch in facts["best"].items()}
        if (moving is None) != (facts["moving"] is None):
            raise ValueError("its masks move, or do not")
        of_moving = () if moving is None else ("moving.", "masks.")
        prefixes = ("model.", "optimizer.", *of_moving, *(f"best.{member}." for member in epochs))
        if loose := [name for name in tensors if not name.startswith(prefixes)]:
            raise ValueError(f"{loose[0]} belongs to nothing")
        if not all(1 <= epoch <= len(history) for epoch in epochs.values()):
            raise ValueError("its best epochs are not in its history")
        best = {member: (history[epoch - 1], under(tensors, f"best.{member}.")) for member, epoch in epochs.items()}
        if any(kinds_of(weights) != kinds_of(model.state_dict()) for _, weights in best.values()):
            raise ValueError("its best tensors are not those of this network")
        masks: dict[int, Tensor] = {}
        if moving is not None:  # first: what the optimizer's state may hold follows from the mask
            masks = {member: tensors[f"masks.{member}"] for member in epochs}
            if any((m.dtype, m.shape) != (moving.mask.dtype, moving.mask.shape) for m in masks.values()):
                raise ValueError("the masks of its best networks are not those of this network")
            if facts["moving"]["step"] != min(len(history) * moving.clock.epoch, moving.n_steps):
                raise ValueError("its masks are of another step")
            moving.load_state_dict({**facts["moving"], "tensors": under(tensors, "moving.")})
        restore(own, "model.", model, optimizer)
    except (*DAMAGE, MaskError) as error:
        raise PanningError(
            f"{path} is not a checkpoint of this training; delete it to start again ({error})."
        ) from None
    return Checkpoint(history, best, masks)


def _history(given: Any, n_epochs: int | None, figures: set[str]) -> list[Entry]:
    """The entries of a training's epochs, each with the figures that the training writes, all of them finite floats."""
    if not isinstance(given, list) or [entry["epoch"] for entry in given] != list(range(1, len(given) + 1)):
        raise ValueError("its history is not that of the epochs 1, 2, ...")
    if n_epochs is not None and len(given) > n_epochs:
        raise ValueError(f"its history has {len(given)} epochs, and the training {n_epochs}")
    for entry in given:
        if wrong := [key for key, value in entry.items() if type(value) is not float or not math.isfinite(value)]:
            raise ValueError(f"its history's '{wrong[0]}' of epoch {entry['epoch']} is no finite number")
        if lacking := sorted(figures - entry.keys()):
            raise ValueError(f"its history of epoch {entry['epoch']} lacks '{lacking[0]}'")
        if any(not 0 <= entry.get(key, 0.0) <= 1 for key in ("accuracy", "density", "effective_density")):
            raise ValueError(f"its history of epoch {entry['epoch']} has a share outside [0, 1]")
    return given


def restore(tensors: Mapping[str, Tensor], prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put ``prefix*`` into the module and ``optimizer.INDEX.KEY`` into the optimizer, once all of them fit.

    Raises:
        ValueError: if one is missing, has another shape or type, or belongs to neither.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = tensor
            continue
        owner, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = tensor
        if owner != "optimizer" or not 0 <= int(index) < len(parameters):
            raise ValueError(f"{name} belongs to nothing")
        if tensor.shape not in (parameters[int(index)].shape, ()) or not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    if any(set(kept) != STATES[type(optimizer)] for kept in state.values()):
        raise ValueError("the optimizer's state is not whole")
    if kinds_of(module.state_dict()) != kinds_of(values):
        raise ValueError("its tensors are not those of this network")
    module.load_state_dict(values)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
