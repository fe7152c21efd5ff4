"""Phi-3: Llama whose qkv and gate/up projections are fused on disk, with a sliding window over all layers.

Source: transformers' `Phi3ForCausalLM`. The long-context models' "longrope" is not computed.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.checkpoint.rope import YarnScaling
from paiton_aot.models.architecture import Architecture, Fused, expect_activation, same_window
from paiton_aot.models.llama import build
from paiton_artifacts.errors import UnsupportedError


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds the window of every layer.

    Raises:
        UnsupportedError: "yarn", as early releases of this family call longrope.
    """
    expect_activation(fields, "hidden_act", "silu")
    if isinstance(config.rope_scaling, YarnScaling):
        raise UnsupportedError(
            f"{fields.what} has rope_type yarn, which is longrope in Phi-3", hint="use the 4k model of the family"
        )
    if fields.values.get("sliding_window") is None:
        return config
    window = fields.integer("sliding_window")
    return replace(config, windows=same_window(config, window))


def fused(config: ModelConfig) -> Fused:
    """Returns what the stored projections are made of."""
    q_rows, kv_rows = config.attention_heads * config.head_dim, config.kv_heads * config.head_dim
    inter = config.intermediate_size
    return {
        "self_attn.qkv_proj": (
            ("self_attn.q_proj", q_rows),
            ("self_attn.k_proj", kv_rows),
            ("self_attn.v_proj", kv_rows),
        ),
        "mlp.gate_up_proj": (("mlp.gate_proj", inter), ("mlp.up_proj", inter)),
    }


PHI3 = Architecture("Phi3ForCausalLM", configure, build, fused)
