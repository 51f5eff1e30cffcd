"""Measure how small compaction makes networks of other libraries: parameters and multiply-adds under SNIP + all-alive.

Small configs, random weights and data, and no training: how many units go depends on the mask alone. A network whose library
is not installed is left out, and named.

    python docs/measure/compaction_networks.py --density 0.1 --density 0.05
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning.compaction.cost import cost
from panning.flow import Example
from panning.foundation.errors import ModelError
from panning.foundation.machine import environment_info
from panning.foundation.tables import markdown_table, origin

N_CLASSES, SIDE, LENGTH, VOCABULARY = 10, 64, 16, 500
WIDTH = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 384}
COLUMNS = ("network", "class", "density", "parameters", "left", "multiply-adds", "left", "seconds")
#: The network, a batch with labels, and example inputs of the network.
Case = tuple[nn.Module, Any, Any]


def timm_network(name: str, **settings: Any) -> Case:
    import timm

    model = timm.create_model(name, num_classes=N_CLASSES, **settings)
    return model, (images(), torch.arange(8) % N_CLASSES), images()


def transformer(name: str, **settings: Any) -> Case:
    import transformers

    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": VOCABULARY}
    config = getattr(transformers, f"{name.partition('For')[0].removesuffix('LMHeadModel')}Config")
    model = getattr(transformers, name)(config(**(settings or WIDTH), **({} if "ViT" in name else tokens)))
    if "ViT" in name:
        inputs = {"pixel_values": images()}
        return model, {**inputs, "labels": torch.arange(8) % 2}, inputs
    inputs = {"input_ids": torch.randint(3, VOCABULARY, (8, LENGTH))}
    labels = torch.arange(8) % 2 if "Classification" in name else inputs["input_ids"]
    return model, {**inputs, "labels": labels}, inputs


def unet_of_smp() -> Case:
    import segmentation_models_pytorch as smp

    model = smp.Unet("resnet18", encoder_weights=None, classes=N_CLASSES)
    return model, (images(), torch.randint(N_CLASSES, (8, SIDE, SIDE))), images()


class UNet(nn.Module):
    """Two levels with a skip; it upsamples to the size of the skip's map."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def pair(n_in: int, n_out: int) -> nn.Sequential:
            layers = [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers, nn.Conv2d(n_out, n_out, 3, padding=1), nn.ReLU())

        self.down, self.deep, self.up = pair(3, width), pair(width, 2 * width), pair(3 * width, width)
        self.head = nn.Conv2d(width, N_CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = self.down(x)
        deep = F.interpolate(self.deep(F.max_pool2d(skip, 2)), size=skip.shape[-2:], mode="bilinear")
        return {"logits": self.head(self.up(torch.cat([skip, deep], 1)))}


def own_unet() -> Case:
    return UNet(), (images(), torch.randint(N_CLASSES, (8, SIDE, SIDE))), images()


NETWORKS: dict[str, Callable[[], Case]] = {
    "timm resnet10t": lambda: timm_network("resnet10t"),
    "timm ViT, 4 blocks": lambda: timm_network("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=4),
    "timm ConvNeXt atto": lambda: timm_network("convnext_atto"),
    "HF ViT": lambda: transformer("ViTForImageClassification", **WIDTH, image_size=SIDE, patch_size=8),
    "HF BERT": lambda: transformer("BertForSequenceClassification"),
    "HF GPT-2": lambda: transformer("GPT2LMHeadModel", n_embd=96, n_layer=4, n_head=6, n_positions=LENGTH),
    "HF Llama": lambda: transformer("LlamaForCausalLM", **WIDTH, num_key_value_heads=3),
    "smp Unet, resnet18": unet_of_smp,
    "own U-Net": own_unet,
}


def images() -> Tensor:
    return torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def measured(name: str, density: float) -> list[str]:
    """A row of the table."""
    torch.manual_seed(0)
    model, batch, inputs = NETWORKS[name]()
    masks = panning.prune(model, batch, density=density, method="snip", all_alive=True, seed=0)
    began = time.perf_counter()
    small = panning.compact(model, masks, example_inputs=inputs)
    took = time.perf_counter() - began
    print(f"{name}, {density}: {took:.1f} s", file=sys.stderr)
    for note in small.notes:
        print(f"{name}, {density}: {note}", file=sys.stderr)
    before, after = (cost(network, Example(inputs)) for network in (model, small.model))
    shares = [(a.n_parameters, a.multiply_adds, b) for a, b in ((after, before),)][0]
    return [
        name, type(small.model).__name__, f"{density:g}",
        f"{shares[0]:,}", f"{100 * shares[0] / before.n_parameters:.0f} %",
        f"{shares[1]:,}", f"{100 * shares[1] / before.multiply_adds:.0f} %", f"{took:.1f}",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; what stayed, and why, goes to stderr."""
    parser = argparse.ArgumentParser(description="What compaction leaves of networks from other libraries.")
    parser.add_argument("--density", type=float, action="append")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    given = parser.parse_args(arguments)
    rows = []
    for name in given.network or NETWORKS:
        for density in given.density or (0.1, 0.05):
            try:
                rows.append(measured(name, density))
            except (ImportError, ModelError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                break
    print("\n".join([*markdown_table(COLUMNS, rows), "", origin(environment_info())]))


if __name__ == "__main__":
    main()
