"""Masks inside a model: the form of ``torch.nn.utils.prune``, a parametrization, and either made permanent.

    as_prune(model, masks)            weight = weight_orig * weight_mask, for code that expects it
    as_parametrization(model, masks)  weight is computed from parametrizations.weight.original wherever it is read
    bake(model)                       a plain weight again, with zeros at masked places

Both forms rename ``state_dict`` keys; ``panning.enforce_masks`` does not and is what training code should use. The masked
Parameter stays the same object, so that optimizers made before keep working. A tensor that several modules share is
masked in each of them and stays shared.

NOTE: torch.nn.utils.prune computes the weight before ``forward`` and leaves it behind. A model that ran with gradients can
then not be deep-copied (pytorch #37322), and code that reads a weight without calling its module gets an old one. The
parametrization has neither trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from panning.foundation.errors import MaskError
from panning.foundation.torch_private import drop_forward_pre_hooks, forward_pre_hooks, pruned_by
from panning.foundation.wrappers import own_names
from panning.masks.masks import Masks, check_masks_fit


def as_prune(model: nn.Module, masks: Masks) -> None:
    """Turn every masked parameter into ``NAME_orig`` and ``NAME_mask`` of ``torch.nn.utils.prune``, in place.

    Raises:
        MaskError: if the mask belongs to another network, or its weights are pruned already; the model is then untouched.
    """
    _on_every_module(model, masks, prune.custom_from_mask)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and _pruned_names(module.out_proj):
            module.register_forward_pre_hook(_compute_output_projection)


def from_prune(model: nn.Module) -> Masks:
    """The masks of a model in the form of ``torch.nn.utils.prune``, under the parameters' original names without wrappers'.

    Raises:
        MaskError: if nothing is pruned, if a mask has other entries than 0 and 1, or if a shared tensor has two masks.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    own = own_names(model)
    for prefix, module in model.named_modules():
        for name in _pruned_names(module):
            registered = f"{prefix}.{name}_orig" if prefix else f"{name}_orig"
            full, mask = own[registered].removesuffix("_orig"), module.get_buffer(f"{name}_mask")
            first, known = found.setdefault(id(module.get_parameter(f"{name}_orig")), (full, mask))
            if not torch.equal(known, mask):
                raise MaskError(
                    f"'{first}' and '{full}' are one tensor with two masks; prune both with the same mask, or untie them."
                )
    if not found:
        raise MaskError(
            "The model has no parameter in the form of torch.nn.utils.prune (NAME_orig with NAME_mask); prune it first, "
            "or pass the masks themselves to Masks.from_tensors."
        )
    return Masks.from_tensors(dict(found.values()))


def as_parametrization(model: nn.Module, masks: Masks) -> None:
    """Compute every masked parameter as ``torch.where(mask, original, 0)``, in place; masked gradients are zero.

    The mask is a buffer that moves with the model; ``copy.deepcopy`` and ``torch.compile`` keep it. No ``state_dict`` has
    it: save it with ``panning.save_masks``. A parametrized model cannot be pickled whole; torch allows its state alone.

    Raises:
        MaskError: if the mask belongs to another network, or its weights are computed already; the model is then untouched.
    """

    def register(module: nn.Module, name: str, mask: Tensor) -> None:
        parametrize.register_parametrization(module, name, WeightMask(mask))

    _on_every_module(model, masks, register)


class WeightMask(nn.Module):
    """The parametrization: a weight with zeros where the mask is False.

    Attributes:
        mask: bool, True = kept.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone(), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        # Not a product: NaN would stay, in the weight and in its gradient.
        return torch.where(self.mask, weight, 0.0)


def bake(model: nn.Module) -> None:
    """Make ``as_prune``, ``as_parametrization`` and torch's own pruning permanent: plain parameters with zeros.

    Raises:
        MaskError: if the model has neither form, or another parametrization on top; the model is then untouched.
    """
    pruned = [(module, name) for module in model.modules() for name in _pruned_names(module)]
    masked = [(module, name, mask) for module in model.modules() for name, mask in _masked_names(module)]
    if not pruned and not masked:
        raise MaskError("The model has no mask to bake; call as_prune or as_parametrization first.")
    with torch.no_grad():
        for module, name in pruned:
            # Before torch's product, which leaves NaN as it is and signs the zeros.
            module.get_parameter(f"{name}_orig").masked_fill_(module.get_buffer(f"{name}_mask") == 0, 0.0)
            prune.remove(module, name)
        for module, name, mask in masked:
            original = module.parametrizations[name].original  # type: ignore[union-attr,index]
            original.masked_fill_(~mask, 0.0)
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    for module in model.modules():
        drop_forward_pre_hooks(module, lambda hook: hook is _compute_output_projection)


def _on_every_module(model: nn.Module, masks: Masks, act: Callable[[nn.Module, str, Tensor], Any]) -> None:
    """``act(module, name, mask)`` wherever a masked parameter is registered, in forward order."""
    names = {parameter: name for name, parameter in check_masks_fit(model, masks).items()}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter in names:
                act(module, name, masks[names[parameter]].to(parameter.device))


def _pruned_names(module: nn.Module) -> list[str]:
    """The names of what ``torch.nn.utils.prune`` computes in a module."""
    hooks = forward_pre_hooks(module)
    computed = {pruned_by(hook) for hook in hooks if isinstance(hook, prune.BasePruningMethod)}
    # In the order of the buffers: hooks of a parameter that is pruned again go to the end.
    names = (key.removesuffix("_mask") for key, _ in module.named_buffers(recurse=False, remove_duplicate=False))
    return [name for name in names if name in computed]


def _masked_names(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if not parametrize.is_parametrized(module):
        return
    for name, steps in module.parametrizations.items():  # type: ignore[union-attr,operator]
        masks = [step.mask for step in steps if isinstance(step, WeightMask)]
        if masks and len(steps) > 1:
            raise MaskError(
                f"'{name}' of a {type(module).__name__} has another parametrization beside the mask; remove that one first "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
        yield from ((name, mask) for mask in masks)


def _compute_output_projection(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Attention reads ``out_proj.weight`` without calling ``out_proj``, whose own hook never runs (pytorch #78109)."""
    projection = attention.get_submodule("out_proj")
    for hook in forward_pre_hooks(projection):
        if isinstance(hook, prune.BasePruningMethod):
            hook(projection, inputs)
