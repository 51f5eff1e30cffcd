"""EOI, exact orthogonal initialisation (Nowak et al., ICML 2024, arXiv 2406.01755): sparse layers that are exact isometries.

A layer begins as the identity, and random Givens rotations of two of its inputs (or outputs, where those are more) fill it
until it has the wanted number of weights. A convolution holds this at its central tap, with the share min(d k^2, sqrt(d)) of
that tap's weights, d being the layer's density; the rest of its weights lie at other taps and start at 0. What EOI takes of
a mask is how many weights each layer has: it finds its own places, and stands in tables as "QUOTAS + EOI".

NOTE: the paper stops at the rotation that comes nearest to the density. Here no rotation goes beyond it, and what is missing
then are kept weights that start at 0, so that every layer keeps exactly as many weights as the mask. The identity's longer
side is drawn by lot: it would read the first inputs alone, which are the corner of an image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panning.foundation.errors import PanningWarning
from panning.foundation.seeding import torch_generator
from panning.masks.layout import Kind, by_unit, from_units, taps_and_groups
from panning.masks.masks import Masks, check_masks_fit
from panning.masks.start import check_gain, put_start, unit_kinds


def orthogonal(model: nn.Module, masks: Masks, *, gain: float = 1.0, seed: int = 0) -> Masks:
    """Masks with as many weights in each layer as ``masks``, under which every layer of ``model`` is exactly orthogonal.

    The new kept weights are written into ``model``; masked ones become 0. Call it once, before the first training step, and
    hold the masks that it returns. Biases and norms stay. Layers without output units, as embeddings, keep mask and weights.

    Args:
        gain: W^T W = gain^2 I, on the smaller side of W. 1 keeps lengths; sqrt(2) is the scale of He et al. behind a ReLU.
        seed: of the rotations; equal arguments give equal weights.

    Returns:
        the new masks; their manifest says whose quotas they have.

    Warns:
        PanningWarning: of layers with fewer weights than their smaller side, whose units cannot all have one: as many units
            as there are weights are orthonormal, and the others have none. The manifest has the sentence under ``warnings``.

    Raises:
        PanningError: if the gain is no positive number, or the mask belongs to another network; the model is then untouched.

    Examples:
        >>> import torch
        >>> import panning
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> masks = panning.prune(model, input_shape=(100,), density=0.1, method="erk")
        >>> masks = panning.orthogonal(model, masks)
        >>> weight = model[0].weight.double()
        >>> bool(torch.allclose(weight @ weight.T, torch.eye(8).double(), atol=1e-6)), masks.density
        (True, 0.1004...)
    """
    check_gain(gain)
    parameters, layout = check_masks_fit(model, masks), masks.layout
    flat, new, short = masks.flat.clone(), dict[str, Tensor](), list[str]()
    views = layout.views(flat)
    for name, (kind, module) in unit_kinds(model, masks).items():
        n_kept = int(masks[name].sum())
        parts = _parts(parameters[name], kind, module)
        generator = torch_generator(seed, "orthogonal", name)
        made = [
            orthogonal_layer(parts.shape[1:], centre_of(parameters[name].shape), n, generator)
            for n in _divided(n_kept, len(parts), generator)
        ]
        values, kept = (torch.stack(several).flatten(0, 1).flatten(1) for several in zip(*made, strict=True))
        views[name].copy_(from_units(kept, parameters[name], kind, module))
        new[name] = from_units(gain * values, parameters[name], kind, module)
        if n_kept < len(parts) * min(parts.shape[1:3]):
            short.append(name)
    said = {"quotas": masks.manifest.get("method"), "input_shape": masks.manifest.get("input_shape")}
    found = Masks(layout, flat, {"method": "eoi", "seed": seed, **{k: v for k, v in said.items() if v is not None}})
    put_start(parameters, found, new)
    if not short:
        return found
    doubt = (
        f"{len(short)} layers, '{short[0]}' among them, have fewer weights than their smaller side has units: only as many "
        "units as weights are orthonormal, the others have none."
    )
    warnings.warn(doubt, PanningWarning, stacklevel=2)
    return found.with_manifest(warnings=[doubt])


def rotated_identity(rows: int, columns: int, n_kept: int, generator: torch.Generator) -> Tensor:
    """A float64 matrix [rows, columns] with orthonormal smaller side and at most ``n_kept`` non-zeros.

    >>> import torch
    >>> from panning.masks.orthogonal import rotated_identity
    >>> rotated_identity(4, 4, 6, torch.Generator().manual_seed(0)).count_nonzero()
    tensor(6)
    """
    short, long = min(rows, columns), max(rows, columns)
    turned = torch.zeros(long, short, dtype=torch.float64)
    used = torch.randperm(long, generator=generator)[: min(short, n_kept)].tolist()
    turned[used, range(len(used))] = 1.0
    support, n_left, n_used = turned != 0, n_kept - len(used), set(used)
    while n_left > 0 and long > 1 and used:
        # One that is in use and any other: two that are not in use would turn to nothing.
        first = used[int(torch.randint(len(used), (), generator=generator))]
        second = (first + 1 + int(torch.randint(long - 1, (), generator=generator))) % long
        both, pair = support[first] | support[second], [first, second]
        grown = 2 * int(both.sum()) - int(support[pair].sum())
        if grown > n_left:
            break
        angle = 2.0 * math.pi * float(torch.rand((), generator=generator, dtype=torch.float64))
        cosine, sine = math.cos(angle), math.sin(angle)
        turned[pair] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64) @ turned[pair]
        support[pair], n_left = both, n_left - grown
        if second not in n_used:
            used.append(second)
            n_used.add(second)
    return turned.T if rows <= columns else turned


def orthogonal_layer(
    shape: Sequence[int], centre: int, n_kept: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The weights and the mask of a layer [outputs, inputs, taps] of exactly ``n_kept`` weights.

    Args:
        centre: the tap that holds the orthogonal matrix; the other taps' weights are 0.
    """
    outputs, inputs, taps = shape
    at_centre = n_kept if taps == 1 else round(math.sqrt(n_kept / (outputs * inputs * taps)) * outputs * inputs)
    at_centre = min(n_kept, max(at_centre, min(outputs, inputs)))
    weights = torch.zeros(*shape, dtype=torch.float64)
    weights[:, :, centre] = rotated_identity(outputs, inputs, at_centre, generator)
    kept = weights != 0
    order = torch.rand(*shape, generator=generator)
    order[:, :, centre] += 1.0  # weights at 0 come in at the other taps, while these have places
    n_more = n_kept - int(kept.sum())
    kept.view(-1)[order.masked_fill(kept, math.inf).flatten().argsort()[:n_more]] = True
    return weights, kept


def centre_of(shape: Sequence[int]) -> int:
    """The central one of a parameter's taps, counted in the order in which they lie; 0 where there are none.

    >>> from panning.masks.orthogonal import centre_of
    >>> centre_of((8, 4, 3, 3)), centre_of((8, 4))
    (4, 0)
    """
    centre = 0
    for size in shape[2:]:
        centre = centre * size + size // 2
    return centre


def _parts(parameter: Tensor, kind: Kind, module: nn.Module) -> Tensor:
    """Positions of a parameter as [groups, outputs, inputs, taps], each group a layer of its own."""
    taps, n_groups = taps_and_groups(kind, module, parameter.shape)
    units = by_unit(torch.arange(parameter.numel()).view(parameter.shape), kind, module)
    return units.view(n_groups, len(units) // n_groups, units.shape[1] // taps, taps)


def _divided(n_kept: int, n_groups: int, generator: torch.Generator) -> list[int]:
    """``n_kept`` weights in equal numbers for each group, the rest by lot."""
    lot = torch.randperm(n_groups, generator=generator).tolist()
    return [n_kept // n_groups + (place < n_kept % n_groups) for place in lot]
