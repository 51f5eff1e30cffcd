"""A model in the manner of Hugging Face: a configuration object, a forward with keywords, a dict as output.

``panning`` scores networks that take one tensor and return one: a wrapper of three lines says which. Masks are keyed by the
names in the ``state_dict`` of what was scored, so the wrapper's prefix is taken off again.

    python docs/examples/hugging_face_style.py
"""

import torch
from torch import nn

import panning


class Classifier(nn.Module):
    """Embedding, two transformer layers, a head on the first token."""

    def __init__(self, vocabulary: int = 50, width: int = 32, n_classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.classifier(self.encoder(self.embedding(input_ids))[:, 0])
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {"logits": logits, **loss}


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids.long())["logits"]  # panning asks what is connected with ones in float32


def train_sparse(model: nn.Module, batches: list[dict[str, torch.Tensor]], density: float) -> None:
    """Prune ``model`` with SNIP on the first batch, then train it."""
    first = batches[0]
    masks = panning.prune(Logits(model), (first["input_ids"], first["labels"]), density=density, method="snip")
    masks = panning.Masks.from_tensors({name.removeprefix("model."): mask for name, mask in masks.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    panning.enforce_masks(model, masks, optimizer)
    for step, batch in enumerate(batches):
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, density {masks.density:.3f}")


torch.manual_seed(0)
tokens = torch.randint(50, (60, 64, 12))
train_sparse(Classifier(), [{"input_ids": t, "labels": (t[:, 0] > 24).long()} for t in tokens], density=0.2)
