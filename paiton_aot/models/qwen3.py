"""Qwen3: Llama with an RMSNorm over every head of q and k before RoPE; no biases.

Source: transformers' `Qwen3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import MAX_HEAD_DIM, Fields
from paiton_aot.models.architecture import Architecture, expect_activation, expect_false
from paiton_aot.models.decoder import Decoder
from paiton_aot.models.qwen2 import with_windows

DEFAULT_HEAD_DIM = 128


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the head size, whose default is a constant, and the windows of the upper layers."""
    expect_activation(fields, "hidden_act", "silu")
    expect_false(fields, "attention_bias")
    head_dim = fields.integer("head_dim", DEFAULT_HEAD_DIM, limit=MAX_HEAD_DIM)
    return with_windows(fields, replace(config, head_dim=head_dim))


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.embed()
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm", head_norms=True)
        model.mlp(layer, norm="post_attention_layernorm")
    model.head()


QWEN3 = Architecture("Qwen3ForCausalLM", configure, build)
