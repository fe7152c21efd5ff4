"""Gemma: Llama with a scaled embedding, GELU, and norms whose weights are stored less 1.

Source: transformers' `GemmaForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import MAX_HEAD_DIM, Fields
from paiton_aot.models.architecture import Architecture, expect_activation, expect_false
from paiton_aot.models.decoder import Decoder


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the defaults of all Gemmas; the first one's releases say "gelu" where they mean its tanh form."""
    expect_activation(fields, "hidden_act", "gelu_pytorch_tanh", "gelu")
    return common(fields, config)


def common(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the defaults that differ from Llama's: the head size is a constant, the embedding serves as head."""
    expect_false(fields, "attention_bias")
    expect_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    head_dim = fields.integer("head_dim", 256, limit=MAX_HEAD_DIM)
    return replace(config, head_dim=head_dim, tied_embeddings=fields.flag("tie_word_embeddings", default=True))


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.norm_offset = 1.0
    model.embed(scaled=True)
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm")
        model.mlp(layer, norm="post_attention_layernorm", activation="gelu_tanh")
    model.head()


GEMMA = Architecture("GemmaForCausalLM", configure, build)
