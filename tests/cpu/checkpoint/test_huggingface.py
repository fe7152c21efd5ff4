"""Hugging Face directories against the safetensors library and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import expect_tensor
from paiton_aot.checkpoint.rope import Llama3Scaling
from paiton_artifacts.errors import TensorShapeError
from tests.make_checkpoints import edit_json, load_tensors, tiny_llama

DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.float8_e4m3fn: "fp8_e4m3fn"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def raw(array: NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_tensors_equal_those_of_the_safetensors_library(
    tmp_path: Path, dtype: torch.dtype, max_shard_size: str
) -> None:
    tiny_llama(tmp_path, dtype=dtype, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    expected = load_tensors(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.names()) == set(expected)
        for name, reference in expected.items():
            tensor = checkpoint.tensor(name)
            assert (tensor.shape, tensor.dtype) == (tuple(reference.shape), DTYPES[dtype])
            assert tensor.nbytes == reference.nbytes
            assert raw(tensor.read_rows(0, tensor.rows)) == torch_bytes(reference)


def test_row_blocks_put_together_are_the_tensor(tiny: Path) -> None:
    with open_checkpoint(tiny) as checkpoint:
        for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
            tensor = checkpoint.tensor(name)
            whole = tensor.read_rows(0, tensor.rows)
            blocks = [tensor.read_rows(start, min(start + 37, tensor.rows)) for start in range(0, tensor.rows, 37)]
            assert raw(np.concatenate(blocks)) == raw(whole)
            assert tensor.read_rows(5, 5).shape == (0, *tensor.shape[1:])
            with pytest.raises(IndexError):
                tensor.read_rows(0, tensor.rows + 1)


@pytest.mark.parametrize("rope", [None, LLAMA3])
def test_configuration_equals_that_of_transformers(tmp_path: Path, rope: dict[str, object] | None) -> None:
    reference = AutoConfig.from_pretrained(tiny_llama(tmp_path, tied=True, rope_parameters=rope))
    with open_checkpoint(tmp_path) as checkpoint:
        config = checkpoint.config
        assert "lm_head.weight" not in checkpoint.names()
    assert config.architecture == "LlamaForCausalLM"
    assert config.layers == reference.num_hidden_layers
    assert config.hidden_size == reference.hidden_size
    assert config.intermediate_size == reference.intermediate_size
    assert (config.attention_heads, config.kv_heads) == (reference.num_attention_heads, reference.num_key_value_heads)
    assert config.head_dim == reference.head_dim
    assert config.vocab_size == reference.vocab_size
    assert config.max_position == reference.max_position_embeddings
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.tied_embeddings is True
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.rope_scaling == (Llama3Scaling(8.0, 1.0, 4.0, 8192) if rope else None)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_fields_of_transformers_4(tiny: Path, key: str) -> None:
    scaling = {key: "llama3"} | {
        name: value for name, value in LLAMA3.items() if name not in ("rope_type", "rope_theta")
    }
    edit_json(tiny / "config.json", rope_parameters=None, rope_theta=500_000.0, rope_scaling=scaling)
    with open_checkpoint(tiny) as checkpoint:
        assert checkpoint.config.rope_theta == 500_000.0
        assert checkpoint.config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_defaults_of_absent_fields(tiny: Path) -> None:
    absent = (
        "rope_parameters",
        "head_dim",
        "num_key_value_heads",
        "tie_word_embeddings",
        "attention_bias",
        "hidden_act",
    )
    edit_json(tiny / "config.json", **dict.fromkeys(absent))
    (tiny / "generation_config.json").unlink()
    with open_checkpoint(tiny) as checkpoint:
        config = checkpoint.config
    assert (config.rope_theta, config.head_dim, config.kv_heads, config.tied_embeddings) == (10_000.0, 32, 4, False)
    assert config.eos_token_ids == (2,)


def test_generation_config_decides_what_ends_a_generation(tiny: Path) -> None:
    edit_json(tiny / "generation_config.json", eos_token_id=[5, 6])
    with open_checkpoint(tiny) as checkpoint:
        assert checkpoint.config.eos_token_ids == (5, 6)


def test_expect_tensor(tiny: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    with open_checkpoint(tiny) as checkpoint:
        assert expect_tensor(checkpoint, name, (64, 128)).name == name
        with pytest.raises(TensorShapeError, match=r"k_proj.weight has shape \[64, 128\].*implies \[128, 128\]"):
            expect_tensor(checkpoint, name, (128, 128))
        with pytest.raises(TensorShapeError, match="has dtype bf16, expected f32"):
            expect_tensor(checkpoint, name, (64, 128), ("f32",))
