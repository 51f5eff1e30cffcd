"""Regression on a table: numbers and a category go in, the loss is the mean squared error.

A pair ((numbers, category), target) needs no ``forward``: a tuple of inputs is handed over one by one. The mask moves while
the network trains.

    python docs/examples/regression.py
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

import panning


class Prices(nn.Module):
    def __init__(self, n_numbers: int = 8, n_categories: int = 5, width: int = 64) -> None:
        super().__init__()
        self.category = nn.Embedding(n_categories, 8)
        self.layers = nn.Sequential(
            nn.Linear(n_numbers + 8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, numbers: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([numbers, self.category(category)], 1)).squeeze(1)


class Table(Dataset):
    """((numbers, category), price)"""

    def __init__(self, n_rows: int = 512) -> None:
        self.numbers, self.category = torch.randn(n_rows, 8), torch.randint(5, (n_rows,))
        self.price = self.numbers[:, :3].sum(1) * 2 + self.category

    def __len__(self) -> int:
        return len(self.price)

    def __getitem__(self, row: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        return (self.numbers[row], self.category[row]), self.price[row]


torch.manual_seed(0)
table, model = Table(), Prices()
print(panning.prune(model, table, loss=mse_loss, density=0.1, method="grasp"), "before training")

optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
method = panning.make_dynamic("gmp", {"every": 10})
moving = panning.move_masks(model, optimizer, method, density=0.1, n_steps=160, data=table, loss=mse_loss)
for epoch in range(10):
    for (numbers, category), price in DataLoader(table, batch_size=32, shuffle=True):
        value = mse_loss(model(numbers, category), price)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    if epoch % 3 == 0:
        print(f"epoch {epoch + 1}: loss {value.item():.3f}")
print(moving.finish())
