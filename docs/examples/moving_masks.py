"""Masks that move in a plain PyTorch loop: a mask found before training, then RigL from it, with a checkpoint in between.

python docs/examples/moving_masks.py
"""

import io

import torch
from sklearn.datasets import load_digits
from torch import nn

import panning

torch.manual_seed(0)
digits = load_digits()
inputs = torch.tensor(digits.images, dtype=torch.float32).div(8).sub(1).flatten(1)
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)
N_EPOCHS, N_STEPS = 6, 22 * 6


def make() -> tuple[nn.Module, torch.optim.Optimizer, panning.MovingMasks]:
    """Network, optimizer and moving masks, as they are before the first step."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    first = panning.prune(model, input_shape=(64,), density=0.05, method="synflow", all_alive=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = panning.make_dynamic("rigl", {"every": 10})
    moving = panning.move_masks(model, optimizer, method, density=0.05, n_steps=N_STEPS, masks=first, all_alive=True)
    return model, optimizer, moving


model, optimizer, moving = make()
saved = b""
for epoch in range(N_EPOCHS):
    if epoch == 3:  # as if the process had been killed here, and the file read by the next one
        state = torch.load(io.BytesIO(saved), weights_only=True)
        model, optimizer, moving = make()
        moving.load_state_dict(state["moving"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for batch in torch.randperm(1400).split(64):
        loss = nn.functional.cross_entropy(model(inputs[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {moving.n_grown} weights have come in, {moving.report()}")
    torch.save({"moving": moving.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()},
               file := io.BytesIO())  # fmt: skip
    saved = file.getvalue()

masks = moving.finish()
accuracy = (model.eval()(inputs[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy {accuracy:.3f} with {masks.n_kept} of {masks.n_prunable} weights, all alive")
