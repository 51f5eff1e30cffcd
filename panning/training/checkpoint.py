"""Training checkpoints: weights, buffers and momentum as safetensors, the history as JSON in its metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from panning.errors import PanningError
from panning.records import write_atomic


@dataclass(frozen=True)
class Checkpoint:
    """What a resumed run must know beside the tensors; the random streams follow from seed and epoch."""

    history: list[dict[str, float]]


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Write all tensors of model and optimizer, whole or not at all."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    write_atomic(path, save(tensors, {"history": json.dumps(checkpoint.history)}))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Checkpoint | None:
    """Put a checkpoint's tensors into model and optimizer; None if there is no file.

    Raises:
        PanningError: if the file is broken or belongs to another network.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            history = json.loads((file.metadata() or {})["history"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PanningError(
            f"{path} is not a checkpoint of this training; delete it to start again ({error})."
        ) from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return Checkpoint(history)
