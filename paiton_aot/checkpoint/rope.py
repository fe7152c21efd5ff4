"""Rotary position embedding as configurations describe it: a base and, where the context was stretched, a scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_artifacts.errors import UnsupportedError

DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 and later: low frequencies are divided by `factor`, high ones kept, a blend between.

    Attributes:
        factor: how much longer the context is than in pre-training.
        low_freq_factor: wavelengths above original_max_position / low_freq_factor are scaled fully.
        high_freq_factor: wavelengths below original_max_position / high_freq_factor are left alone.
        original_max_position: context length of pre-training, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All frequencies are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): dimensions that turn often are kept, those that turn seldom divided, a ramp between.

    Attributes:
        factor: how much longer the context is than in pre-training.
        attention_factor: what cosines and sines are multiplied by; scores get it twice.
        beta_fast: dimensions with more turns than this over the original context are kept.
        beta_slow: dimensions with fewer turns than this are divided by `factor`.
        original_max_position: context length of pre-training, in tokens.
        truncate: the ramp starts and ends at whole dimensions.
    """

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    truncate: bool


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling


def read_rope(fields: Fields, default_theta: float = DEFAULT_ROPE_THETA) -> tuple[float, RopeScaling | None]:
    """Reads `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`.

    Raises:
        UnsupportedError: a kind of scaling that we do not compute.
    """
    _check_whole_heads(fields)
    theta = fields.number("rope_theta", default_theta)
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    if rope is None:
        return theta, None
    return rope.number("rope_theta", theta), read_scaling(rope, fields)


def read_scaling(rope: Fields, config: Fields) -> RopeScaling | None:
    """Reads one object of RoPE parameters, in the configuration `config`."""
    _check_whole_heads(rope)
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.number("factor"))
    if kind not in ("llama3", "yarn"):
        raise UnsupportedError(
            f"{rope.what} has rope_type {shown(kind)}", hint="supported: default, linear, llama3, yarn"
        )
    pretrained = rope.integer("original_max_position_embeddings", config.integer("max_position_embeddings", 2048))
    if kind == "yarn":
        return _yarn(rope, pretrained)
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position=pretrained,
    )


def _check_whole_heads(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{fields.what} rotates a part of each head", hint="supported: partial_rotary_factor 1")


def _yarn(rope: Fields, pretrained: int) -> YarnScaling:
    """Reads YaRN's parameters with transformers' defaults; DeepSeek's mscale pair gives the attention factor too."""
    factor = rope.number("factor")
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        inferred = _magnitude(factor, rope.number("mscale")) / _magnitude(factor, rope.number("mscale_all_dim"))
    else:
        inferred = _magnitude(factor, 1.0)
    return YarnScaling(
        factor=factor,
        attention_factor=rope.number("attention_factor", inferred),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        original_max_position=pretrained,
        truncate=rope.flag("truncate", default=True),
    )


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
