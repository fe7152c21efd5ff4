"""Rotary position embedding as configurations describe it: a base, a share of each head, a scaling of the context."""

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


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): each frequency is divided by a factor of its own, of one of two lists.

    Attributes:
        short_factors: for contexts of up to `original_max_position`; one for each pair of dimensions that is rotated.
        long_factors: for longer ones, likewise.
        attention_factor: what cosines and sines are multiplied by, whichever the list; scores get it twice.
        original_max_position: context length of pre-training, in tokens.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float
    original_max_position: int

    def factors(self, context: int) -> tuple[float, ...]:
        """Returns the list for a context of so many tokens."""
        return self.long_factors if context > self.original_max_position else self.short_factors


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling | LongRopeScaling


def attention_factor(scaling: RopeScaling | None) -> float:
    """Returns what a scaling multiplies cosines and sines by."""
    return scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0


def read_rope(fields: Fields, default_theta: float = DEFAULT_ROPE_THETA) -> tuple[float, RopeScaling | None]:
    """Reads `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`.

    Raises:
        UnsupportedError: a kind of scaling that we do not compute.
    """
    theta = fields.number("rope_theta", default_theta)
    rope = _section(fields)
    if rope is None:
        return theta, None
    return rope.number("rope_theta", theta), read_scaling(rope, fields)


def read_scaling(rope: Fields, config: Fields) -> RopeScaling | None:
    """Reads one object of RoPE parameters, in the configuration `config`."""
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.number("factor"))
    # Phi-3's first releases call it "su", and "yarn" with lists of factors.
    if kind in ("longrope", "su") or (kind == "yarn" and "long_factor" in rope.values):
        return _longrope(rope, config)
    if kind not in ("llama3", "yarn"):
        raise UnsupportedError(
            f"{rope.what} has rope_type {shown(kind)}", hint="supported: default, linear, llama3, yarn, longrope"
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


def read_rotary_dim(fields: Fields, head_dim: int) -> int:
    """Returns how many of the first elements of each head are rotated (`partial_rotary_factor`); 0 means all.

    Raises:
        CheckpointFormatError: it is no even number, or more than there are.
    """
    share = _rotated_share(fields)
    rotary_dim = int(head_dim * share + 1e-6)  # as transformers, less what rounding takes away
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise fields.error(f"partial_rotary_factor {share:g}, which is {rotary_dim} elements of heads of {head_dim}")
    return rotary_dim if rotary_dim < head_dim else 0


def expect_whole_heads(fields: Fields) -> None:
    """Checks that RoPE rotates every element of a head.

    Raises:
        UnsupportedError: it rotates a part.
    """
    if _rotated_share(fields) != 1.0:
        raise UnsupportedError(
            f"{fields.what} rotates a part of each head", hint="of this architecture supported: partial_rotary_factor 1"
        )


def _section(fields: Fields) -> Fields | None:
    return fields.section("rope_parameters") or fields.section("rope_scaling")


def _rotated_share(fields: Fields) -> float:
    """Returns the partial_rotary_factor, from wherever it stands: transformers 5 has it among the RoPE parameters."""
    outer = fields.number("partial_rotary_factor", 1.0)
    rope = _section(fields)
    if rope is None:
        return outer
    nested = [
        section for name, value in rope.values.items() if isinstance(value, dict) and (section := rope.section(name))
    ]
    return min(section.number("partial_rotary_factor", outer) for section in (rope, *nested))


def _longrope(rope: Fields, config: Fields) -> LongRopeScaling:
    """Reads LongRoPE's parameters with transformers' defaults; Phi-3 has the original context beside the section."""
    longest = config.integer("max_position_embeddings", 2048)
    original = config.integer(
        "original_max_position_embeddings", rope.integer("original_max_position_embeddings", longest)
    )
    stretch = rope.number("factor", longest / original)
    inferred = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return LongRopeScaling(
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
        attention_factor=rope.number("attention_factor", inferred),
        original_max_position=original,
    )


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
