"""Segmentation: a U-Net, one class a pixel, batches as a DataLoader of dicts gives them.

python docs/examples/segmentation.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import panning


def block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, n_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.down, self.middle = block(1, width), block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.joined, self.head = block(2 * width, width), nn.Conv2d(width, n_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.down(image)
        coarse = self.middle(nn.functional.max_pool2d(fine, 2))
        return self.head(self.joined(torch.cat([fine, self.up(coarse)], 1)))


def forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["image"])


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(logits, batch["classes"])


torch.manual_seed(0)
images = torch.randn(160, 1, 16, 16)
brightness = nn.functional.avg_pool2d(images, 3, stride=1, padding=1).squeeze(1)
classes = (brightness > -0.15).long() + (brightness > 0.15).long()  # of each pixel with its neighbours
samples = [{"image": image, "classes": wanted} for image, wanted in zip(images, classes, strict=True)]
loader = DataLoader(samples, batch_size=16, shuffle=True)

model = UNet()
masks = panning.prune(model, loader, forward=forward, loss=loss, density=0.2, method="grasp", all_alive=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
panning.enforce_masks(model, masks, optimizer)
for epoch in range(5):
    for batch in loader:
        value = loss(forward(model, batch), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {value.item():.3f}, density {masks.density:.3f}")
print(f"every kept weight is alive: {masks.effective_density(model, input_shape=(1, 16, 16)) == masks.density}")
