"""Scoring on networks of transformers from configs, with random weights, called as they are: the batch is a mapping and the
loss their own. Exact counts, finite scores, nothing touched, SNIP as by plain autograd.

    pytest -m slow tests/test_transformers_sweep.py

RWKV is not here: its own backward pass fails on a CPU (it writes into what it has saved), with or without panning.
"""

from __future__ import annotations

from typing import Any

import pytest
import sweeping
import torch
import torch.nn.functional as F
from torch import Tensor

from panning.foundation.seeding import isolated_torch_rng

t = pytest.importorskip("transformers")

GENERATOR = torch.Generator().manual_seed(0)
IDS, LABELS = torch.randint(3, 40, (4, 7), generator=GENERATOR), torch.arange(4) % 3
PIXELS = torch.randn(4, 3, 16, 16, generator=GENERATOR)
WORDS = {"input_ids": IDS, "labels": IDS}
SENTENCES = {"input_ids": IDS, "labels": LABELS}
IMAGES = {"pixel_values": PIXELS, "labels": LABELS}
SOUNDS = {"input_features": torch.randn(4, 8, 20, generator=GENERATOR), "labels": IDS}
SCENES = {"pixel_values": PIXELS, "labels": torch.randint(0, 3, (4, 16, 16), generator=GENERATOR)}

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT: dict[str, Any] = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1,
                        "eos_token_id": 2}  # fmt: skip
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 1}
VISION: dict[str, Any] = {**SMALL, "image_size": 16, "patch_size": 4}
TOKENS: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def embeddings_loss(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs.image_embeds, batch["labels"])


#: Name -> (network, config, its arguments, batch, what else ``sweeping.check`` is told).
Row = tuple[str, str, dict[str, Any], dict[str, Tensor], dict[str, Any]]
FAST: dict[str, Row] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**TEXT, "num_labels": 3}, SENTENCES, {}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, WORDS, {}),
    "vit": ("ViTForImageClassification", "ViTConfig", {**VISION, "num_labels": 3}, IMAGES, {}),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config", {**TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}, WORDS, {},
    ),
}  # fmt: skip
SLOW: dict[str, Row] = {
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**TEXT, "num_labels": 3}, SENTENCES, {}),
    "bert, masked words": ("BertForMaskedLM", "BertConfig", TEXT, WORDS, {}),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16,
         "num_labels": 3}, SENTENCES, {},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, WORDS, {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, WORDS, {}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 8}, WORDS, {}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, WORDS, {}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, WORDS, {}),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {**TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
         "max_position_embeddings": 16, "word_embed_proj_dim": 16}, WORDS, {},
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
         "decoder_start_token_id": 0, "pad_token_id": 0}, WORDS, {},
    ),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**VISION, "num_labels": 3}, IMAGES, {}),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4,
         "num_labels": 3}, IMAGES, {},
    ),
    "convnext": (
        "ConvNextForImageClassification", "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 2, "num_labels": 3}, IMAGES, {},
    ),
    "clip, images": (
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 8}, IMAGES,
        {"forward": lambda model, batch: model(pixel_values=batch["pixel_values"]), "loss": embeddings_loss},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
         "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
         "num_labels": 3}, SCENES, {},
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**TOKENS, "num_mel_bins": 8, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 10,
         "max_target_positions": 16, "decoder_start_token_id": 1}, SOUNDS, {},
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2}, WORDS, {},
    ),
}  # fmt: skip


def network(row: Row) -> Any:
    model, config, arguments, *_ = row
    with isolated_torch_rng(0):
        return getattr(t, model)(getattr(t, config)(**arguments))


def check(row: Row) -> None:
    *_, batch, told = row
    sweeping.check(network(row), batch, **told)


@pytest.mark.parametrize("name", FAST)
def test_a_small_network_is_scored_right(name: str) -> None:
    check(FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_network_is_scored_right(name: str) -> None:
    check(SLOW[name])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_no_mask(name: str) -> None:
    masks = []
    for saves_memory in (False, True):
        model = network(FAST[name])
        if saves_memory:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        masks += [sweeping.masks_of(model.train(), FAST[name][3], method).flat for method in ("snip", "synflow")]
    assert masks[0].equal(masks[2]) and masks[1].equal(masks[3])
