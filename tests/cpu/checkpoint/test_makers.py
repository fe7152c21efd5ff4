"""The makers of checkpoints that other tests rely on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.make_checkpoints import CHAT_TEMPLATE, dequantize_static, load_tensors, pad_heads, tiny_llama


def logits(path: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float64)
    with torch.no_grad():
        output: torch.Tensor = model(torch.arange(40).reshape(2, 20)).logits
    return output


def test_padding_heads_leaves_the_logits(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "three", hidden=288, heads=9, kv_heads=3)
    pad_heads(tmp_path / "three", tmp_path / "four")
    assert load_tensors(tmp_path / "four")["model.layers.0.self_attn.o_proj.weight"].shape == (288, 12 * 32)
    assert torch.allclose(logits(tmp_path / "three"), logits(tmp_path / "four"), rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny / name).read_bytes()
    tiny_llama(tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_static_fp8_is_near_the_original(fp8: Path, tiny: Path) -> None:
    plain, restored = load_tensors(tiny), dequantize_static(load_tensors(fp8))
    assert plain.keys() == restored.keys()
    for name, tensor in plain.items():
        error = (tensor.float() - restored[name]).norm() / tensor.float().norm()
        assert error < 0.04, name


def test_tokenizer_is_one_that_transformers_takes(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    ids = tokenizer("<|im_start|>user\nnaïve 12345 🙂").input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\nnaïve 12345 🙂"
    assert max(ids) < 384
