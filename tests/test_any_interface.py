"""Any interface: networks of several inputs and outputs, losses inside, batches of any form.

Masks are those of a wrapper that takes one tensor and returns one, under the network's own names.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning.pruners import PRUNERS

GENERATOR = torch.Generator().manual_seed(0)
X, Z, BOXES = (torch.randn(12, n, generator=GENERATOR) for n in (6, 4, 2))
LABELS = torch.arange(12) % 3
BATCH = {"x": X, "z": Z, "kind": LABELS, "box": BOXES}


class Heads(nn.Module):
    """Two inputs, two heads."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)
            self.kind, self.box = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        hidden = torch.cat([self.left(x).relu(), self.right(z).relu()], 1)
        return {"kind": self.kind(hidden), "box": self.box(hidden)}


class Wrapped(nn.Module):
    """What a user had to write by hand: one tensor in, one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, both: Tensor) -> Tensor:
        found = self.model(both[:, :6], both[:, 6:])
        return torch.cat([found["kind"], found["box"]], 1)


def run(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    return model(batch["x"], z=batch["z"])


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["kind"], batch["kind"]) + F.mse_loss(outputs["box"], batch["box"])


def wrapped_loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs[:, :3], targets[0]) + F.mse_loss(outputs[:, 3:], targets[1])


#: Uniform+ wants a convolution; NTK-SAP draws its random inputs tensor by tensor.
@pytest.mark.parametrize("method", sorted({*PRUNERS} - {"uniform_plus", "ntk_sap"}))
@pytest.mark.parametrize("all_alive", [False, True])
def test_every_method_gives_the_mask_of_a_wrapper_by_hand(method: str, all_alive: bool) -> None:
    model, arguments = Heads(), {"density": 0.3, "method": method, "all_alive": all_alive}
    masks = panning.prune(model, BATCH, forward=run, loss=loss, **arguments)
    by_hand = panning.prune(
        Wrapped(model), (torch.cat([X, Z], 1), (LABELS, BOXES)), loss=wrapped_loss, **arguments
    )  # fmt: skip
    assert list(masks) == ["left.weight", "right.weight", "kind.weight", "box.weight"]
    assert torch.equal(masks.flat, by_hand.flat)
    assert masks.manifest["effective_density"] == by_hand.manifest["effective_density"]
    assert [f"model.{name}" for name in masks.manifest["collapsed_layers"]] == by_hand.manifest["collapsed_layers"]
    assert "input_shape" not in masks.manifest
    assert masks.effective_density(model, example_inputs=(X[:1], Z[:1])) == masks.manifest["effective_density"]
