"""Networks whose weights stay in their file: built without memory, and given tensors that are mapped from safetensors.

The system reads a page of the file when it is first used, and drops it when memory runs short. Nothing is written to the
file: what writes into a weight gets a copy of the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.foundation.files import read_regular, strict_json
from panning.foundation.tensorfile import DAMAGE, read_tensors
from panning.models.weights import check_fit

#: The list of shards in a folder, as Hugging Face writes it, and what it may have at most.
INDEX, MAX_INDEX_BYTES = "model.safetensors.index.json", 64 * 2**20


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks that are built within have parameters without values; their buffers are real.

    A parameter has memory only until its module registers it; the initialisation after that draws nothing.

    Examples:
        >>> import torch
        >>> from panning.models.mapped import without_memory
        >>> with without_memory():
        ...     layer = torch.nn.Linear(1_000, 1_000)
        >>> layer.weight.is_meta, layer.weight.shape
        (True, torch.Size([1000, 1000]))
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(module, name, param)

    try:
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def map_weights(model: nn.Module, path: str | Path) -> None:
    """Give a network the tensors of a safetensors file, or of a folder of them, without reading them into memory.

    Args:
        model: most often built under ``without_memory``; its parameters take the files' dtypes.
        path: a file, or a folder with one ``.safetensors`` file or with ``model.safetensors.index.json`` and its shards.

    Raises:
        ModelError: if a file cannot be read, or names or shapes are not those of the network; says which.

    Examples:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from panning.models.mapped import map_weights, without_memory
        >>> save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "layer.safetensors")
        >>> with without_memory():
        ...     layer = torch.nn.Linear(3, 2)
        >>> map_weights(layer, "layer.safetensors")
        >>> layer(torch.ones(3)).tolist()
        [3.0, 3.0]
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(Path(path)):
        try:
            tensors |= read_tensors(file, None)[1]
        except DAMAGE as error:
            raise ModelError(f"No weights can be mapped from {file}: {error}. Give safetensors files.") from None
    tensors = check_fit(model, tensors, path)
    model.load_state_dict(tensors, strict=False, assign=True)
    tie = getattr(model, "tie_weights", None)  # Hugging Face's: of two names of one parameter, files have one
    if callable(tie):
        tie()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (index := path / INDEX).exists():
        try:
            shards: Any = strict_json(read_regular(index, MAX_INDEX_BYTES))["weight_map"].values()
            return [path / Path(name).name for name in sorted(set(shards))]
        except DAMAGE as error:
            raise ModelError(f"{index} is no list of shards: {error}.") from None
    if not (found := sorted(path.glob("*.safetensors"))):
        raise ModelError(f"{path} holds no .safetensors file: name the file, or the folder that it lies in.")
    return found
