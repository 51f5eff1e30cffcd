"""A callback in the manner of Lightning: the trainer calls it, the mask holds. Lightning itself is not needed.

With Lightning, derive ``Sparse`` from its ``Callback``: the hooks have the same names and arguments.

    python docs/examples/lightning_style.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import panning


class Sparse:
    """Prunes before the first step, and enforces the mask on every optimizer of the trainer."""

    def __init__(self, density: float, method: str = "snip") -> None:
        self.density, self.method = density, method

    def on_fit_start(self, trainer: "Trainer", module: nn.Module) -> None:
        masks = panning.prune(module, trainer.loader, density=self.density, method=self.method, all_alive=True)
        self.enforcement = panning.enforce_masks(module, masks, trainer.optimizers)
        print(f"{masks.n_kept} of {masks.n_prunable} weights kept")

    def on_fit_end(self, trainer: "Trainer", module: nn.Module) -> None:
        self.enforcement.remove()


class Trainer:
    """As much of a trainer as this example needs."""

    def __init__(self, callbacks: list[Sparse], epochs: int) -> None:
        self.callbacks, self.epochs = callbacks, epochs

    def fit(self, module: nn.Module, loader: torch.utils.data.DataLoader) -> None:
        self.loader, self.optimizers = loader, [torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=0.01)]
        for callback in self.callbacks:
            callback.on_fit_start(self, module)
        for epoch in range(self.epochs):
            for inputs, labels in loader:
                loss = nn.functional.cross_entropy(module(inputs), labels)
                self.optimizers[0].zero_grad()
                loss.backward()
                self.optimizers[0].step()
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
        for callback in self.callbacks:
            callback.on_fit_end(self, module)


torch.manual_seed(0)
digits = load_digits()
inputs = torch.tensor(digits.data, dtype=torch.float32).div(16)
data = torch.utils.data.TensorDataset(inputs, torch.tensor(digits.target))
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
Trainer([Sparse(density=0.05)], epochs=5).fit(model, torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))
