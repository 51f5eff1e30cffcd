"""A detector: a backbone with two feature maps, a head for kinds and one for boxes on each of them.

The outputs are a dict of lists; a weight is alive if it leads to any of them. SynFlow sums over all of them and needs no
targets; the batch says only what the network is run on.

    python docs/examples/detection.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

import panning

Outputs = dict[str, list[torch.Tensor]]


class Detector(nn.Module):
    def __init__(self, n_kinds: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.coarser = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.kinds = nn.ModuleList(nn.Conv2d(width, n_kinds, 1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(2))

    def forward(self, pixels: torch.Tensor) -> Outputs:
        fine = self.stem(pixels)
        maps = [fine, self.coarser(fine)]
        return {
            "kinds": [head(x) for head, x in zip(self.kinds, maps, strict=True)],
            "boxes": [head(x) for head, x in zip(self.boxes, maps, strict=True)],
        }


def forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> Outputs:
    return model(batch["pixels"])


def loss(outputs: Outputs, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    kinds = [cross_entropy(found.mean((2, 3)), batch["kind"]) for found in outputs["kinds"]]
    boxes = [smooth_l1_loss(found.mean((2, 3)), batch["box"]) for found in outputs["boxes"]]
    return torch.stack(kinds + boxes).sum()


torch.manual_seed(0)
kind, box = torch.randint(3, (64,)), torch.rand(64, 4)
pixels = torch.eye(3)[kind].view(64, 3, 1, 1) * 2 + box.mean(1).view(64, 1, 1, 1) + 0.1 * torch.randn(64, 3, 16, 16)
batch = {"pixels": pixels, "kind": kind, "box": box}

model = Detector()
masks = panning.prune(model, batch, forward=forward, density=0.3, method="synflow", all_alive=True)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
panning.enforce_masks(model, masks, optimizer)
for step in range(60):
    value = loss(forward(model, batch), batch)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if step % 15 == 14:
        print(f"step {step + 1}: loss {value.item():.3f}, density {masks.density:.3f}")
