"""Sizes of one rank's share of a model, which every target's plans and memory plan follow from."""

from __future__ import annotations

from dataclasses import dataclass

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.weights import padded_vocab
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_kernels.spec import KV_BLOCK_TOKENS

_KV_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one rank's share of a model, and the limits of its plans."""

    tp: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int  # of the model
    vocab_share: int  # rows of this rank, padding included
    layers: int
    kv_cache: str
    max_tokens: int
    max_requests: int
    max_context: int  # tokens
    max_blocks: int  # KV blocks of one request
    eps: float

    @classmethod
    def of(cls, config: ModelConfig, tp: int, kv_cache: str, limits: tuple[int, int, int]) -> Shape:
        """Args: limits = (tokens of the largest bucket, requests, tokens of context)."""
        max_tokens, max_requests, max_model_len = limits
        return cls(
            tp=tp,
            hidden=config.hidden_size,
            q_heads=config.attention_heads // tp,
            kv_heads=max(1, config.kv_heads // tp),
            head_dim=config.head_dim,
            intermediate=config.intermediate_size // tp,
            vocab=config.vocab_size,
            vocab_share=padded_vocab(config.vocab_size, tp) // tp,
            layers=config.layers,
            kv_cache=kv_cache,
            max_tokens=max_tokens,
            max_requests=max_requests,
            max_context=max_model_len,
            max_blocks=-(-max_model_len // KV_BLOCK_TOKENS),
            eps=config.rms_norm_eps,
        )

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes of one layer's K and V in one KV block."""
        return 2 * self.kv_heads * KV_BLOCK_TOKENS * self.head_dim * _KV_BYTES[self.kv_cache]

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one KV block: all layers."""
        return self.layers * self.kv_layer_bytes

    @property
    def partial_bytes(self) -> int:
        """Bytes of one comm slot: a rank's partial sums of the residual stream; none without peers."""
        return align_up(self.max_tokens * self.hidden * 4, TENSOR_ALIGNMENT) if self.tp > 1 else 0

    @property
    def logits_offset(self) -> int:
        """Two slots alternate, so that a rank may fill one while peers still read the other."""
        return 2 * self.partial_bytes

    @property
    def logits_stride(self) -> int:
        """Elements from one row of logits to the next: the padded vocabulary."""
        return self.vocab_share * self.tp

    @property
    def comm_bytes(self) -> int:
        """Bytes of the comm region."""
        return self.logits_offset + self.max_requests * self.logits_stride * 4
