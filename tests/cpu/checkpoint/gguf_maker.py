"""Writes a Hugging Face directory as a GGUF file, through the gguf library, as llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from tests.make_checkpoints import load_tensors

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Weights = dict[str, NDArray[np.float32]]


def write_gguf(
    source: Path,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    pre: str | None = "gpt-2",
    model: str | None = "gpt2",
    architecture: str = "llama",
    add_bos: bool | None = None,
    chat_template: str | None = "{{ messages }}",
    user_defined: tuple[str, ...] = (),
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
    change: Callable[[Weights], Weights] = lambda weights: weights,
    permuted: bool = True,
    names: Mapping[str, str] = NAMES,
) -> Path:
    """Writes the weights quantised to `kind` (vectors as f32) and the tokenizer; returns `path`.

    Args:
        source: a Hugging Face directory.
        path: the file to write.
        kind: type of matrices.
        pre: name of the pre-tokenizer, None for no such key.
        model: name of the kind of tokenizer; None leaves out all of it.
        architecture: as llama.cpp names it.
        add_bos: value of the key, None for no such key.
        chat_template: value of the key, None for no such key.
        user_defined: tokens to mark as such; all others in added_tokens are control tokens.
        extra: adds or replaces keys.
        change: changes the weights, under llama.cpp's names and in its order of rows.
        permuted: rows of q and k are permuted, as in files of the architecture llama.
        names: Hugging Face's names of modules, and llama.cpp's.
    """
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    writer.add_vocab_size(config["vocab_size"])
    if model is not None:
        writer.add_tokenizer_model(model)
        _add_tokenizer(writer, source, config["vocab_size"], user_defined)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    extra(writer)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]} if permuted else {}
    for name, values in change(named_weights(source, heads, names)).items():
        stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def named_weights(source: Path, heads: dict[str, int], names: Mapping[str, str]) -> Weights:
    """Returns the weights under llama.cpp's names, rows within `heads` permuted as convert_hf_to_gguf.py does it."""
    weights: Weights = {}
    for name, tensor in load_tensors(source).items():
        module, _, kind = name.rpartition(".")
        prefix = ""
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            prefix = f"blk.{layer}."
        values = tensor.to(torch.float32).numpy()
        if count := heads.get(names[module]):
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        weights[f"{prefix}{names[module]}.{kind}"] = np.ascontiguousarray(values)
    return weights


def _add_tokenizer(writer: gguf.GGUFWriter, source: Path, vocab_size: int, user_defined: tuple[str, ...]) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    control = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens]
    for token in user_defined:
        kinds[tokens.index(token)] = gguf.TokenType.USER_DEFINED
    padding = [f"[PAD{index}]" for index in range(len(tokens), vocab_size)]
    writer.add_token_list(tokens + padding)
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(padding)])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
