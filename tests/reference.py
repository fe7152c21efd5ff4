"""The independent judge of numerics: transformers in float32, on the weights that a bundle holds.

Weights are dequantised from the bundle's bytes by the independent reader. What enters a linear layer, and q, k, v after
RoPE, are rounded like the bundle's program rounds them (bf16 or e4m3, by its modes); all arithmetic is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.independent_reader import read_bundle

Floats = NDArray[np.float32]
Rounding = Callable[[torch.Tensor], torch.Tensor]

_DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "int8": np.dtype(np.int8),
}


def dequantized(bundle: Any, name: str, rank: int = 0) -> Floats:
    """Returns a tensor of a bundle as float32, its scales applied."""
    dtype, shape, raw = bundle.tensor(rank, name)
    values = np.frombuffer(raw, _DTYPES[dtype]).reshape(shape).astype(np.float32)
    entry = next(tensor for tensor in bundle.manifest["tensors"] if tensor["name"] == name)
    if not entry["scale"]:
        return values
    scales = dequantized(bundle, entry["scale"], rank)
    if entry["scale_kind"] == "row":
        return values * scales[:, None]
    assert entry["scale_kind"] == "block"
    rows, cols = (np.arange(size) // block for size, block in zip(shape, entry["scale_block"], strict=True))
    grid: Floats = scales[rows[:, None], cols]
    return values * grid


def load_reference(path: Path, *, rounded: bool = True) -> LlamaForCausalLM:
    """Returns transformers' model with the weights of a tp 1 bundle.

    Args:
        path: the bundle.
        rounded: round activations and KV where the bundle's program does.
    """
    bundle = read_bundle(path)
    facts = bundle.manifest["model"]
    assert bundle.manifest["tp"] == 1
    config = LlamaConfig(
        vocab_size=facts["vocab_size"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["attention_heads"],
        num_key_value_heads=facts["kv_heads"],
        head_dim=facts["head_dim"],
        max_position_embeddings=facts["max_model_len"],
        rms_norm_eps=facts["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["rope"]["theta"]},  # inv_freq is set below
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.load_state_dict(_state(bundle, facts), strict=True)
    rotary = model.model.rotary_emb
    rotary.inv_freq = torch.from_numpy(dequantized(bundle, "rope.inv_freq").copy())
    rotary.attention_scaling = 1.0
    if rounded:
        _round_attention(model, bundle)
        _round_linear_inputs(model, bundle)
    model.float().eval()
    return model


def _state(bundle: Any, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    state: dict[str, Floats] = {"model.embed_tokens.weight": dequantized(bundle, "embed_tokens")[: facts["vocab_size"]]}
    names = {tensor["name"] for tensor in bundle.manifest["tensors"]}
    head = "lm_head" if "lm_head" in names else "embed_tokens"
    state["lm_head.weight"] = dequantized(bundle, head)[: facts["vocab_size"]]
    state["model.norm.weight"] = dequantized(bundle, "norm")
    kv_rows = facts["kv_heads"] * facts["head_dim"]
    for layer in range(facts["layers"]):
        source, target = f"layers.{layer}.", f"model.layers.{layer}."
        state[target + "input_layernorm.weight"] = dequantized(bundle, source + "input_norm")
        state[target + "post_attention_layernorm.weight"] = dequantized(bundle, source + "mlp_norm")
        qkv = dequantized(bundle, source + "qkv_proj")
        q, k, v = np.split(qkv, [len(qkv) - 2 * kv_rows, len(qkv) - kv_rows])
        state |= {f"{target}self_attn.{n}_proj.weight": w for n, w in zip("qkv", (q, k, v), strict=True)}
        state[target + "self_attn.o_proj.weight"] = dequantized(bundle, source + "o_proj")
        gate, up = np.split(dequantized(bundle, source + "gate_up_proj"), 2)
        state[target + "mlp.gate_proj.weight"], state[target + "mlp.up_proj.weight"] = gate, up
        state[target + "mlp.down_proj.weight"] = dequantized(bundle, source + "down_proj")
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def to_bf16(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds to bf16."""
    return tensor.bfloat16().float()


