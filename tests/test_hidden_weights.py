"""Weights that hide: under vmap, in products by element, in buffers, behind operators and functions put in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import panning
from panning import PanningWarning
from panning.foundation.errors import ModelError


class Own(nn.Module):
    """A layer of one's own between two of torch's."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.product = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False), product
        self.matrix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.product(F.relu(self.first(x)), self.matrix)))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("method", ["magnitude", "snip", "synflow", "grasp"])
@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: torch.func.vmap(lambda row: w @ row)(x),
        lambda x, w: torch.func.vmap(lambda unit: x @ unit, out_dims=1)(w),
        lambda x, w: torch.ops.aten.linear(x, w),
        lambda x, w: torch.ops.aten.mm(x, w.t()),
    ],
    ids=["vmap over rows", "vmap over units", "aten.linear", "aten.mm"],
)
def test_a_weight_under_vmap_or_in_an_operator_is_a_weight(product: Any, method: str) -> None:
    masks = panning.prune(Own(product), batch(), density=0.3, method=method, all_alive=True)
    plain = panning.prune(Own(F.linear), batch(), density=0.3, method=method, all_alive=True)
    assert "matrix" in masks and masks == plain


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (lambda x, w: (x[:, None] * w).sum(-1), "each activation is multiplied with many entries of it"),
        (lambda x, w: (x[:, None].expand(-1, 6, -1) * w).sum(-1), "each activation is multiplied with many entries"),
        (lambda x, w: torch.stack([torch.stack([torch.dot(r, u) for u in w]) for r in x]), "does not know how dot"),
    ],
    ids=["spread", "expanded", "dot"],
)
def test_what_no_rule_masks_is_named(product: Any, reason: str) -> None:
    with pytest.warns(PanningWarning, match=f"'matrix' .*{reason}"):
        masks = panning.prune(Own(product), batch(), density=0.3, method="magnitude")
    assert list(masks.manifest["left_dense"]) == ["matrix"]


@pytest.mark.parametrize("product", [lambda x, w: x * w[:1], lambda x, w: x * w[0], lambda x, w: x + w[:1]])
def test_scales_and_shifts_are_no_weights(product: Any) -> None:
    with warnings.catch_warnings(action="error"):
        assert "matrix" not in panning.prune(Own(product), batch(), density=0.3, method="magnitude")


def test_quantised_weights_in_buffers_are_named() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(-127, 128, (6, 6)).to(torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.get_buffer("codes").to(x.dtype) * 0.01)

    with pytest.warns(PanningWarning, match=r"36 weights that cannot be masked: '0\.codes' \(its weight is packed"):
        panning.prune(nn.Sequential(Quantised(), nn.Linear(6, 3)), batch(), density=0.3, method="snip")


def test_spectral_norm_takes_no_step_while_masks_are_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(PanningWarning, match="SpectralNorm computes 'weight'"):
        panning.prune(model, batch(), density=0.3, method="snip")
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class Blocks(nn.Module):
    def __init__(self, put: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        own = self.middle
        if put == "compiled":
            self.middle = torch.compile(own, backend="eager")
        elif put == "closure":
            self.way = lambda x: own(x)
        elif put == "method":
            self.middle = own

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(self, "way", self.middle)(x))


@pytest.mark.parametrize(("put", "key"), [("compiled", "middle"), ("closure", "way")])
def test_compaction_refuses_functions_that_hold_the_old_weights(put: str, key: str) -> None:
    masks = panning.prune(Blocks(""), batch(), density=0.3, method="snip")
    with pytest.raises(ModelError, match=f"The {key} of the model is a function put in its place"):
        panning.compact(Blocks(put), masks, input_shape=(6,))


def test_compaction_takes_bound_methods() -> None:
    masks = panning.prune(Blocks(""), batch(), density=0.3, method="snip")
    model = Blocks("method")
    small = panning.compact(model, masks, input_shape=(6,)).model
    panning.apply_masks(model, masks)
    assert torch.allclose(small(batch()[0]), model(batch()[0]), atol=1e-6)


@pytest.mark.parametrize("given", [3, F.relu])
def test_what_is_no_module_is_refused(given: Any) -> None:
    masks = panning.prune(nn.Linear(6, 3), batch(), density=0.3, method="snip")
    for call in (
        lambda: panning.prune(given, batch(), density=0.3, method="snip"),
        lambda: panning.apply_masks(given, masks),
        lambda: panning.compact(given, masks),
        lambda: masks.effective_density(given),
    ):
        with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module, given"):
            call()


def test_nothing_prunable_says_that_the_forward_failed() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 16:
                raise ValueError("sixteen rows, please")
            return x @ self.matrix

    with pytest.raises(ModelError, match="(?s)no prunable weight.*it failed:.*sixteen rows"):
        panning.prune(Fails(), batch(), density=0.3, method="snip")


class Casting(nn.Module):
    """A float64 layer before one of float32, each of which casts its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6, dtype=torch.float64), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.to(self.first.weight.dtype))).to(self.last.weight.dtype))


def test_float64_beside_float32_is_scored_as_by_plain_autograd() -> None:
    model, (inputs, labels) = Casting(), batch()
    masks = panning.prune(model, (inputs, labels), density=0.3, method="snip")
    F.cross_entropy(model(inputs), labels).backward()
    scores = [
        (p * p.grad).abs().double() for name, p in model.named_parameters() if name in masks and p.grad is not None
    ]
    best = torch.cat([score.flatten() for score in scores]).topk(masks.n_kept).indices
    assert set(best.tolist()) == set(masks.flat.nonzero().flatten().tolist())
