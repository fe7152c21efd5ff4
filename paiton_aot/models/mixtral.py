"""Mixtral: Mistral with a mixture of experts in place of every MLP.

Source: Jiang et al., "Mixtral of Experts", 2024, as transformers' `MixtralForCausalLM` implements it.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.checkpoint.rope import read_rope
from paiton_aot.models.architecture import Architecture, expect_activation, read_experts, same_window
from paiton_aot.models.decoder import Decoder

DEFAULT_EXPERTS = 8
DEFAULT_PER_TOKEN = 2
DEFAULT_THETA = 1_000_000.0


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the experts, which have the width that a dense MLP would have, and a window where there is one."""
    expect_activation(fields, "hidden_act", "silu")
    experts = read_experts(
        fields,
        "num_local_experts",
        (DEFAULT_EXPERTS, DEFAULT_PER_TOKEN),
        intermediate_size=config.intermediate_size,
        normalise=True,
    )
    theta, _ = read_rope(fields, DEFAULT_THETA)
    config = replace(config, experts=experts, rope_theta=theta)
    if fields.values.get("sliding_window") is None:
        return config
    return replace(config, windows=same_window(config, fields.integer("sliding_window")))


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.embed()
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm")
        model.moe(layer, norm="post_attention_layernorm", block="block_sparse_moe", experts=("w1", "w3", "w2"))
    model.head()


MIXTRAL = Architecture("MixtralForCausalLM", configure, build)