def to_e4m3(tensor: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Rounds to multiples of `scale` that e4m3 holds; what lies beyond its range saturates."""
    return (tensor / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def to_e4m3_per_token(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds each row by a scale of its own."""
    peak = tensor.abs().amax(dim=-1, keepdim=True)
    return to_e4m3(tensor, torch.where(peak > 0, peak / 448, torch.ones_like(peak)))


def _per_block(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds each token's elements 128 by 128, as layers with scales of blocks take them."""
    return torch.cat([to_e4m3_per_token(block) for block in tensor.split(128, dim=-1)], dim=-1)


def _round_attention(model: LlamaForCausalLM, bundle: Any) -> None:
    """Rounds q, k and v after RoPE; the function finds its layer's scales by the module that calls it."""
    scales = {}
    if bundle.manifest["model"]["kv_cache"] == "fp8":
        for layer in range(bundle.manifest["model"]["layers"]):
            scales[layer] = [float(dequantized(bundle, f"layers.{layer}.{which}_scale")[0]) for which in "kv"]

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        if scales:
            k_scale, v_scale = scales[module.layer_idx]
            k, v = to_e4m3(k, k_scale), to_e4m3(v, v_scale)
        else:
            k, v = to_bf16(k), to_bf16(v)
        return sdpa_attention_forward(module, to_bf16(q), k, v, mask, **options)

    AttentionInterface.register("rounded", attention)
    model.set_attn_implementation("rounded")


_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}


_STORED_AS_BF16 = ("o_proj", "down_proj")
"""What attention and SiLU-mul hand over lies in memory as bf16 before it is quantised."""


def _after_bf16(round_input: Rounding) -> Rounding:
    return lambda tensor: round_input(to_bf16(tensor))


def _round_linear_inputs(model: LlamaForCausalLM, bundle: Any) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        round_input = to_bf16 if name == "lm_head" else _input_rounding(bundle, name)
        if name.endswith(_STORED_AS_BF16):
            round_input = _after_bf16(round_input)
        module.register_forward_pre_hook(_hook(round_input))


def _input_rounding(bundle: Any, name: str) -> Rounding:
    """Returns what the input of a layer's module goes through; layers that are left in bf16 take bf16."""
    _, _, layer, _, leaf = name.split(".")
    weight = f"layers.{layer}.{_FUSED[leaf]}"
    entry = next(tensor for tensor in bundle.manifest["tensors"] if tensor["name"] == weight)
    mode = bundle.manifest["model"]["activations"] if entry["dtype"] == "fp8_e4m3fn" else "bf16"
    if mode == "fp8-static":
        return functools.partial(to_e4m3, scale=float(dequantized(bundle, f"{weight}.input_scale")[0]))
    if mode == "fp8-dynamic":
        return _per_block if entry["scale_kind"] == "block" else to_e4m3_per_token
    return to_bf16


def _hook(round_input: Rounding) -> Callable[..., tuple[torch.Tensor]]:
    return lambda _, args: (round_input(args[0]),)


@torch.inference_mode()
def reference_logits(model: LlamaForCausalLM, ids: list[int]) -> Floats:
    """Returns the logits [len(ids), vocab_size] after each prefix of `ids`."""
    logits: Floats = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return logits


def perplexity(logits: Floats, ids: list[int]) -> float:
    """Returns exp of the mean negative log likelihood of ids[1:] given their prefixes."""
    shifted = logits[:-1].astype(np.float64)
    peak = shifted.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted - peak).sum(axis=1)) + peak[:, 0]
    chosen = shifted[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp((log_sum - chosen).mean()))


def relative_error(ours: Floats, reference: Floats) -> float:
    """Returns the root mean square of the difference, over that of the reference around its mean."""
    return float(np.sqrt(np.mean((ours - reference).astype(np.float64) ** 2)) / reference.std())


def top1_agreement(ours: Floats, reference: Floats, tolerance: float) -> tuple[float, int]:
    """Compares the most likely tokens row by row.

    Returns:
        The share of rows that agree, and the number that disagree although the reference's top-2 margin exceeds
        `tolerance` (in logits).
    """
    two = np.sort(np.partition(reference, -2, axis=1)[:, -2:], axis=1)
    equal = ours.argmax(axis=1) == reference.argmax(axis=1)
    clear = two[:, 1] - two[:, 0] > tolerance
    return float(equal.mean()), int((~equal & clear).sum())
