"""The independent judge of every architecture: transformers in float32, on the weights that a bundle holds.

The model is transformers' own, opened from the checkpoint, so that windows, soft caps, norms, biases and rotary tables
are its business. The weights of linear layers are then replaced by the bundle's, dequantised by the independent reader;
what enters a linear layer, and q, k and v after RoPE, are rounded like the bundle's program rounds them.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from tests.independent_reader import read_bundle
from tests.reference import dequantized, to_bf16, to_e4m3, to_e4m3_per_token

_FUSED = {
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
_MLP = ("gate_up_proj", "down_proj")
_FUSED_ON_DISK = {"qkv_proj": "self_attn.qkv_proj", "gate_up_proj": "mlp.gate_up_proj"}
_AFTER_BF16 = ("o_proj", "down_proj")
"""What attention and the gated activation hand over lies in memory as bf16 before it is quantised."""


def model_reference(checkpoint: Path, path: Path) -> Any:
    """Returns transformers' model of `checkpoint` with the weights and the rounding of the bundle at `path`.

    Args:
        checkpoint: a Hugging Face directory of bf16 weights.
        path: a bundle of it with one rank.
    """
    bundle = read_bundle(path)
    assert bundle.manifest["tp"] == 1
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):  # of the dtype of the weights, which were bf16
        embedding.embed_scale.copy_(embedding.embed_scale.bfloat16())
    mode = bundle.manifest["model"]["activations"]
    for index, layer in enumerate(model.model.layers):
        routed = hasattr(layer.mlp, "experts")
        if routed:
            _set_experts(layer.mlp, bundle, f"layers.{index}.", mode)
        for name, parts in _FUSED.items():
            if routed and name in _MLP:
                continue
            stored = torch.from_numpy(dequantized(bundle, f"layers.{index}.{name}"))
            if name == "qkv_proj":
                stored = _in_stored_order(stored, model)
            modules = dict(layer.named_modules())
            found = [modules[part] for part in parts if part in modules] or [modules[_FUSED_ON_DISK[name]]]
            rows = stored.split([module.weight.shape[0] for module in found])
            for module, weight in zip(found, rows, strict=True):
                module.weight = torch.nn.Parameter(weight, requires_grad=False)
                module.register_forward_pre_hook(_rounding(mode, after_bf16=name in _AFTER_BF16))
    _set_head(model, bundle)
    _round_attention(model, bundle)
    return model


def _in_stored_order(qkv: torch.Tensor, model: Any) -> torch.Tensor:
    """Returns rows of q, k and v as transformers has them, where only the first elements of each head are rotated."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    if share == 1.0:
        return qkv
    heads = config.num_attention_heads + config.num_key_value_heads
    bundled = qkv[: heads * head].reshape(heads, 2, head // 2, -1)  # the two elements of every pair, pair by pair
    rotated, rest = bundled.split([int(head * share) // 2, (head - int(head * share)) // 2], 2)
    rest = rest * _attention_factor(model)
    stored = torch.cat([part.reshape(heads, -1, qkv.shape[1]) for part in (rotated, rest)], 1)
    return torch.cat([stored.reshape(heads * head, -1), qkv[heads * head :]])


def _set_experts(block: Any, bundle: Any, prefix: str, mode: str) -> None:
    """Gives a mixture of experts the bundle's weights and rounding; choosing experts stays transformers' business."""
    experts = block.experts
    for name in _MLP:
        stored = torch.from_numpy(dequantized(bundle, f"{prefix}experts.{name}"))
        weight = stored.reshape(getattr(experts, name).shape)
        setattr(experts, name, torch.nn.Parameter(weight, requires_grad=False))
    router = torch.from_numpy(dequantized(bundle, f"{prefix}router"))
    block.gate.weight = torch.nn.Parameter(router, requires_grad=False)
    block.gate.register_forward_pre_hook(_rounding("bf16", after_bf16=False))
    round_rows, round_activated = (_rounding(mode, after_bf16=after) for after in (False, True))

    def forward(self: Any, rows: Any, chosen: Any, probabilities: Any) -> Any:
        """As transformers' experts, token by token, with the rounding between the projections."""
        (rows,) = round_rows(self, (rows,))
        out = torch.zeros_like(rows)
        for token, (row, indices, weights) in enumerate(zip(rows, chosen, probabilities, strict=True)):
            for expert, weight in zip(indices.tolist(), weights, strict=True):
                gate, up = (self.gate_up_proj[expert] @ row).chunk(2)
                (activated,) = round_activated(self, (self.act_fn(gate) * up,))
                out[token] += weight * (self.down_proj[expert] @ activated)
        return out

    experts.forward = types.MethodType(forward, experts)


def _set_head(model: Any, bundle: Any) -> None:
    facts = bundle.manifest["model"]
    names = {tensor["name"] for tensor in bundle.manifest["tensors"]}
    stored = dequantized(bundle, "lm_head" if "lm_head" in names else "embed_tokens")[: facts["vocab_size"]]
    model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(stored)), requires_grad=False)
    model.lm_head.register_forward_pre_hook(_rounding("bf16", after_bf16=False))


def _attention_factor(model: Any) -> float:
    """Returns what scaled RoPE multiplies q and k by."""
    return float(getattr(model.model.rotary_emb, "attention_scaling", 1.0))


def _rounding(mode: str, *, after_bf16: bool) -> Any:
    def round_input(_module: Any, args: Any) -> Any:
        values = to_bf16(args[0]) if after_bf16 or mode == "bf16" else args[0]
        return (to_e4m3_per_token(values) if mode == "fp8-dynamic" else values,)

    return round_input


def _round_attention(model: Any, bundle: Any) -> None:
    """Rounds q, k and v after RoPE; whatever else attention does is transformers' eager implementation.

    A scaling's factor of q and k is applied to the scores by bundles, so that they round what does not have it yet.
    """
    fp8, factor = bundle.manifest["model"]["kv_cache"] == "fp8", _attention_factor(model)

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        q, k = q / factor, k / factor
        k, v = (to_e4m3(k, 1.0), to_e4m3(v, 1.0)) if fp8 else (to_bf16(k), to_bf16(v))
        return eager_attention_forward(module, to_bf16(q) * factor, k * factor, v, mask, **options)

    AttentionInterface.register("rounded-eager", attention)
    AttentionMaskInterface.register("rounded-eager", eager_mask)
    model.set_attn_implementation("rounded-eager")
