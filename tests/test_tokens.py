"""Tokens and other whole numbers among a network's inputs: what is looked up or computed of them comes from the input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_any_interface import X, small
from torch import Tensor, nn

import panning

IDS = torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Tokens and places, looked up as ``how`` says."""

    def __init__(self, how: str = "embedding") -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.tokens, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
            self.mixing, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.how = how

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = {
            "embedding": lambda: self.tokens(ids),
            "index": lambda: self.tokens.weight[ids],
            "index select": lambda: self.tokens.weight.index_select(0, ids.flatten()).view(*ids.shape, -1),
            "one hot": lambda: F.one_hot(ids, 7).float() @ self.tokens.weight,
            "shifted": lambda: self.tokens(self.shifted(ids)),
            "joined": lambda: self.tokens(torch.cat([ids[:, :1], ids[:, 1:].clamp(max=6)], 1)),
            "masked": lambda: self.tokens(torch.where(ids == 3, 0, ids.int())),
        }[self.how]() + self.places(torch.arange(ids.shape[1]))
        x = x if mask is None else x * mask.unsqueeze(-1)
        return self.head(self.mixing(x).relu().mean(1))

    @staticmethod
    def shifted(ids: Tensor) -> Tensor:
        made = ids.new_zeros(ids.shape)
        made[:, 1:] = ids[:, :-1].clone()
        return made


@pytest.mark.parametrize("how", ["embedding", "index", "one hot", "shifted", "joined", "masked"])
@pytest.mark.parametrize("method", ["synflow", "magnitude"])
def test_tokens_stay_tokens_and_lead_on_like_ones(how: str, method: str) -> None:
    arguments = {"density": 0.4, "method": method, "all_alive": True, "include": ("tokens*", "mixing*", "head*")}
    like_ones = panning.prune(Tokens(), input_shape=(5,), **arguments)
    mask = torch.ones(12, 5, dtype=torch.long)
    for data in ({"ids": IDS}, {"ids": IDS, "mask": mask}):
        assert panning.prune(Tokens(how), data, **arguments) == like_ones
    assert panning.prune(Tokens(how), IDS, forward=lambda model, ids: model(ids), **arguments) == like_ones


def test_places_and_masks_are_constants() -> None:
    """Without its tokens, nothing of the network is alive, though places and a mask are still added and multiplied."""
    model = Tokens()
    layout = panning.prune(model, {"ids": IDS}, density=1.0, method="magnitude", include=("*",)).layout
    flat = torch.ones(layout.n_prunable, dtype=torch.bool)
    views = layout.views(flat)
    views["tokens.weight"][:] = False
    masks = panning.Masks(layout, flat)
    assert masks.effective_density(model, example_inputs={"ids": IDS, "mask": torch.ones_like(IDS)}) == pytest.approx(
        int(views["places.weight"].sum() + views["mixing.weight"].sum() + views["head.weight"].sum())
        / layout.n_prunable
    )  # places that are prunable themselves are alive, as before
    fixed = panning.prune(model, {"ids": IDS}, density=1.0, method="magnitude", include=("mixing*", "tokens*"))
    cut = panning.Masks(fixed.layout, fixed.flat.clone())
    cut.layout.views(cut.flat)["tokens.weight"][:] = False
    assert cut.effective_density(model, example_inputs={"ids": IDS}) == 0.0


