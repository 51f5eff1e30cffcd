"""Two masks beside each other, layer by layer, in numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from panning.foundation.errors import MaskError
from panning.masks.file import load_masks
from panning.masks.masks import Masks
from panning.masks.packed import n_ones


def compared(first: Path, second: Path) -> dict[str, Any]:
    """What two mask files have in common.

    Jaccard is the number of weights that both keep as a share of those that either keeps; None where neither keeps any.
    A layer that only one of the files has, or has in another shape, is told for that one alone.

    Raises:
        MaskError: if a file is no usable mask file.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> import panning
        >>> from panning.service.compare import compared
        >>> for name, kept in (("first", [1, 1, 0]), ("second", [1, 0, 1])):
        ...     panning.save_masks(panning.Masks.from_tensors({"weight": torch.tensor(kept)}), name)
        >>> found = compared(Path("first"), Path("second"))
        >>> round(found["jaccard"], 3), found["layers"][0]["n_both"]
        (0.333, 1)
    """
    one, two = _read(first, "The first mask"), _read(second, "The second mask")
    ours, theirs = ({layer["name"]: layer for layer in _layers(masks)} for masks in (one, two))
    layers = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name), theirs.get(name)
        if a is not None and b is not None and a["shape"] != b["shape"]:
            layers += [_row(a, None), _row(None, b)]
        else:
            layers.append(_row(a, b))
    both = [layer["n_both"] for layer in layers if layer["n_both"] is not None]
    n_both = sum(both) if len(both) == len(layers) else None
    return {
        "first": _total(one), "second": _total(two), "n_both": n_both, "jaccard": _jaccard(one.n_kept, two.n_kept, n_both),
        "layers": layers,
    }  # fmt: skip


def _read(path: Path, called: str) -> Masks:
    try:
        return load_masks(path, packed=True)
    except MaskError as error:
        raise MaskError(str(error).replace(str(path), called)) from None


def _total(masks: Masks) -> dict[str, Any]:
    said = masks.manifest.get("effective_density")
    is_density = isinstance(said, float) and 0 <= said <= 1
    return {
        "n_weights": masks.n_prunable, "n_kept": masks.n_kept, "density": masks.density,
        "effective_density": said if is_density else None,
    }  # fmt: skip


def _layers(masks: Masks) -> list[dict[str, Any]]:
    layout = masks.layout
    rows = zip(layout.names, layout.shapes, layout.sizes, masks.packed_layers(), strict=True)
    return [{"name": name, "shape": list(shape), "n": n, "bits": bits} for name, shape, n, bits in rows]


def _row(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any]:
    some: Any = first or second
    told = [
        None if one is None else {"n_kept": (n := n_ones(one["bits"])), "density": n / one["n"]}
        for one in (first, second)
    ]
    n_both = None if first is None or second is None else n_ones(np.bitwise_and(first["bits"], second["bits"]))
    n_first, n_second = (0 if one is None else one["n_kept"] for one in told)
    return {
        "name": some["name"], "shape": some["shape"], "n_weights": some["n"], "first": told[0], "second": told[1],
        "n_both": n_both, "jaccard": _jaccard(n_first, n_second, n_both),
    }  # fmt: skip


def _jaccard(n_first: int, n_second: int, n_both: int | None) -> float | None:
    either = 0 if n_both is None else n_first + n_second - n_both
    return None if n_both is None or not either else n_both / either
