"""Training checkpoints: weights, buffers and momentum as safetensors, the history as JSON in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from panning.errors import PanningError
from panning.records import write_atomic
from panning.tensorfile import DAMAGE, read_tensors

#: What each optimizer keeps of a parameter: a number, or a tensor of the parameter's shape.
STATES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}}


@dataclass(frozen=True)
class Checkpoint:
    """What a resumed run must know beside the present tensors; the random streams follow from seed and epoch.

    Attributes:
        best: the ``state_dict`` of the epoch that was best on the validation part; empty if none is kept.
    """

    history: list[dict[str, float]]
    best: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, training: str
) -> None:
    """Write all tensors of model and optimizer, whole or not at all.

    Args:
        training: names what is trained and how. Shapes do not tell: compact networks of two masks may have the same.
    """
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor.contiguous() for name, tensor in checkpoint.best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    write_atomic(path, save(tensors, {f"history of {training}": json.dumps(checkpoint.history)}))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, training: str) -> Checkpoint | None:
    """Put a checkpoint's tensors into model and optimizer; None if there is no file.

    Raises:
        PanningError: if the file is broken or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        history, tensors = read_tensors(path, f"history of {training}")
        if not isinstance(history, list) or [e["epoch"] for e in history] != list(range(1, len(history) + 1)):
            raise ValueError("its history is not that of the epochs 1, 2, ...")
        if not all(isinstance(value, int | float) for entry in history for value in entry.values()):
            raise ValueError("its history holds what is no number")
        best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
        if best and _kinds(best) != _kinds(model.state_dict()):
            raise ValueError("its best tensors are not those of this network")
        restore({name: t for name, t in tensors.items() if not name.startswith("best.")}, "model.", model, optimizer)
    except DAMAGE as error:
        raise PanningError(
            f"{path} is not a checkpoint of this training; delete it to start again ({error})."
        ) from None
    return Checkpoint(history, best)


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
    if _kinds(module.state_dict()) != _kinds(values):
        raise ValueError("its tensors are not those of this network")
    module.load_state_dict(values)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
