"""Qwen2 and Qwen2.5: Llama with biases of q, k and v, and optionally a window in the upper layers.

Source: transformers' `Qwen2ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.models.architecture import Architecture, expect_activation, read_windows
from paiton_aot.models.decoder import Decoder

DEFAULT_WINDOW = 4096
DEFAULT_WINDOW_LAYERS = 28


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the windows of the upper layers."""
    expect_activation(fields, "hidden_act", "silu")
    return with_windows(fields, config)


def with_windows(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Returns the facts with the windows that Qwen's configurations give to layers from `max_window_layers` on."""
    unset = "sliding_window" in fields.values and fields.values["sliding_window"] is None
    if unset or not fields.flag("use_sliding_window"):
        return config
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    first = fields.count("max_window_layers", DEFAULT_WINDOW_LAYERS)
    return replace(config, windows=read_windows(fields, config, window, lambda layer: layer >= first))


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.embed()
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm", bias=True)
        model.mlp(layer, norm="post_attention_layernorm")
    model.head()


QWEN2 = Architecture("Qwen2ForCausalLM", configure, build)
