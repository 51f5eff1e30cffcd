"""A causal language model: tokens in, logits for every place, a loss that shifts the tokens by one.

``forward`` says how the network is run on a batch, ``loss`` what its outputs are compared with. Masks carry the network's
own names. A network of Hugging Face that computes its loss itself needs neither (see hugging_face.py).

    python docs/examples/language_model.py
"""

import torch
from torch import nn

import panning

VOCABULARY, LENGTH = 24, 16


class GPT(nn.Module):
    """Embeddings of tokens and places, causal transformer layers, a head on every place."""

    def __init__(self, width: int = 48, n_layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        layers = (nn.TransformerEncoderLayer(width, 4, 96, 0.0, batch_first=True) for _ in range(n_layers))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=hidden)
        return self.head(x)


def forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["ids"][:, :-1])


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["ids"][:, 1:].flatten())


torch.manual_seed(0)
start = torch.randint(VOCABULARY, (80, 32, 1))
batches = [{"ids": (first + 5 * torch.arange(LENGTH + 1)) % VOCABULARY} for first in start]  # count in fives

model = GPT()
masks = panning.prune(model, batches[0], forward=forward, loss=loss, density=0.3, method="snip", all_alive=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
panning.enforce_masks(model, masks, optimizer)
for step, batch in enumerate(batches):
    value = loss(forward(model, batch), batch)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {value.item():.3f}, density {masks.density:.3f}")
