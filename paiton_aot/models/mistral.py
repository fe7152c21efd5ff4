"""Mistral: Llama with a sliding window over all layers, which later releases leave out (`sliding_window: null`).

Source: Jiang et al., "Mistral 7B", 2023, as transformers' `MistralForCausalLM` implements it.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.models.architecture import Architecture, expect_activation, same_window
from paiton_aot.models.llama import build

DEFAULT_WINDOW = 4096


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the window of every layer."""
    expect_activation(fields, "hidden_act", "silu")
    if "sliding_window" in fields.values and fields.values["sliding_window"] is None:
        return config
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    return replace(config, windows=same_window(config, window))


MISTRAL = Architecture("MistralForCausalLM", configure, build)
