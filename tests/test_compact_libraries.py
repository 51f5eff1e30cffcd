"""Networks of timm and transformers from small configs: what goes, unit by unit, and what trains on as it did."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from test_compact import all_but, close, masked, sizes
from test_compact_any import trains_the_same
from torch import nn

from panning import Masks
from panning.compaction import compact
from panning.compaction.inputs import outputs_in

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 20,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


def transformer(name: str, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A network of transformers in float64, and its inputs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **CONFIG, **more}
    config = getattr(transformers, f"{name.partition('For')[0].removesuffix('LMHeadModel')}Config")(**settings)
    model = getattr(transformers, name)(config).double()
    if "ViT" in name:
        return model, {"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64)}
    return model, {"input_ids": torch.randint(0, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


#: network -> prefix of a block, names of the layers in it (two of an MLP, output of attention), those that lose heads.
BLOCKS: dict[str, tuple[str, tuple[str, ...], tuple[str, str], str]] = {
    "BertForSequenceClassification": (
        "bert.encoder.layer.0.", ("intermediate.dense",), ("output.dense", "attention.output.dense"), "attention.self.value"
    ),
    "ViTForImageClassification": ("vit.layers.0.", ("mlp.fc1",), ("mlp.fc2", "attention.o_proj"), "attention.v_proj"),
    "LlamaForCausalLM": (
        "model.layers.0.", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj", "self_attn.o_proj"), "self_attn.v_proj"
    ),
    "Qwen2ForCausalLM": (
        "model.layers.0.", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj", "self_attn.o_proj"), "self_attn.v_proj"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_transformers_lose_hidden_units_and_heads(name: str) -> None:
    prefix, ups, (down, out), value = BLOCKS[name]
    more = {"image_size": 8, "patch_size": 4} if "ViT" in name else {}
    more |= {"num_key_value_heads": 2} if "CausalLM" in name else {}
    model, inputs = transformer(name, **more)
    masks = all_but(
        model,
        **{
            f"{prefix}{down}.weight".replace(".", "__"): [(slice(None), slice(4, 24))],  # 20 of 24 hidden units
            f"{prefix}{out}.weight".replace(".", "__"): [(slice(None), slice(0, 8))],  # heads 0 and 1: one of keys
        },
    )
    result = compact(model, masks, example_inputs=inputs)
    reference = masked(model, masks)
    for a, b in zip(*(outputs_in(net.eval()(**inputs)) for net in (reference, result.model)), strict=True):
        close(a, b)
    assert type(result.model) is type(model)
    shapes = sizes(result)
    assert [shapes[f"{prefix}{up}.weight"] for up in ups] == [(4, 16)] * len(ups)
    assert shapes[f"{prefix}{down}.weight"] == (16, 4) and shapes[f"{prefix}{out}.weight"] == (16, 8)
    assert shapes[f"{prefix}{value}.weight"] == ((4 if "CausalLM" in name else 8), 16)


def test_a_transformer_trains_on_as_it_did() -> None:
    model, inputs = transformer("BertForSequenceClassification")
    masks = all_but(model, bert__encoder__layer__0__output__dense__weight=[(slice(None), slice(4, 24))])
    assert "bert.encoder.layer.0.intermediate.dense.weight" in sizes(trains_the_same(model, masks, inputs))


def test_timms_transformer_counts_the_heads_that_are_left() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=4, num_classes=3
    ).double()
    masks = all_but(
        model,
        blocks__0__attn__proj__weight=[(slice(None), slice(4, 12))],
        blocks__0__mlp__fc2__weight=[(slice(None), slice(0, 60))],
    )
    result = trains_the_same(model, masks, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    shapes = sizes(result)
    assert (shapes["blocks.0.attn.qkv.weight"], shapes["blocks.0.attn.proj.weight"]) == ((24, 16), (16, 8))
    assert (shapes["blocks.0.mlp.fc1.weight"], shapes["blocks.0.mlp.fc2.weight"]) == ((4, 16), (16, 4))
    assert (result.model.blocks[0].attn.num_heads, model.blocks[0].attn.num_heads) == (2, 4)


def test_an_exported_transformer_agrees(tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime")
    timm = pytest.importorskip("timm")
    from panning.export.onnx import save_onnx

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=4, num_classes=3
    )
    masks = all_but(model, blocks__0__attn__proj__weight=[(slice(None), slice(4, 12)), (slice(0, 8),)])
    small = compact(model, masks, (3, 8, 8))
    assert "shift" in {name.rpartition(".")[2] for name in sizes(small)}
    assert save_onnx(small.model, tmp_path / "small.onnx", small.input_shape) < 1e-5


def test_gpt2_loses_hidden_units_and_computes_only_the_units_that_have_weights() -> None:
    """``Conv1D``, whose weight is [inputs, outputs]."""
    gpt2 = {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_inner": 24, "n_positions": 8}
    model, inputs = transformer("GPT2LMHeadModel", **gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    keep = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in model.named_parameters()
        if ".h." in name and p.dim() > 1
    }
    keep["transformer.h.0.attn.c_attn.weight"][:, :32] = False  # queries and keys are their biases
    keep["transformer.h.0.attn.c_attn.weight"][:3] = False
    keep["transformer.h.0.attn.c_proj.weight"][:, :4] = False  # 12 of the stream's 16 units, or three quarters
    keep["transformer.h.0.mlp.c_proj.weight"][4:] = False  # 20 of 24 hidden units have no output
    result = trains_the_same(model, Masks.from_tensors(keep), inputs)
    shapes = {name.removeprefix("transformer.h.0."): shape for name, shape in sizes(result).items()}
    assert shapes["mlp.c_fc.weight"] == (16, 4) and shapes["mlp.c_proj.weight"] == (4, 16)
    assert (shapes["attn.c_attn.weight"], shapes["attn.c_attn.bias"], shapes["attn.c_attn.shift"]) == (
        (13, 16),
        (16,),
        (32,),
    )
    assert (shapes["attn.c_proj.weight"], shapes["attn.c_proj.shift"]) == ((16, 12), (4,))
    assert type(result.model) is type(model) and "reads=13, writes=16" in repr(
        result.model.transformer.h[0].attn.c_attn
    )
    again = pickle.loads(pickle.dumps(result.model))
    for a, b in zip(*(outputs_in(net(**inputs)) for net in (result.model, again)), strict=True):
        assert torch.equal(a, b)
    assert sizes(compact(result.model, result.masks, example_inputs=inputs)) == sizes(result)


def test_torchvisions_stochastic_depth_lets_units_that_are_zero_through() -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), ops.StochasticDepth(0.3, "row"), nn.Linear(3, 2)).double()
    result = compact(model, all_but(model, **{"0__weight": [(1,)]}), (4,))
    assert result.notes == () and sizes(result)["0.weight"] == (2, 4) and sizes(result)["2.weight"] == (2, 2)
