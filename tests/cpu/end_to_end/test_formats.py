"""Every checkpoint format that the build reads, and every precision that it writes, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from paiton_aot.cli import main
from tests.independent_reader import read_bundle
from tests.make_checkpoints import dequantize_static, load_tensors, rewrite, tiny_llama
from tests.reference import load_reference, reference_logits, relative_error
from tests.teacher_forced import boot_logits

IDS = [(29 * index + 7) % 300 for index in range(48)]
ROUNDED = 0.02
"""Relative error against a reference that rounds where we round: what is left is values that fall on the other side."""
UNROUNDED = 0.05
"""Relative error of bf16 activations against float32 ones, in these random models, which amplify."""


def _build(checkpoint: Path, output: Path, *flags: str) -> Path:
    assert main([str(checkpoint), "-o", str(output), "-q", *flags]) == 0
    return output


def _error(bundle: Path, expected: NDArray[np.float32]) -> float:
    return relative_error(boot_logits(bundle, IDS), expected)


def _error_on_own_weights(bundle: Path) -> float:
    return _error(bundle, reference_logits(load_reference(bundle), IDS))


def _transformers(path: Path) -> NDArray[np.float32]:
    return reference_logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), IDS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_unquantised_checkpoints(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", dtype=dtype, tied=tied)
    bundle = _build(source, tmp_path / "bundle", "--weights", "bf16")
    assert _error(bundle, _transformers(source)) < UNROUNDED


def test_sharded_checkpoint(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", max_shard_size="200KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    bundle = _build(source, tmp_path / "bundle", "--weights", "bf16")
    assert _error(bundle, _transformers(source)) < UNROUNDED


def test_llama3_rope_scaling(tmp_path: Path) -> None:
    scaling: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    source = tiny_llama(tmp_path / "hf", rope_parameters=scaling)
    bundle = _build(source, tmp_path / "bundle", "--weights", "bf16")
    assert read_bundle(bundle).manifest["model"]["rope"]["scaling"] == "llama3"
    assert _error(bundle, _transformers(source)) < UNROUNDED


@pytest.mark.parametrize("head", ["bf16", "int8", "fp8"])
def test_quantised_by_the_build(head: str, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf")
    bundle = _build(source, tmp_path / "bundle", "--lm-head", head)
    facts = read_bundle(bundle).manifest["model"]
    assert (facts["weights"], facts["lm_head"]) == ("fp8", head)
    assert _error_on_own_weights(bundle) < ROUNDED


def test_static_fp8_checkpoint(tmp_path: Path) -> None:
    """No library is a reference for this format: the test dequantises itself and lets it compute in float32."""
    source = tiny_llama(tmp_path / "hf", fp8_static=True)
    plain = tiny_llama(tmp_path / "plain", dtype=torch.float32)
    tensors = dequantize_static(load_tensors(source))
    rewrite(plain, lambda _: tensors)
    assert _error(_build(source, tmp_path / "bundle"), _transformers(plain)) < UNROUNDED


@pytest.mark.parametrize("fp8_static", [False, True])
@pytest.mark.parametrize("flags", [("--act", "fp8"), ("--kv", "fp8"), ("--act", "fp8", "--kv", "fp8")])
def test_fp8_activations_and_cache(flags: tuple[str, ...], fp8_static: bool, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", fp8_static=fp8_static)
    bundle = _build(source, tmp_path / "bundle", *flags)
    facts = read_bundle(bundle).manifest["model"]
    mode = "bf16" if "--act" not in flags else "fp8-static" if fp8_static else "fp8-dynamic"
    assert (facts["activations"], facts["kv_cache"]) == (mode, "fp8" if "--kv" in flags else "bf16")
    assert _error_on_own_weights(bundle) < ROUNDED
    assert _error(_build(source, tmp_path / "plain"), reference_logits(load_reference(bundle), IDS)) > 2 * ROUNDED
    two = _build(source, tmp_path / "two", "--tp", "2", *flags)
    assert _error(two, boot_logits(bundle, IDS)) < 10 * ROUNDED


def test_static_fp8_bytes_and_scales_are_carried_over(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", fp8_static=True)
    bundle = read_bundle(_build(source, tmp_path / "bundle"))
    stored = load_tensors(source)
    dtype, shape, raw = bundle.tensor(0, "layers.0.o_proj")
    assert dtype == "fp8_e4m3fn"
    wanted = stored["model.layers.0.self_attn.o_proj.weight"].view(torch.uint8).numpy().copy()
    wanted[wanted == 0x80] = 0
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(shape), wanted)
    _, _, scales = bundle.tensor(0, "layers.0.qkv_proj.scale")
    each = [stored[f"model.layers.0.self_attn.{name}_proj.weight_scale"].float().item() for name in "qkv"]
    assert np.frombuffer(scales, np.float32).tolist() == [np.float32(each[0])] * 128 + [
        np.float32(scale) for scale in each[1:] for _ in range(64)
    ]
