"""What config.json says of each architecture, as several releases of transformers write it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paiton_aot.checkpoint.base import Experts, ModelConfig
from paiton_aot.checkpoint.rope import LinearScaling
from paiton_aot.checkpoint.transformers_config import parse_config
from paiton_aot.models import ARCHITECTURES
from paiton_aot.models.frequencies import inverse_frequencies, score_factor
from paiton_artifacts.errors import CheckpointFormatError, UnsupportedArchitectureError, UnsupportedError

FACTS: Mapping[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8192,
}


def parsed(architecture: str, **changes: object) -> ModelConfig:
    return parse_config({**FACTS, "architectures": [f"{architecture}ForCausalLM"], **changes}, {}, "config.json")


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("Mistral", {"sliding_window": 100}, (100, 100, 100, 100)),
        ("Mistral", {"sliding_window": None}, ()),
        ("Mistral", {}, (4096,) * 4),
        ("Mistral", {"sliding_window": 8192}, (0, 0, 0, 0)),  # no context is longer
        ("Mixtral", {"sliding_window": 100}, (100, 100, 100, 100)),
        ("Mixtral", {}, ()),
        ("Qwen3Moe", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3}, (100,) * 4),
        ("Qwen3Moe", {"sliding_window": 100}, ()),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": False}, ()),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0, 100)),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0}, (100,) * 4),
        (
            "Qwen3",
            {
                "sliding_window": 100,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (0, 100, 0, 100),
        ),
        ("Phi3", {"sliding_window": 2047}, (2047,) * 4),
        ("Phi3", {}, ()),
        ("Gemma2", {}, (4096, 0, 4096, 0)),
        ("Gemma3", {"sliding_window": 512, "sliding_window_pattern": 2}, (512, 0, 512, 0)),
    ],
)
def test_windows(architecture: str, changes: dict[str, object], windows: tuple[int, ...]) -> None:
    assert parsed(architecture, **changes).windows == windows


@pytest.mark.parametrize(
    ("architecture", "changes", "experts"),
    [
        ("Mixtral", {}, Experts(8, 2, 128, normalise=True)),
        ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3}, Experts(4, 3, 128, normalise=True)),
        ("Qwen3Moe", {}, Experts(128, 8, 768, normalise=False)),
        (
            "Qwen3Moe",
            {"num_experts": 64, "norm_topk_prob": True, "moe_intermediate_size": 96, "mlp_only_layers": [2, 0]},
            Experts(64, 8, 96, normalise=True, dense_layers=(0, 2)),
        ),
        ("Qwen3Moe", {"decoder_sparse_step": 2}, Experts(128, 8, 768, normalise=False, dense_layers=(0, 2))),
        ("Qwen3Moe", {"mlp_only_layers": [0, 1, 2, 3]}, None),
    ],
)
def test_experts(architecture: str, changes: dict[str, object], experts: Experts | None) -> None:
    assert parsed(architecture, **changes).experts == experts


def test_gemma_3_of_transformers_4() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    config = parsed("Gemma3", rope_theta=2e6, rope_local_base_freq=5000, rope_scaling=scaling, head_dim=32)
    assert (config.rope_theta, config.local_rope_theta, config.rope_scaling) == (2e6, 5000.0, LinearScaling(8.0))
    assert (config.score_scale, config.score_softcap, config.logit_softcap) == (256**-0.5, 0.0, 0.0)


def test_defaults_that_gemma_2_leaves_out() -> None:
    config = parsed("Gemma2", query_pre_attn_scalar=144)
    assert (config.head_dim, config.tied_embeddings, config.score_scale) == (256, True, 144**-0.5)
    assert (config.score_softcap, config.logit_softcap) == (50.0, 30.0)
    assert parsed("Gemma2", final_logit_softcapping=None).logit_softcap == 0.0


def test_an_unknown_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"config.json names architecture OPTForCausalLM") as caught:
        parsed("OPT")
    assert all(name in (caught.value.hint or "") for name in ARCHITECTURES)


LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5] * 6, "long_factor": [1.0, 3.25] * 6}


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "message"),
    [
        ("Llama", {"attention_bias": True}, UnsupportedArchitectureError, "attention_bias true"),
        ("Qwen3", {"attention_bias": True}, UnsupportedArchitectureError, "attention_bias true"),
        ("Qwen2", {"hidden_act": "gelu"}, UnsupportedArchitectureError, "hidden_act 'gelu'"),
        ("Gemma2", {"hidden_activation": "relu"}, UnsupportedArchitectureError, "hidden_activation 'relu'"),
        ("Gemma3", {"use_bidirectional_attention": True}, UnsupportedArchitectureError, "use_bidirectional_attention"),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError, "rope_type 'dynamic'"),
        ("Phi3", {"rope_scaling": {"type": "longrope"}}, CheckpointFormatError, "no field short_factor"),
        ("Phi3", {"rope_scaling": LONG | {"long_factor": [1, -1]}}, CheckpointFormatError, r"long_factor \[1, -1\]"),
        (
            "Phi3",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            UnsupportedError,
            "without the factors of longrope",
        ),
        ("Phi3", {"partial_rotary_factor": 0.1}, CheckpointFormatError, "which is 3 elements of heads of 32"),
        ("Phi3", {"partial_rotary_factor": 1.5}, CheckpointFormatError, "which is 48 elements of heads of 32"),
        ("Llama", {"partial_rotary_factor": 0.5}, UnsupportedError, "rotates a part of each head"),
        ("Gemma", {"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedError, "rotates a part"),
        ("Qwen2", {"rope_scaling": {"type": "yarn", "factor": -2.0}}, CheckpointFormatError, "factor -2.0"),
        ("Mistral", {"sliding_window": 0}, CheckpointFormatError, "sliding_window 0"),
        ("Gemma2", {"layer_types": ["full_attention"]}, CheckpointFormatError, "layer_types"),
        ("Gemma2", {"layer_types": ["chunked_attention"] * 4}, CheckpointFormatError, "layer_types"),
        ("Gemma2", {"final_logit_softcapping": -30.0}, CheckpointFormatError, "final_logit_softcapping -30.0"),
        ("Qwen2", {"use_sliding_window": True, "max_window_layers": -1}, CheckpointFormatError, "max_window_layers -1"),
    ],
)
def test_variants_that_are_refused(
    architecture: str, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parsed(architecture, **changes)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 8.0},
        LLAMA3 | {"original_max_position_embeddings": 1024},
        YARN | {"original_max_position_embeddings": 2048},
        YARN | {"original_max_position_embeddings": 64, "truncate": False},
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "original_max_position_embeddings": 512},
        YARN | {"attention_factor": 0.9, "original_max_position_embeddings": 512},
        YARN | {"mscale": 1.0, "mscale_all_dim": 0.8, "original_max_position_embeddings": 512},
    ],
)
def test_scaled_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    parameters = rope | {"rope_theta": 50_000.0}
    config = parsed("Llama", rope_parameters=parameters, head_dim=64)
    theirs: PretrainedConfig = LlamaConfig(head_dim=64, max_position_embeddings=8192, rope_parameters=dict(parameters))
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"))
    ours = inverse_frequencies(64, config.rope_theta, config.rope_scaling)
    assert np.allclose(ours, expected.numpy(), rtol=1e-6, atol=0)
    assert score_factor(config.rope_scaling) == pytest.approx(factor**2, rel=1e-12)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("context", [1024, 1025])
def test_longrope_chooses_by_the_context(kind: str, context: int) -> None:
    """Under each of the names that Phi-3 has given it; transformers is told the length of a sequence instead."""
    stated: dict[str, Any] = {"original_max_position_embeddings": 1024, "partial_rotary_factor": 0.75}
    config = parsed("Phi3", rope_scaling=LONG | {"rope_type": kind}, **stated)
    theirs = Phi3Config(**FACTS, rope_scaling=dict(LONG), **stated)  # type: ignore[arg-type, call-arg]
    expected, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, torch.device("cpu"), seq_len=context)
    ours = inverse_frequencies(32, 10_000.0, config.rope_scaling, rotary_dim=config.rotary_dim, context=context)
    assert config.rotary_dim == 24
    assert np.allclose(ours[:12], expected.numpy(), rtol=1e-6, atol=0)
    assert ours[12:] == [0.0] * 4
    assert score_factor(config.rope_scaling) == pytest.approx(factor**2, rel=1e-12)
    assert factor == pytest.approx((1 + np.log(8) / np.log(1024)) ** 0.5)


def test_longrope_has_a_factor_for_every_frequency() -> None:
    config = parsed("Phi3", rope_scaling=LONG)  # of 24 elements, where all 32 are rotated
    with pytest.raises(CheckpointFormatError, match="12 numbers as short_factor, for 16 frequencies"):
        inverse_frequencies(32, 10_000.0, config.rope_scaling, context=100)
