"""The prunable parameters of a network that is being trained, as flat tensors [n_prunable]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from panning.foundation.errors import MaskError
from panning.foundation.torch_private import copy_each
from panning.masks.enforce import clear_gradient
from panning.masks.masks import Masks, check_masks_fit
from panning.scoring.problem import Problem


class FlatParameters:
    """Reads and writes them in place."""

    def __init__(self, problem: Problem) -> None:
        self.layout = problem.layout
        self.parameters: list[Tensor] = list(check_masks_fit(problem.model, Masks.dense(problem.layout)).values())

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def read(self) -> Tensor:
        """A copy."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def write(self, flat: Tensor) -> None:
        with torch.no_grad():
            copy_each(self.parameters, list(self.layout.views(flat).values()))

    def gradients(self) -> Tensor:
        """A copy; of a parameter without a gradient zeros."""
        grads = (p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters)
        return torch.cat([dense_tensor(grad).reshape(-1) for grad in grads])

    def clear_gradients(self, mask: Tensor) -> None:
        """Zero the gradients of masked weights."""
        for parameter, kept in zip(self.parameters, self.layout.views(mask).values(), strict=True):
            clear_gradient(parameter, kept)

    def momentum(self, optimizer: Optimizer) -> Tensor:
        """The running mean of gradients, as the optimizer steps along it."""
        return torch.cat([_momentum(optimizer, parameter).reshape(-1) for parameter in self.parameters])


def check_momentum(optimizer: Optimizer) -> None:
    """Raise MaskError if the optimizer keeps no running mean of gradients."""
    if not all(group.get("momentum", 0) > 0 or "betas" in group for group in optimizer.param_groups):
        raise MaskError(
            f"This method grows where the optimizer's momentum is largest, and {type(optimizer).__name__} keeps none: use "
            "SGD with momentum or Adam."
        )


def _momentum(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    state = optimizer.state.get(parameter, {})
    if (mean := state.get("momentum_buffer", state.get("exp_avg"))) is None:
        return torch.zeros_like(parameter)  # it has had no gradient yet
    mean = dense_tensor(mean.detach())
    if "exp_avg_sq" in state:  # of Adam and its kin
        mean = mean / (dense_tensor(state["exp_avg_sq"]).sqrt() + 1e-8)
    elif "exp_inf" in state:  # of Adamax
        mean = mean / (state["exp_inf"] + 1e-8)
    return mean


def dense_tensor(tensor: Tensor) -> Tensor:
    """An embedding's gradient may be sparse, and its momentum then."""
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
