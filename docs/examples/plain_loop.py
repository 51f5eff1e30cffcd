"""A plain PyTorch loop: prune before training, train a smaller network that learns the same, get the weights back.

python docs/examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import panning

torch.manual_seed(0)
digits = load_digits()
inputs = torch.tensor(digits.images, dtype=torch.float32).div(8).sub(1).unsqueeze(1)
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(64 * 4, 10),
)  # fmt: skip

masks = panning.prune(model, (inputs[:128], labels[:128]), density=0.05, method="synflow", all_alive=True)
small = panning.compact(model, masks)
print(f"{masks.n_kept} of {masks.n_prunable} weights kept;", end=" ")
print(*(f"{sum(p.numel() for p in m.parameters())} parameters" for m in (model, small.model)), sep=" became ")

optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
panning.enforce_masks(small.model, small.masks, optimizer)  # what is left of the mask stays zero
for epoch in range(5):
    for batch in torch.randperm(1400).split(64):
        loss = nn.functional.cross_entropy(small.model(inputs[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

trained = small.expand().eval()  # the original architecture, with zeros where the mask has them
accuracy = (trained(inputs[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy {accuracy:.3f}")
