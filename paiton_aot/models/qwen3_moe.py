"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP, in all layers or in some.

Source: transformers' `Qwen3MoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.models.architecture import Architecture, expect_activation, expect_false, read_experts, same_window
from paiton_aot.models.decoder import Decoder
from paiton_aot.models.qwen2 import DEFAULT_WINDOW

DEFAULT_EXPERTS = 128
DEFAULT_PER_TOKEN = 8
DEFAULT_INTERMEDIATE = 768


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the experts, the layers that have none, and a window, which all layers share."""
    expect_activation(fields, "hidden_act", "silu")
    expect_false(fields, "attention_bias")
    every = fields.integer("decoder_sparse_step", 1)
    dense = {layer for layer in range(config.layers) if (layer + 1) % every}
    dense.update(fields.layers("mlp_only_layers", config.layers))
    if len(dense) < config.layers:
        experts = read_experts(
            fields,
            "num_local_experts" if "num_local_experts" in fields.values else "num_experts",
            (DEFAULT_EXPERTS, DEFAULT_PER_TOKEN),
            intermediate_size=fields.integer("moe_intermediate_size", DEFAULT_INTERMEDIATE),
            normalise=fields.flag("norm_topk_prob"),
        )
        config = replace(config, experts=replace(experts, dense_layers=tuple(sorted(dense))))
    unset = "sliding_window" in fields.values and fields.values["sliding_window"] is None
    if unset or not fields.flag("use_sliding_window"):
        return config
    return replace(config, windows=same_window(config, fields.integer("sliding_window", DEFAULT_WINDOW)))


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    experts = model.config.experts
    model.embed()
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm", head_norms=True)
        if experts is None or layer in experts.dense_layers:
            model.mlp(layer, norm="post_attention_layernorm")
        else:
            names = ("gate_proj", "up_proj", "down_proj")
            model.moe(layer, norm="post_attention_layernorm", block="mlp", experts=names)
    model.head()


QWEN3_MOE = Architecture("Qwen3MoeForCausalLM", configure, build)
