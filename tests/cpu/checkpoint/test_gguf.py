"""GGUF files against transformers, the gguf library's reader and the weights that they were made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as gguf_library
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.files import CheckpointFile
from paiton_aot.checkpoint.gguf_file import read_contents
from paiton_aot.checkpoint.rope import Llama3Scaling
from paiton_artifacts.errors import UnsupportedError
from tests.cpu.checkpoint.gguf_maker import Weights, write_gguf
from tests.make_checkpoints import edit_json, load_tensors, tiny_llama

LOSSLESS = {GGMLQuantizationType.F32: "f32", GGMLQuantizationType.F16: "f16", GGMLQuantizationType.BF16: "bf16"}
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def as_f32(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return array.astype(np.float32)


def test_smollm2_tensors_equal_those_of_transformers(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    expected = load_tensors(smollm2_hf)
    with open_checkpoint(smollm2_gguf) as checkpoint:
        assert set(checkpoint.names()) == set(expected)
        for name, reference in expected.items():
            tensor = checkpoint.tensor(name)
            assert tensor.shape == tuple(reference.shape)
            values = tensor.read_rows(0, tensor.rows).astype(ml_dtypes.bfloat16)
            assert np.array_equal(values.view(np.uint16), reference.view(torch.uint16).numpy()), name


def test_smollm2_configuration_equals_that_of_transformers(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    with open_checkpoint(smollm2_gguf) as ours, open_checkpoint(smollm2_hf) as reference:
        assert ours.config == reference.config


def test_structure_equals_that_of_the_gguf_library(gguf: Path) -> None:
    file = CheckpointFile(gguf)
    contents = read_contents(file)
    file.close()
    reader = gguf_library.GGUFReader(gguf)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert contents.metadata == {name: field.contents() for name, field in fields.items()}
    assert len(contents.tensors) == len(reader.tensors)
    for expected in reader.tensors:
        extent = contents.tensors[expected.name]
        assert extent.shape == tuple(reversed(expected.shape.tolist()))
        assert (extent.kind, extent.offset, extent.nbytes) == (
            expected.tensor_type,
            expected.data_offset,
            expected.n_bytes,
        )


@pytest.mark.parametrize("kind", LOSSLESS)
def test_types_that_keep_the_weights(originals: Path, tmp_path: Path, kind: GGMLQuantizationType) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", kind=kind)
    expected = load_tensors(originals / "tiny")
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names()) == set(expected)
        for name, reference in expected.items():
            tensor = checkpoint.tensor(name)
            assert tensor.dtype == ("f32" if len(tensor.shape) == 1 else LOSSLESS[kind])
            values = as_f32(tensor.read_rows(0, tensor.rows))
            assert np.allclose(values, reference.float().numpy(), rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantised_types_are_dequantised_to_bf16(originals: Path, tmp_path: Path, kind: str) -> None:
    stored = GGMLQuantizationType[kind]
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", kind=stored)
    expected = load_tensors(originals / "tiny")
    with open_checkpoint(path) as checkpoint:
        for name in (
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "lm_head.weight",
        ):
            # Blocks lie within rows, so that quantising Hugging Face's order of rows gives the same numbers.
            packed = gguf_library.quants.quantize(expected[name].float().numpy(), stored)
            reference = gguf_library.quants.dequantize(packed, stored).astype(ml_dtypes.bfloat16)
            tensor = checkpoint.tensor(name)
            assert tensor.dtype == "bf16"
            assert np.array_equal(tensor.read_rows(0, tensor.rows).view(np.uint16), reference.view(np.uint16))


def test_blocks_of_permuted_rows_that_cut_through_heads(gguf: Path) -> None:
    with open_checkpoint(gguf) as checkpoint:
        tensor = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
        whole = as_f32(tensor.read_rows(0, tensor.rows))
        for start, stop in ((0, 1), (5, 21), (31, 33), (40, 104), (127, 128), (7, 7)):
            assert np.array_equal(as_f32(tensor.read_rows(start, stop)), whole[start:stop])


def llama3_factors(config: LlamaConfig) -> NDArray[np.float32]:
    """What llama.cpp divides frequencies by, from transformers' scaled and unscaled ones."""
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled.double()).numpy().astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_the_rotary_factors(tmp_path: Path, factor: float) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tiny_llama(tmp_path / "hf", head_dim=64, heads=2, kv_heads=1, rope_parameters=rope)
    factors = llama3_factors(LlamaConfig.from_pretrained(tmp_path / "hf"))

    def write(values: NDArray[np.float32]) -> Path:
        def change(weights: Weights) -> Weights:
            return weights | {"rope_freqs.weight": values}

        return write_gguf(tmp_path / "hf", tmp_path / "x.gguf", change=change)

    with open_checkpoint(write(factors)) as checkpoint:
        assert checkpoint.config.rope_scaling == Llama3Scaling(factor, 1.0, 4.0, 8192)
        assert "rope_freqs.weight" not in checkpoint.names()
    with open_checkpoint(write(np.ones_like(factors))) as checkpoint:
        assert checkpoint.config.rope_scaling is None
    with pytest.raises(UnsupportedError, match=r"rotary factors \(rope_freqs.weight\) other than Llama 3's"):
        open_checkpoint(write(factors[::-1].copy()))


