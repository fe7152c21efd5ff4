"""A checkpoint of which only the headers are real: what planning and compiling need, without gigabytes of weights."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
"""The public configuration of Llama-3.1-8B."""


def write_headers(folder: Path, config: dict[str, object]) -> Path:
    """Writes config.json and a sparse safetensors file with every tensor of a Llama; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header: dict[str, object] = {}
    end = 0
    for name, shape in tensors_of(config):
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def tensors_of(config: dict[str, object]) -> list[tuple[str, list[int]]]:
    """Returns name and shape of every weight of a Llama."""
    size = {name: value for name, value in config.items() if isinstance(value, int)}
    hidden, inter, head = size["hidden_size"], size["intermediate_size"], size["head_dim"]
    q, kv = size["num_attention_heads"] * head, size["num_key_value_heads"] * head
    tensors = [("model.embed_tokens.weight", [size["vocab_size"], hidden]), ("model.norm.weight", [hidden])]
    tensors.append(("lm_head.weight", [size["vocab_size"], hidden]))
    for layer in range(size["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [q, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, q],
            "mlp.gate_proj": [inter, hidden],
            "mlp.up_proj": [inter, hidden],
            "mlp.down_proj": [hidden, inter],
        }
        tensors += [(f"{prefix}{name}.weight", shape) for name, shape in shapes.items()]
    return tensors