class Record(nn.Module):
    """Whole numbers of a table go in as numbers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mixing, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        numbers = {
            "cast": lambda: (counts.float() - 3.0) / 2.0,
            "to": lambda: counts.to(x.dtype),
            "divided": lambda: counts / 10,
            "logarithm": lambda: torch.log1p(counts),
            "joined": lambda: torch.stack([counts[:, 0], counts[:, 1]], 1).float(),
            "type as": lambda: counts.type_as(x),
        }[self.how]()
        return self.head(self.mixing(torch.cat([x, numbers], 1)).relu())


@pytest.mark.parametrize("how", ["cast", "to", "divided", "logarithm", "joined", "type as"])
@pytest.mark.parametrize("method", ["synflow", "magnitude"])
def test_whole_numbers_that_a_network_computes_with_are_inputs(how: str, method: str) -> None:
    arguments = {"density": 0.4, "method": method, "all_alive": True}
    by_hand = panning.prune(
        nn.Sequential(Record(how).mixing, nn.ReLU(), Record(how).head), input_shape=(8,), **arguments
    )
    counts = torch.arange(24).view(12, 2) % 2  # flags, too
    masks = panning.prune(Record(how), {"x": X, "counts": counts}, **arguments)
    assert torch.equal(masks.flat, by_hand.flat)


def test_whole_numbers_under_a_name_of_masks_or_positions_are_constants() -> None:
    """As inputs, they would reach what the tokens do not."""

    class Placed(Tokens):
        def forward(self, ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
            x = (
                self.tokens(ids)
                + self.places(position_ids)
                + (1.0 - attention_mask.to(torch.float32)).unsqueeze(-1) * -9.0
            )
            return self.head(self.mixing(x).relu().mean(1))

    model = Placed()
    layout = panning.prune(
        model, {"ids": IDS, "attention_mask": IDS, "position_ids": IDS % 5}, density=1.0, method="magnitude",
        include=("tokens*", "mixing*", "head*"),
    ).layout  # fmt: skip
    flat = torch.ones(layout.n_prunable, dtype=torch.bool)
    layout.views(flat)["tokens.weight"][:] = False
    masks, places = panning.Masks(layout, flat), IDS % 5
    named = {"ids": IDS, "attention_mask": torch.ones_like(IDS), "position_ids": places}
    assert masks.effective_density(model, example_inputs=named) == 0.0
    assert masks.effective_density(model, example_inputs=(IDS, named["attention_mask"], places)) > 0.5


# --- transformers ---


def networks() -> dict[str, Any]:
    """Small networks of four kinds, each with a batch as it takes it."""
    made = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    words = {**sizes, "vocab_size": 50, "max_position_embeddings": 32}
    ids = torch.randint(2, 50, (6, 10), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), torch.arange(6) % 3
    mask[2:, 7:] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "BERT": (
                made.BertForSequenceClassification(made.BertConfig(**words, num_labels=3)),
                {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2, "labels": labels},
            ),
            "Llama": (
                made.LlamaForCausalLM(made.LlamaConfig(**words, num_key_value_heads=1)),
                {"input_ids": ids, "attention_mask": mask, "labels": ids},
            ),
            "ViT": (
                made.ViTForImageClassification(made.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)),
                {"pixel_values": small(6, 3, 16, 16), "labels": labels},
            ),
            "T5": (
                made.T5ForConditionalGeneration(
                    made.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50,
                                  decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
                ),
                {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :6].contiguous()},
            ),
        }  # fmt: skip


@pytest.mark.parametrize("name", ["BERT", "Llama", "ViT", "T5"])
@pytest.mark.filterwarnings("ignore:.*of .* layers keep no weight")
def test_networks_of_transformers_are_scored_by_their_own_loss_as_they_are(name: str) -> None:
    model, batch = networks()[name]
    masks = panning.prune(model, batch, density=0.3, method="snip")
    parameters = dict(model.named_parameters())
    model.eval()
    weights = [parameters[name] for name in masks]
    grads = torch.autograd.grad(model(**batch).loss, weights)
    scores = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, grads, strict=True)])
    least = scores.topk(masks.n_kept).values[-1]
    assert torch.equal(masks.flat, scores >= least)
    dense = panning.Masks.dense(masks.layout)
    assert dense.effective_density(model, example_inputs={key: value[:1] for key, value in batch.items()}) == 1.0
    without = {key: value for key, value in batch.items() if key != "labels"}
    if name == "T5":
        without["decoder_input_ids"] = batch["labels"]
    alive = panning.prune(model, without, density=0.1, method="synflow", n_rounds=5, all_alive=True)
    assert alive.n_kept == round(0.1 * alive.n_prunable) and alive.manifest["effective_density"] == alive.density
