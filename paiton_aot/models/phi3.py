"""Phi-3 and Phi-4: Llama whose qkv and gate/up projections are fused on disk.

Some have a sliding window over all layers, some LongRoPE, and some rotate only a part of each head. Source:
transformers' `Phi3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.checkpoint.rope import YarnScaling, read_rotary_dim
from paiton_aot.models.architecture import Architecture, Fused, expect_activation, same_window
from paiton_aot.models.llama import build
from paiton_artifacts.errors import UnsupportedError


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds what of each head is rotated, and the window of every layer.

    Raises:
        UnsupportedError: "yarn" that is not longrope, as early releases of this family call it.
    """
    expect_activation(fields, "hidden_act", "silu")
    if isinstance(config.rope_scaling, YarnScaling):
        raise UnsupportedError(
            f"{fields.what} has rope_type yarn without the factors of longrope, which it is in Phi-3",
            hint="supported: default, longrope",
        )
    config = replace(config, rotary_dim=read_rotary_dim(fields, config.head_dim))
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
