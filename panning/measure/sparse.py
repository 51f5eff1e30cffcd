"""Sparse kernels for inference, where they are measured to be faster: CSR for Linear, which is all that torch offers."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.measure.clock import median_seconds

#: A layer changes only if it is faster by so much: less is within what a machine varies.
MARGIN = 1.1
REPETITIONS = 7


class SparseLinear(nn.Module):
    """A Linear whose weight is stored and multiplied as CSR; for inference."""

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        csr = _as_csr(linear.weight.detach())
        for name in ("crow_indices", "col_indices", "values"):
            self.register_buffer(name, getattr(csr, name)())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        size = (self.out_features, self.in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that CSR is in beta
            weight = torch.sparse_csr_tensor(
                self.crow_indices, self.col_indices, self.values, size, check_invariants=False
            )
        rows = (weight @ x.reshape(-1, self.in_features).t()).t()
        return (rows if self.bias is None else rows + self.bias).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, n_weights={len(self.values)}"


def _as_csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return weight.to_sparse_csr()


@dataclass(frozen=True)
class LayerTiming:
    """One layer's forward pass, dense and sparse, in milliseconds, and which of them was taken."""

    name: str
    density: float
    dense_ms: float
    sparse_ms: float

    @property
    def faster(self) -> bool:
        return self.sparse_ms * MARGIN < self.dense_ms


def sparse_where_faster(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, list[LayerTiming]]:
    """A copy of ``model`` for inference, with ``SparseLinear`` wherever it is measured to be faster, and the measurements.

    What is faster depends on the machine, its threads and the batch: measure where the network will run.

    Args:
        model: a network whose masked weights are zero, compact or not.
        inputs: a batch [batch, ...] as it will come; every layer is timed on what it gets from it.

    Raises:
        ModelError: if the model cannot run on ``inputs``.
    """
    model = copy.deepcopy(model).eval()
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    received = _received(model, layers, inputs)
    timings = []
    for name, given in received.items():
        dense: Any = layers[name]
        sparse = SparseLinear(dense)
        with torch.inference_mode():
            n_kept = int(dense.weight.count_nonzero())
            found, _ = median_seconds(
                {"dense": partial(dense, given), "sparse": partial(sparse, given)}, at_least=REPETITIONS
            )
            timing = LayerTiming(name, n_kept / dense.weight.numel(), 1e3 * found["dense"], 1e3 * found["sparse"])
        timings.append(timing)
        if timing.faster:
            model.set_submodule(name, sparse)
    return model, timings


def _received(model: nn.Module, layers: dict[str, nn.Linear], inputs: Tensor) -> dict[str, Tensor]:
    """What each layer is given, in the order of the calls; layers that are called twice or never are left out."""
    received: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: received.setdefault(name, []).append(args[0]))
        for name, layer in layers.items()
    ]
    try:
        with torch.inference_mode():
            model(inputs)
    except RuntimeError as error:
        raise ModelError(f"The model does not run on inputs of shape {tuple(inputs.shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return {name: given[0] for name, given in received.items() if len(given) == 1}
