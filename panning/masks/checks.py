"""Checks of what files from outside hold, before any of it becomes a mask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor

from panning.foundation.errors import MaskError
from panning.masks.masks import Masks, without_prefix

#: A larger file, or an archive that unpacks to more, is refused before it is read.
MAX_FILE_BYTES = 4 * 2**30

#: More weights than this are refused: in CSR or an expanded tensor, a few bytes can stand for any number of weights.
MAX_WEIGHTS = 2**30

READABLE = (
    "a mask file of panning, a torch file with a dict of 0/1 tensors or the state_dict of a torch.nn.utils.prune model, "
    "a safetensors file of 0/1 or CSR tensors, or an .npz of 0/1 arrays"
)


class Broken(Exception):
    """Error: what was found and what is expected; ``read_any`` and ``load_masks`` add the file."""


def broken(found: str, expected: str = READABLE) -> NoReturn:
    raise Broken(f"  found: {found}\n  expected: {expected}")


def masks_of(tensors: Mapping[str, Tensor]) -> Masks:
    """Masks from named tensors that came from outside, without the wrappers' prefix that all names may begin with."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_quantized:
            broken(f"'{short(name)}' of {tensor.dtype}", "bool, integer or float entries that are 0 or 1")
    check_sizes((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    try:
        return without_prefix(Masks.from_tensors(tensors))
    except (MaskError, RuntimeError) as error:
        broken(short(error))


def check_sizes(entries: Iterable[tuple[Any, tuple[int, ...]]]) -> None:
    n_weights = 0
    for name, shape in entries:
        check_name(name)
        if not shape or len(shape) > 16 or min(shape) < 1:
            broken(f"'{short(name)}' of shape {short(shape)}", "1 to 16 sizes, each at least 1")
        n_weights += math.prod(shape)
        if n_weights > MAX_WEIGHTS:
            broken(f"more weights than {MAX_WEIGHTS} (up to '{short(name)}' of shape {short(shape)})", "at most that")
    if n_weights == 0:
        broken("no tensor", "one 0/1 tensor for each masked parameter")


def check_name(name: object) -> None:
    # Names are shown on terminals; control characters there are an attack.
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 1000 or name == "__metadata__":
        broken(f"a tensor called {short(name)}", "a state_dict name of printable characters")


def short(value: object) -> str:
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."
