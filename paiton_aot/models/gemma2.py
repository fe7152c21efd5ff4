"""Gemma 2: Gemma with soft caps, windows in every other layer, and norms behind each block too.

Source: transformers' `Gemma2ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.models import gemma
from paiton_aot.models.architecture import Architecture, read_windows
from paiton_aot.models.decoder import Decoder

DEFAULT_WINDOW = 4096


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds windows, soft caps and the scale of the scores."""
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    return replace(
        gemma.common(fields, config),
        windows=read_windows(fields, config, window, lambda layer: layer % 2 == 0),
        score_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        score_softcap=fields.optional_number("attn_logit_softcapping", 50.0),
        logit_softcap=fields.optional_number("final_logit_softcapping", 30.0),
    )


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    model.norm_offset = 1.0
    model.embed(scaled=True)
    for layer in model.layers:
        model.attention(layer, norm="input_layernorm", post_norm="post_attention_layernorm")
        model.mlp(
            layer,
            norm="pre_feedforward_layernorm",
            post_norm="post_feedforward_layernorm",
            activation="gelu_tanh",
        )
    model.head()


GEMMA2 = Architecture("Gemma2ForCausalLM", configure, build)