def test_several_end_tokens(originals: Path, tmp_path: Path) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", extra=lambda writer: writer.add_eot_token_id(7))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.eos_token_ids == (2, 7)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4"])
def test_rows_of_types_that_the_gguf_library_cannot_write(tmp_path: Path, kind: str) -> None:
    """Random blocks, read row by row, beside the library's own dequantisation of the whole matrix."""
    quantization = GGMLQuantizationType[kind]
    values, size = gguf_library.GGML_QUANT_SIZES[quantization]
    blocks = np.random.default_rng(0).integers(0, 120, (384, 256 // values * size), np.uint8)
    for offset in range(0, blocks.shape[1], size):  # as halves, such bytes are small numbers; as exponents, too
        blocks[:, offset : offset + size : 2] %= 60
    source = tiny_llama(tmp_path / "source", hidden=256, head_dim=64)

    def extra(writer: gguf_library.GGUFWriter) -> None:
        writer.add_tensor("token_embd.weight", blocks, raw_dtype=quantization)

    path = write_gguf(source, tmp_path / "x.gguf", extra=extra, change=without("token_embd.weight"))
    expected = gguf_library.quants.dequantize(blocks, quantization)
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensor("model.embed_tokens.weight")
        assert (tensor.dtype, tensor.shape) == ("bf16", (384, 256))
        rows = np.concatenate([tensor.read_rows(0, 7), tensor.read_rows(7, 384)])
    finite = np.isfinite(expected)
    assert finite.mean() > 0.9
    assert np.array_equal(as_f32(rows)[finite], as_f32(expected.astype(ml_dtypes.bfloat16))[finite])


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("architecture", "make"), [("qwen2", (Qwen2Config, Qwen2ForCausalLM)), ("qwen3", (Qwen3Config, Qwen3ForCausalLM))]
)
def test_architectures_whose_rows_are_not_permuted(
    originals: Path, tmp_path: Path, architecture: str, make: tuple[Any, Any]
) -> None:
    """The file of a random model is the same checkpoint as its directory, biases and norms of heads included."""
    config, model = make
    source = tmp_path / "hf"
    torch.manual_seed(0)
    model(
        config(
            vocab_size=384,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).to(torch.bfloat16).save_pretrained(source)
    edit_json(source / "config.json", head_dim=32)
    shutil.copy(originals / "tiny" / "tokenizer.json", source)
    path = write_gguf(
        source, tmp_path / "x.gguf", kind=GGMLQuantizationType.BF16, architecture=architecture, permuted=False
    )
    with open_checkpoint(path) as ours, open_checkpoint(source) as reference:
        assert ours.config == replace(reference.config, rms_norm_eps=float(np.float32(1e-6)))
        assert set(ours.names()) == set(reference.names())
        for name in reference.names():
            tensor, expected = ours.tensor(name), reference.tensor(name)
            rows = as_f32(tensor.read_rows(0, tensor.rows))
            assert np.array_equal(rows, as_f32(expected.read_rows(0, expected.rows))), name
