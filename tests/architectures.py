"""Tiny random models of every architecture, as transformers makes and saves them. Needs torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.make_checkpoints import write_tokenizer

VOCABULARY = 320
WINDOW = 20
"""Tokens that a token sees in layers with a window: less than the 64 that tests feed, and no multiple of a KV block."""

SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
)


def _rope(kind: str, **parameters: object) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
_PHI3 = {"head_dim": None, "hidden_size": 384, "num_key_value_heads": 4, "sliding_window": WINDOW}
_PHI4 = {
    "head_dim": None,
    "original_max_position_embeddings": 32,
    "rope_parameters": _rope(
        "longrope",
        partial_rotary_factor=0.75,
        short_factor=[1.0 + index / 16 for index in range(12)],
        long_factor=[1.0 + index / 2 for index in range(12)],
    ),
}
_GEMMA = {"tie_word_embeddings": True}
_MIXTRAL = {"head_dim": 64, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": WINDOW}
_QWEN3_MOE = {
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "num_experts": 20,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "norm_topk_prob": False,
}

MODELS: Mapping[str, tuple[type[PretrainedConfig], Mapping[str, Any]]] = MappingProxyType(
    {
        "llama2": (LlamaConfig, {}),
        "llama3.1": (LlamaConfig, {"rope_parameters": _LLAMA3}),
        "llama-linear": (LlamaConfig, {"rope_parameters": _rope("linear", factor=4.0)}),
        "llama-yarn": (LlamaConfig, {"rope_parameters": _YARN}),
        "mistral": (MistralConfig, {"sliding_window": WINDOW}),
        "mixtral": (MixtralConfig, _MIXTRAL),
        "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
        "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
        "qwen3-moe": (Qwen3MoeConfig, _QWEN3_MOE),
        "phi3": (Phi3Config, _PHI3),
        "phi4": (Phi3Config, _PHI4),
        "gemma": (GemmaConfig, _GEMMA),
        "gemma2": (Gemma2Config, _GEMMA | {"sliding_window": WINDOW, "query_pre_attn_scalar": 64}),
        "gemma3": (
            Gemma3TextConfig,
            _GEMMA
            | {
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": 64,
                "rope_parameters": _GEMMA3_ROPE,
            },
        ),
    }
)
"""By name: the class of the configuration, and what differs from `SIZES`."""


def save_random(config: PretrainedConfig, path: Path, seed: int = 0) -> Path:
    """Writes a model of random bf16 weights with a tokenizer; returns `path`.

    Weights are large enough that logits differ by more than bf16 shows; norms and biases are far from what they start
    as, so that one that is left out shows.
    """
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        zero_norms = "gemma" in config.model_type
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(*((-0.5, 0.5) if zero_norms else (0.5, 1.5)))
                elif name.endswith(".bias"):
                    parameter.normal_(0.0, 0.5)
                else:
                    parameter.normal_(0.0, 2.0 / parameter.shape[-1] ** 0.5)
            _separate_experts(model)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(path)
    write_tokenizer(path, config.vocab_size)
    return path


def _separate_experts(model: Any) -> None:
    """Makes every token's experts clear, so that a score that is rounded otherwise chooses none other.

    The first elements of the residual stream, one for each expert, tell tokens apart: blocks write next to nothing to
    them, and each expert's score is mostly one of them.
    """
    routers = [layer.mlp.gate.weight for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    if not routers:
        return
    count = len(routers[0])
    tokens = torch.arange(model.config.vocab_size)[:, None]
    ranks = (torch.arange(count) * 7 + tokens * 3 + tokens // count) % count
    model.model.embed_tokens.weight[:, :count] = ranks * (6.0 / count)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            parameter[..., :count, :] *= 2**-10
        elif name.endswith("post_attention_layernorm.weight"):
            parameter[:count] = 1
    for router in routers:
        router.mul_(0.1)[:, :count] += 4 * torch.eye(count)


def make(name: str, path: Path) -> Path:
    """Writes the tiny model `name` of `MODELS`; returns `path`."""
    kind, changes = MODELS[name]
    facts = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
    return save_random(kind(**facts), path)
