"""Masks: which weights are kept. Immutable, bool, True = kept, keyed by ``state_dict`` names in forward order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from panning.foundation.errors import DensityError, MaskError, UnknownNameError
from panning.foundation.registry import unknown_name_message
from panning.foundation.wrappers import matching, own_names, own_parameters, prefix_of
from panning.masks.layout import Layout
from panning.masks.selection import n_true

#: A network is run on inputs of the shape that a file names: more values than this are an attack, not an image.
MAX_INPUT_VALUES = 2**24

#: A configuration's density: the fraction of weights that is kept.
Density = Annotated[float, Field(gt=0, le=1)]


def check_density(density: float) -> float:
    """``density`` if it lies in (0, 1].

    Raises:
        DensityError: otherwise.
    """
    try:
        if 0.0 < density <= 1.0:
            return float(density)
    except TypeError:  # a text, a list
        pass
    raise DensityError(f"Density is {density!r}, but must be in (0, 1]: the fraction of weights that is kept.")


def n_kept_at(density: float, n_prunable: int) -> int:
    """Number of weights kept at ``density``: round(density * n_prunable), halves up.

    Raises:
        DensityError: if the density is outside (0, 1] or keeps no weight at all.
    """
    n_kept = int(check_density(density) * n_prunable + 0.5)
    if n_kept == 0:
        raise DensityError(
            f"Density {density} keeps none of {n_prunable} weights; a density of {1 / n_prunable:.3g} keeps one."
        )
    return n_kept


def digest_of(flat: Tensor) -> str:
    """A hash of a flat mask; the names and shapes are not part of it."""
    return hashlib.sha256(flat.cpu().numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Masks(Mapping[str, Tensor]):
    """A mapping from ``state_dict`` names to bool tensors of the parameters' shapes.

    Attributes:
        layout: names and shapes.
        flat: bool [n_prunable]; do not write into it, a new mask is a new object.
        manifest: JSON-able facts about where the mask comes from (method, seed, data, ...); saved with it.

    Examples:
        >>> import torch
        >>> import panning
        >>> masks = panning.Masks.from_tensors({"weight": torch.tensor([[1, 0], [1, 1]])})
        >>> masks.n_kept, masks.density, masks.layer_densities()
        (3, 0.75, {'weight': 0.75})
        >>> masks["weight"].tolist()
        [[True, False], [True, True]]
        >>> masks.overlap(panning.Masks.dense(masks.layout))
        0.75
    """

    layout: Layout
    flat: Tensor
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flat.dtype != torch.bool or self.flat.shape != (self.layout.n_prunable,):
            raise MaskError(
                f"A flat mask must be bool of shape ({self.layout.n_prunable},), "
                f"given {self.flat.dtype} of shape {tuple(self.flat.shape)}."
            )

    @classmethod
    def dense(cls, layout: Layout) -> Masks:
        """The mask that keeps everything."""
        return cls(layout, torch.ones(layout.n_prunable, dtype=torch.bool))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], manifest: dict[str, Any] | None = None) -> Masks:
        """Masks from named tensors whose entries are all 0 or 1.

        Raises:
            MaskError: if there is none, or what is given is no mapping of names to such tensors.
        """
        if not isinstance(tensors, Mapping):
            raise MaskError(
                f"Masks are made of a mapping from names to tensors, given a {type(tensors).__name__}: pass a dict like "
                "{'0.weight': tensor of 0 and 1}."
            )
        if not tensors:
            raise MaskError("A mask needs at least one named tensor.")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise MaskError(
                    f"The mask of {name!r} is a {type(tensor).__name__}, but must be a tensor under a name; make one of an "
                    "array or a list by torch.as_tensor."
                )
            if tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
                raise MaskError(f"The mask of '{name}' has entries other than 0 and 1.")
        layout = Layout(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))
        flat = torch.cat([tensor.detach().to("cpu", torch.bool).reshape(-1) for tensor in tensors.values()])
        return cls(layout, flat, manifest or {})

    def __contains__(self, name: object) -> bool:
        return name in self.layout.names

    def __getitem__(self, name: str) -> Tensor:
        index = self._index(name)
        return self.flat[self.layout.slices()[index]].view(self.layout.shapes[index])

    def _index(self, name: str) -> int:
        try:
            return self.layout.names.index(name)
        except ValueError:
            raise UnknownNameError(unknown_name_message("masked parameter", name, self.layout.names)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.layout == other.layout and torch.equal(self.flat, other.flat)

    __hash__ = None  # type: ignore[assignment]  # equality looks at the weights, not at the object

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.n_kept} of {self.n_prunable} weights, density {self.density:.6g})"

    @property
    def n_prunable(self) -> int:
        return self.layout.n_prunable

    @property
    def n_kept(self) -> int:
        return n_true(self.flat)

    @property
    def density(self) -> float:
        """kept / prunable, in [0, 1]."""
        return self.n_kept / self.n_prunable

    @property
    def compression(self) -> float:
        """1 / density; infinite for an empty mask."""
        return self.n_prunable / self.n_kept if self.n_kept else float("inf")

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one input of the network, from the manifest; None if the manifest has no shape.

        Raises:
            MaskError: if what the manifest holds is no shape.
        """
        shape = self.manifest.get("input_shape")
        try:
            return None if shape is None else check_input_shape(shape)
        except ValueError as error:
            raise MaskError(f"The mask's manifest: {error}.") from None

    def counts(self) -> list[int]:
        """Number of kept weights of each parameter."""
        return self.layout.counts(self.flat)

    def layer_densities(self) -> dict[str, float]:
        """Density of each parameter."""
        return {n: k / size for n, k, size in zip(self.layout.names, self.counts(), self.layout.sizes, strict=True)}

    def packed_layers(self) -> Iterator[NDArray[np.uint8]]:
        """The bits of each parameter, as mask files have them (``numpy.packbits``)."""
        return (np.packbits(part.cpu().numpy()) for part in self.flat.split(self.layout.sizes))

    def overlap(self, other: Masks) -> float:
        """Jaccard overlap |A and B| / |A or B|, in [0, 1]."""
        self._check_same_layout(other)
        union = n_true(self.flat | other.flat)
        return n_true(self.flat & other.flat) / union if union else 1.0

    def renamed(self, names: Mapping[str, str]) -> Masks:
        """The same mask with other names for some of its parameters."""
        layout = Layout(tuple(names.get(name, name) for name in self.layout.names), self.layout.shapes)
        return self if layout == self.layout else self._with(layout, self.manifest)

    def effective_density(
        self, model: nn.Module, input_shape: tuple[int, ...] | None = None, *, example_inputs: Any = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> float:  # fmt: skip
        """Alive weights / prunable weights: a kept weight that no path from input to output uses does not count.

        Args:
            model: the network the mask belongs to; only its structure is used.
            input_shape: shape of one input, without the batch; needed if the mask does not carry it.
            example_inputs: in place of the shape, what the network is called with: a tensor, a tuple of positional inputs or
                a mapping of keyword inputs; or what ``forward`` takes.
            forward: as for ``panning.prune``.
        """
        from panning.alive.connectivity import alive_flat  # connectivity is a layer above; only this method needs it

        return int(alive_flat(model, self, input_shape, example_inputs, forward).sum()) / self.n_prunable

    def with_manifest(self, **facts: Any) -> Masks:
        """The same mask with more facts in its manifest."""
        return self._with(self.layout, {**self.manifest, **facts})

    def _with(self, layout: Layout, manifest: dict[str, Any]) -> Masks:
        return Masks(layout, self.flat, manifest)

    def _check_same_layout(self, other: Masks) -> None:
        mine, others = self.layout, other.layout
        if mine != others and without_prefix(self).layout != without_prefix(other).layout:
            raise MaskError(
                "The two masks belong to different networks.\n" + layout_difference(self.layout, other.layout)
            )


def check_input_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one input, as a file names it.

    Raises:
        ValueError: if it is no shape, or asks for more memory than an input takes.
    """
    if not isinstance(shape, list) or not 0 < len(shape) <= 16 or any(type(n) is not int or n < 1 for n in shape):
        raise ValueError(f"its input shape is {ascii(shape)[:80]}, but must be 1 to 16 positive integers")
    if math.prod(shape) > MAX_INPUT_VALUES:
        raise ValueError(f"its input shape {shape} has more than {MAX_INPUT_VALUES} values")
    return tuple(shape)


def layout_difference(mask_layout: Layout, model_layout: Layout, limit: int = 8) -> str:
    """What differs between two layouts, one line each: missing, unexpected, other shape, other order."""
    left, right = (dict(zip(lay.names, lay.shapes, strict=True)) for lay in (mask_layout, model_layout))
    lines = [f"  only in the first: {name} {left[name]}" for name in left if name not in right]
    lines += [f"  only in the second: {name} {right[name]}" for name in right if name not in left]
    lines += [
        f"  {name}: {left[name]} in the first, {right[name]} in the second"
        for name in left
        if name in right and left[name] != right[name]
    ]
    if not lines and mask_layout.names != model_layout.names:
        lines = ["  the same names in another order"]
    return "\n".join(lines[:limit] + ([f"  and {len(lines) - limit} more"] if len(lines) > limit else []))


def check_masks_fit(model: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """The masked parameters of ``model`` by the mask's names.

    Names may have prefixes of wrappers (DistributedDataParallel, FSDP, ``torch.compile``) that the model has not, or the
    model prefixes that the names have not.

    Raises:
        MaskError: if a masked name is absent or has another shape; the message says which.
    """
    if not isinstance(masks, Masks):
        raise MaskError(
            f"masks is a {type(masks).__name__}; make a dict of tensors into masks by panning.Masks.from_tensors, and "
            "read a file by panning.load_masks."
        )
    parameters = own_parameters(model)
    names = matching(masks.layout.names, parameters) or {}
    found = {name: parameters.get(names.get(name, name)) for name in masks.layout.names}
    wrong = [
        f"  {name}: {shape} in the mask, "
        + (f"{tuple(parameter.shape)} in the model" if parameter is not None else "absent in the model")
        for (name, parameter), shape in zip(found.items(), masks.layout.shapes, strict=True)
        if parameter is None or tuple(parameter.shape) != shape
    ]
    if wrong:
        shown = wrong[:8] + ([f"  and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
        if prefix := prefix_of(masks.layout.names):
            shown.append(
                f"The mask's names begin with '{prefix}', the prefix of a wrapper such as DistributedDataParallel or "
                "torch.compile. Without the prefix they do not fit either."
            )
        raise MaskError("\n".join(["The mask belongs to another network:", *shown]))
    return {name: parameter for name, parameter in found.items() if parameter is not None}


def fitted(model: nn.Module, masks: Masks, *, wrapped: bool = False) -> Masks:
    """``masks`` under the names that ``model`` has for its parameters, without prefixes of wrappers.

    Args:
        wrapped: the names as ``model.named_parameters()`` has them, with prefixes.

    Raises:
        MaskError: if the mask belongs to another network.
    """
    check_masks_fit(model, masks)
    masks = masks.renamed(matching(masks.layout.names, own_parameters(model)) or {})
    return masks.renamed({own: name for name, own in own_names(model).items()}) if wrapped else masks


def without_prefix(masks: Masks) -> Masks:
    """``masks`` without the prefix of wrappers with which all their names begin, if there is one."""
    prefix = prefix_of(masks.layout.names)
    return masks.renamed({name: name.removeprefix(prefix) for name in masks.layout.names})


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every masked weight of ``model`` to zero, in place; no ``state_dict`` key changes.

    Raises:
        MaskError: if the mask belongs to another network; the model is then untouched.

    Examples:
        >>> import torch
        >>> import panning
        >>> model = torch.nn.Linear(4, 4)
        >>> masks = panning.prune(model, input_shape=(4,), density=0.25, method="magnitude")
        >>> panning.apply_masks(model, masks)
        >>> int(model.weight.count_nonzero())
        4
    """
    parameters = check_masks_fit(model, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            # Not a product with the mask: NaN and infinite weights would stay, and zeros get the sign of the weight.
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
