"""A compact network as a folder: its weights, the mask, and what else decides which units are gone.

    weights.safetensors     the small network's ``state_dict``
    mask.safetensors        the mask of the original network
    vectors.safetensors     biases and norms of the original as they were, and the input shape if one tensor is the input

Code is not in it: who has the code of the original makes the small network from it and these files again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panning.compaction.compaction import CompactResult, compact
from panning.flow import Forward
from panning.foundation.errors import MaskError, ModelError
from panning.foundation.files import write_atomic
from panning.foundation.tensorfile import DAMAGE, packed, read_tensors
from panning.masks.file import load_masks, save_masks
from panning.masks.masks import Masks, check_input_shape, check_masks_fit, fitted

WEIGHTS, MASK, VECTORS = "weights.safetensors", "mask.safetensors", "vectors.safetensors"


def save_compact(result: CompactResult, masks: Masks, folder: str | Path) -> None:
    """Write a compact network.

    Args:
        result: made without ``fold``, which depends on weights that are gone.
        masks: those that ``result`` was made by.

    Raises:
        ModelError: if constants were folded, or an input has more values than ``load_compact`` takes.
        MaskError: if ``result`` was made by other masks.
        OutputError: if the folder cannot be written.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import panning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = panning.prune(model, input_shape=(4,), density=0.25)
        >>> small = panning.compact(model, masks)
        >>> panning.save_compact(small, masks, "small")
    """
    if result.fold:
        raise ModelError(
            "A network with folded constants cannot be made again from its weights: save it as ONNX, or compact it without "
            "fold=True."
        )
    _check_made_by(result, masks)
    try:
        if result.input_shape:
            check_input_shape(list(result.input_shape))
    except ValueError as error:
        raise ModelError(f"This network cannot be made again from a folder: {error}.") from None
    folder = Path(folder)
    save_masks(masks, folder / MASK)
    vectors = {name: tensor for name, tensor in result.original.state_dict().items() if tensor.dim() <= 1}
    write_tensors(vectors, folder / VECTORS, input_shape=json.dumps(result.input_shape or None))
    write_tensors(result.model.state_dict(), folder / WEIGHTS)


def load_compact(
    model: nn.Module, folder: str | Path, *, example_inputs: Any = None, forward: Forward | None = None
) -> CompactResult:
    """The compact network of a folder, from the code of the original.

    Args:
        model: the original network; weights that no output depends on are not in the folder, ``expand`` takes its.
        example_inputs: as for ``compact``, which was given them; a network on one tensor needs none.
        forward: as for ``compact``.

    Raises:
        MaskError: if a file is missing, broken, or belongs to another network; if example inputs are missing.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import panning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = panning.prune(model, input_shape=(4,), density=0.25)
        >>> small = panning.compact(model, masks)
        >>> panning.save_compact(small, masks, "small")
        >>> again = panning.load_compact(model, "small")
        >>> inputs = torch.randn(3, 4)
        >>> torch.equal(again.model(inputs), small.model(inputs))
        True
    """
    folder = Path(folder)
    masks = load_masks(folder / MASK)
    try:
        shape, vectors = read_tensors(folder / VECTORS, "input_shape")
        _, weights = read_tensors(folder / WEIGHTS, None)
        if shape is None and example_inputs is None:
            raise ValueError("it takes more than one tensor, so pass example_inputs=, those that compact was given")
        given = None if shape is None else check_input_shape(shape)
        result = compact(with_tensors(model, vectors), masks, given, example_inputs=example_inputs, forward=forward)
        result.model.load_state_dict(weights)
    except (*DAMAGE, ModelError, MaskError) as error:
        raise MaskError(f"{folder} holds no compact form of this {type(model).__name__}: {error}") from None
    return result


def _check_made_by(result: CompactResult, masks: Masks) -> None:
    """The small network's own mask, or one that was made since, makes another network from the original."""
    masks = fitted(result.original, masks, wrapped=True)
    parameters = check_masks_fit(result.original, masks)
    left = {name for name, _ in result.mapping.values() if name in masks}
    made_by = left == {result.mapping[name][0] for name in result.masks or ()} and all(
        torch.equal(mask, result.narrow(name, masks[result.mapping[name][0]]))
        for name, mask in (result.masks or {}).items()
    )
    if not made_by or any(bool(parameters[name].detach()[~mask].any()) for name, mask in masks.items()):
        raise MaskError("The network was made compact by other masks; pass those that panning.compact was given.")


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` with some of its parameters and buffers replaced.

    Raises:
        ValueError: if one is not there, or has another shape or type.
    """
    model = copy.deepcopy(model)
    state = model.state_dict()
    for name, tensor in tensors.items():
        if name not in state or (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"the model has no '{name}' of {tensor.dtype} {list(tensor.shape)}")
        state[name].copy_(tensor)
    return model


def write_tensors(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write a ``state_dict`` as safetensors; tied tensors are written under each of their names."""
    write_atomic(path, packed(tensors, {"format": "pt", **metadata}))
