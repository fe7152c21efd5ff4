"""Llama 2 and 3: RMSNorm, rotary grouped-query attention, SwiGLU; projections without bias.

Source: the architecture as published with Llama 2/3 and implemented by transformers' `LlamaForCausalLM`.
"""

from __future__ import annotations

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.models.architecture import Architecture, expect_activation, expect_false
from paiton_aot.models.decoder import Decoder


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Refuses variants with biases or another activation."""
    expect_false(fields, "attention_bias", "mlp_bias")
    expect_activation(fields, "hidden_act", "silu")
    return config


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.embed()
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm")
        model.mlp(layer, norm="post_attention_layernorm")
    model.head()


LLAMA = Architecture("LlamaForCausalLM", configure, build)
