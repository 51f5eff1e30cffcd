"""Scoring on timm's networks, with random weights: exact counts, finite scores, nothing touched, SNIP as by plain autograd.

    pytest -m slow tests/test_timm_sweep.py

Families stand here as small as their arguments make them: what is scored wrongly is so at any width.
"""

from __future__ import annotations

from typing import Any

import pytest
import sweeping
import torch
from torch import nn

from panning.foundation.seeding import isolated_torch_rng

#: What makes a vision transformer small.
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1)}
#: Network -> pixels, and what else it is built with. The first ones are in the default set.
FAST: dict[str, tuple[int, dict[str, Any]]] = {
    "test_resnet": (32, {}),
    "test_vit": (32, {"img_size": 32}),
    "convnext_atto": (32, {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}),
    "vit_tiny_patch16_224": (32, VIT),
}
SLOW: dict[str, tuple[int, dict[str, Any]]] = {
    **{name: (32, {}) for name in (
        "test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet", "test_efficientnet_gn",
        "test_efficientnet_ln", "test_efficientnet_evos", "test_nfnet", "test_mambaout", "mobilenetv2_035",
        "mobilenetv3_small_050", "lcnet_035", "tinynet_e", "mnasnet_small", "ghostnet_050", "regnety_002", "dla46_c",
        "starnet_s050", "repghostnet_050",
    )},
    **{name: (32, {"img_size": 32}) for name in ("test_vit2", "test_vit3", "test_vit4")},
    **{name: (32, VIT) for name in (
        "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224", "cait_xxs24_224",
    )},
    **{name: (64, {}) for name in ("edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050")},
    "xcit_nano_12_p16_224": (32, {**VIT, "patch_size": 16}),
    "resnet18": (32, {"channels": (8, 16, 24, 32)}),
    "resnext50_32x4d": (32, {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1), "base_width": 64, "cardinality": 4}),
    "swin_tiny_patch4_window7_224": (32, SWIN),
    "swinv2_tiny_window8_256": (32, SWIN),
    "pvt_v2_b0": (32, {"embed_dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1)}),
    "inception_next_atto": (64, {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}),
    "efficientvit_m0": (64, {"img_size": 64, "embed_dim": (16, 32, 48), "num_heads": (2, 2, 2)}),
    "mambaout_femto": (32, {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
    "davit_tiny": (32, {"embed_dims": (24, 48, 96, 192), "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)}),
    "densenet121": (32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "levit_128s": (64, {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4)}),
    "twins_svt_small": (32, {"img_size": 32, "embed_dims": (16, 32, 48, 64), "depths": (1, 1, 2, 1)}),
    "sequencer2d_s": (
        32, {"layers": (1, 1, 1, 1), "embed_dims": (24, 48, 48, 48), "hidden_sizes": (8, 16, 16, 16)},
    ),
    "crossvit_9_240": (60, {"embed_dim": (32, 64), "depth": ((1, 1, 0), (1, 1, 0), (1, 1, 0))}),
}  # fmt: skip


def network(name: str, pixels: int, arguments: dict[str, Any]) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    timm = pytest.importorskip("timm")
    with isolated_torch_rng(0):
        model = timm.create_model(name, num_classes=4, **arguments)
        return model, (torch.randn(4, 3, pixels, pixels), torch.arange(4))


@pytest.mark.parametrize("name", FAST)
def test_a_small_network_is_scored_right(name: str) -> None:
    sweeping.check(*network(name, *FAST[name]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SLOW)
def test_every_network_is_scored_right(name: str) -> None:
    sweeping.check(*network(name, *SLOW[name]))


@pytest.mark.parametrize("name", FAST)
def test_gradient_checkpointing_changes_no_mask(name: str) -> None:
    masks = []
    for saves_memory in (False, True):
        model, batch = network(name, *FAST[name])
        model.set_grad_checkpointing(saves_memory)
        masks += [sweeping.masks_of(model.train(), batch, method).flat for method in ("snip", "synflow")]
    assert masks[0].equal(masks[2]) and masks[1].equal(masks[3])
