"""Gemma 3, text models: Gemma 2 with norms of q's and k's heads instead of soft caps, and two bases of RoPE.

Layers with a window rotate by a base of their own; every sixth layer sees everything, by the (scaled) global base.
Source: transformers' `Gemma3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields
from paiton_aot.checkpoint.rope import RopeScaling, read_rope, read_scaling
from paiton_aot.models import gemma
from paiton_aot.models.architecture import FULL, LOCAL, Architecture, expect_false, read_windows
from paiton_aot.models.decoder import ROPE, Decoder
from paiton_artifacts.errors import UnsupportedError

DEFAULT_WINDOW = 4096
DEFAULT_PATTERN = 6
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0
LOCAL_ROPE = "rope.local.inv_freq"


def configure(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Adds windows, the bases of RoPE, the scale of the scores, and a soft cap of logits where there is one."""
    expect_false(fields, "use_bidirectional_attention")
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    pattern = fields.integer("sliding_window_pattern", DEFAULT_PATTERN)
    theta, scaling, local_theta = _ropes(fields)
    return replace(
        gemma.common(fields, config),
        windows=read_windows(fields, config, window, lambda layer: (layer + 1) % pattern != 0),
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        score_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping", 0.0),
    )


def _ropes(fields: Fields) -> tuple[float, RopeScaling | None, float]:
    """Returns the global base and scaling, and the local base; transformers 5 nests them by type of layer."""
    nested = fields.section("rope_parameters")
    if nested is None:
        theta, scaling = read_rope(fields, GLOBAL_THETA)
        return theta, scaling, fields.number("rope_local_base_freq", LOCAL_THETA)
    everywhere, local = nested.section(FULL) or Fields({}, nested.what), nested.section(LOCAL)
    if local and read_scaling(local, fields):
        raise UnsupportedError(f"{local.what} scales the RoPE of layers with a window", hint="supported: default")
    local_theta = local.number("rope_theta", LOCAL_THETA) if local else LOCAL_THETA
    return everywhere.number("rope_theta", GLOBAL_THETA), read_scaling(everywhere, fields), local_theta


def build(model: Decoder) -> None:
    """Adds the parts in the order of their execution."""
    config = model.config
    model.norm_offset = 1.0
    model.frequencies(LOCAL_ROPE, config.local_rope_theta or config.rope_theta, None)
    model.embed(scaled=True)
    for layer in model.layers:
        model.attention(
            layer,
            norm="input_layernorm",
            post_norm="post_attention_layernorm",
            head_norms=True,
            inv_freq=LOCAL_ROPE if config.window(layer) else ROPE,
        )
        model.mlp(
            layer,
            norm="pre_feedforward_layernorm",
            post_norm="post_feedforward_layernorm",
            activation="gelu_tanh",
        )
    model.head()


GEMMA3 = Architecture("Gemma3ForCausalLM", configure, build)
