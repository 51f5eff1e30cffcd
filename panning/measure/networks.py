"""The networks of the speed benchmark: those with a name elsewhere, and decoders of one form in growing sizes.

Decoders are what cost against size is shown on: the same layers, the same number of tokens, a hundred times the weights.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.foundation.errors import UnknownNameError
from panning.foundation.registry import unknown_name_message
from panning.foundation.seeding import isolated_torch_rng, torch_generator
from panning.models import MODELS, build_model, is_of_library, model_names

#: Tokens that a decoder knows, tokens of a sample, features of a head of its attention.
VOCABULARY, CONTEXT, HEAD = 1024, 128, 64
#: Images in a batch, for our own models and for those of libraries, which take larger images; sequences for decoders.
SAMPLES, SAMPLES_LARGE, SAMPLES_OF_TOKENS = 100, 8, 4
LARGE_SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Size:
    """The width and the number of blocks of a decoder: 12 width^2 prunable weights a block, and width x vocabulary."""

    width: int
    blocks: int


DECODERS = {"decoder-1m": Size(128, 5), "decoder-10m": Size(320, 8), "decoder-100m": Size(832, 12)}


class _Block(nn.Module):
    """Causal attention and two linear layers, each behind a norm and beside an identity (GPT-2's form)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.before_attention(x)).split(self.width, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.narrow(F.gelu(self.wide(self.before_mlp(x))))
        return mixed


class Decoder(nn.Module):
    """Tokens int64 [b, CONTEXT] -> logits [b, VOCABULARY, CONTEXT] of each next token, as cross-entropy takes them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, size.width), nn.Embedding(CONTEXT, size.width)
        self.blocks = nn.Sequential(*(_Block(size.width) for _ in range(size.blocks)))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.tokens(tokens) + self.places(places))
        logits: Tensor = self.head(self.norm(x)).transpose(1, 2)
        return logits


def facts_of(name: str) -> tuple[tuple[int, ...], int, int]:
    """The shape of an input, the number of classes, and how many samples a batch has, of a network by its name.

    Raises:
        UnknownNameError, ModelError: for a model that is not known, or takes no images of this size.
    """
    if name in DECODERS:
        return (CONTEXT,), VOCABULARY, SAMPLES_OF_TOKENS
    if name in MODELS:
        return MODELS[name].natural_shape, 10, SAMPLES
    if not is_of_library(name):
        raise UnknownNameError(unknown_name_message("model", name, [*model_names(), *DECODERS]))
    build_model(name, input_shape=LARGE_SHAPE, n_classes=1000, seed=0)  # a wrong name is answered at once
    return LARGE_SHAPE, 1000, SAMPLES_LARGE


def network_of(name: str, input_shape: tuple[int, ...], n_classes: int, seed: int) -> nn.Module:
    """The network at the initial weights of a seed."""
    if name not in DECODERS:
        return build_model(name, input_shape=input_shape, n_classes=n_classes, seed=seed)
    with isolated_torch_rng(seed):
        return Decoder(DECODERS[name])


def random_batch(
    name: str, input_shape: tuple[int, ...], n_classes: int, n_samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """A batch of noise, inputs and labels: images with a class each, or tokens each with a next one."""
    generator = torch_generator(seed, "speed")
    drawn = functools.partial(torch.randint, n_classes, generator=generator)
    if name in DECODERS:
        return drawn((n_samples, *input_shape)), drawn((n_samples, *input_shape))
    return torch.randn(n_samples, *input_shape, generator=generator), drawn((n_samples,))
