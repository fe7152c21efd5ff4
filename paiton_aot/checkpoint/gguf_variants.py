"""What metadata of a GGUF file says of one architecture only, in the words of config.json, which models read.

Sources: what llama.cpp's converter writes for these architectures, and what its loader takes where a file says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.rope import read_scaling

SLIDING, FULL = "sliding_attention", "full_attention"
Words = dict[str, object]


@dataclass(frozen=True, slots=True)
class Found:
    """What a file says.

    Attributes:
        fields: its metadata.
        config: the facts that all architectures have.
        rotary_dim: elements of each head that are rotated.
        short_factors: longrope's, empty where the file has none.
        long_factors: likewise.
    """

    fields: Fields
    config: ModelConfig
    rotary_dim: int
    short_factors: Sequence[float] = ()
    long_factors: Sequence[float] = ()


def _gemma(found: Found) -> Words:
    return {"head_dim": found.config.head_dim, "tie_word_embeddings": found.config.tied_embeddings}


def _gemma2(found: Found) -> Words:
    softcaps = {
        name: found.fields.number(f"gemma2.{name}", default)
        for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0))
    }
    return {**_gemma(found), **softcaps, **_windows(found, "gemma2", 4096, 2), **_scale(found, largest=46)}


def _gemma3(found: Found) -> Words:
    fields = found.fields
    words = {**_gemma(found), **_windows(found, "gemma3", None, 6), **_scale(found, largest=62)}
    words["rope_theta"] = found.config.rope_theta
    words["rope_local_base_freq"] = fields.number("gemma3.rope.freq_base_swa", 10_000.0)
    if fields.values.get("gemma3.rope.scaling.type", "none") == "linear":
        words["rope_scaling"] = {"rope_type": "linear", "factor": fields.number("gemma3.rope.scaling.factor")}
    if "gemma3.final_logit_softcapping" in fields.values:
        words["final_logit_softcapping"] = fields.number("gemma3.final_logit_softcapping")
    return words


def _windows(found: Found, kind: str, default: int | None, default_period: int) -> Words:
    """Returns the window, and which layers have it: all but every n-th, or as a list says."""
    fields, layers = found.fields, found.config.layers
    pattern = fields.values.get(f"{kind}.attention.sliding_window_pattern", default_period)
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        local = [(layer + 1) % pattern != 0 for layer in range(layers)]
    elif isinstance(pattern, list) and len(pattern) == layers and all(isinstance(item, bool) for item in pattern):
        local = pattern
    else:
        raise fields.error(
            f"{kind}.attention.sliding_window_pattern {shown(pattern)}, expected a number or {layers} flags"
        )
    return {
        "sliding_window": fields.integer(f"{kind}.attention.sliding_window", default),
        "layer_types": [SLIDING if flag else FULL for flag in local],
    }


def _scale(found: Found, largest: int) -> Words:
    """Returns what scores are divided by the root of: no key says it, and the largest release differs from the rest."""
    config = found.config
    special = config.layers == largest
    return {"query_pre_attn_scalar": config.hidden_size // config.attention_heads if special else config.head_dim}


def _phi3(found: Found) -> Words:
    fields = found.fields
    words: Words = {"partial_rotary_factor": found.rotary_dim / found.config.head_dim}
    words["sliding_window"] = fields.count("phi3.attention.sliding_window", 0) or None
    if found.long_factors or found.short_factors:
        words["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": list(found.short_factors),
            "long_factor": list(found.long_factors),
            "attention_factor": fields.number("phi3.rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": fields.integer("phi3.rope.scaling.original_context_length"),
        }
    return words


WORDS: Mapping[str, Callable[[Found], Words]] = {"gemma": _gemma, "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3}
"""By llama.cpp's name of the architecture."""


def with_variant(kind: str, found: Found) -> ModelConfig:
    """Returns a model's facts with what is particular to its architecture.

    Args:
        kind: llama.cpp's name of the architecture.
        found: what the file says.

    Raises:
        CheckpointFormatError: a field is missing or of the wrong type.
    """
    if kind not in WORDS:
        return found.config
    from paiton_aot.models import ARCHITECTURES  # noqa: PLC0415  (they are made of checkpoints)

    config = found.config
    fields = Fields({**WORDS[kind](found), "max_position_embeddings": config.max_position}, found.fields.what)
    scaling = fields.section("rope_scaling")
    if scaling is not None:
        config = replace(config, rope_scaling=read_scaling(scaling, fields))
    return ARCHITECTURES[config.architecture].configure(fields, config)
