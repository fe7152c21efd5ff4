"""Heads of which only a part is rotated, against transformers' rotation of Phi-3; and quantised weights of such."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.heads import partly_rotated
from paiton_aot.checkpoint.quantization.description import ScaleKind
from paiton_aot.checkpoint.quantization.scales import weight_scales
from paiton_aot.checkpoint.rope import attention_factor
from paiton_aot.models.frequencies import inverse_frequencies, score_factor
from paiton_artifacts.errors import UnsupportedQuantizationError
from tests.architectures import make
from tests.fp8_checkpoints import save_fp8
from tests.make_checkpoints import FP8_STATIC, edit_json, load_tensors, quantize_static, rewrite

HEAD, ROTARY, TOKENS = 32, 24, 40


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("phi4", tmp_path_factory.mktemp("phi4"))


def test_scores_are_those_of_transformers(phi4: Path) -> None:
    """Rows in order, frequencies of 0, a factor of the scores: the same scores as a rotation of the first elements."""
    q, k = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 1, TOKENS, HEAD)).astype(np.float32))
    rotary = Phi3RotaryEmbedding(Phi3Config.from_pretrained(phi4))
    cos, sin = rotary(q, torch.arange(TOKENS)[None])
    their_q, their_k = apply_rotary_pos_emb(q, k, cos, sin)
    with open_checkpoint(phi4) as checkpoint:
        config = checkpoint.config
    scaling = config.rope_scaling
    frequencies = inverse_frequencies(HEAD, 10_000.0, scaling, rotary_dim=config.rotary_dim, context=TOKENS)
    assert (config.rotary_dim, frequencies[ROTARY // 2 :]) == (ROTARY, [0.0] * ((HEAD - ROTARY) // 2))
    order = partly_rotated(HEAD, ROTARY)
    assert sorted(order) == list(range(HEAD))

    def rotated(stored: torch.Tensor) -> NDArray[np.float64]:
        values = stored[0, 0].double().numpy()
        values[:, ROTARY:] /= attention_factor(scaling)
        first, second = np.split(values[:, order], 2, axis=1)
        angles = np.outer(np.arange(TOKENS), frequencies)
        return np.hstack(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        )

    ours = rotated(q) @ rotated(k).T * score_factor(scaling)
    assert attention_factor(scaling) > 1.1
    assert np.allclose(ours, (their_q @ their_k.mT)[0, 0].numpy(), rtol=1e-4, atol=1e-4)


def test_an_fp8_checkpoint_keeps_its_codes(phi4: Path, tmp_path: Path) -> None:
    """One scale of the whole module becomes one for each row, as some rows are divided."""
    source = shutil.copytree(phi4, tmp_path / "fp8")
    rewrite(source, quantize_static)
    edit_json(source / "config.json", quantization_config=FP8_STATIC)
    stored = load_tensors(source)
    module = "model.layers.1.self_attn"
    codes = stored[f"{module}.qkv_proj.weight"].float().numpy()
    scale = float(stored[f"{module}.qkv_proj.weight_scale"])
    with open_checkpoint(source) as checkpoint:
        factor = attention_factor(checkpoint.config.rope_scaling)
        quantized = checkpoint.quantization
        assert quantized is not None
        assert quantized.modules[f"{module}.k_proj"].kind is ScaleKind.ROW
        assert quantized.modules[f"{module}.v_proj"].kind is ScaleKind.TENSOR
        k_proj = checkpoint.tensor(f"{module}.k_proj.weight")
        ours = k_proj.read_rows(0, k_proj.rows).astype(np.float32)
        pieces = [k_proj.read_rows(start, start + 5) for start in range(0, 60, 5)]
        scales = weight_scales(checkpoint, f"{module}.k_proj")
    assert np.array_equal(np.concatenate(pieces).astype(np.float32), ours[:60])
    order = np.concatenate([head * HEAD + partly_rotated(HEAD, ROTARY) for head in range(2)])
    assert np.array_equal(ours, codes[4 * HEAD : 6 * HEAD][order])
    expected = np.where(order % HEAD < ROTARY, scale, scale / factor)
    assert np.allclose(scales, expected, rtol=1e-6)


def test_scales_of_blocks_are_refused(tmp_path: Path) -> None:
    save_fp8(tmp_path / "blocks", "fp8-block")  # Llama's; of heads that are rotated as a whole
    edit_json(tmp_path / "blocks" / "config.json", architectures=["Phi3ForCausalLM"], partial_rotary_factor=0.5)
    with pytest.raises(UnsupportedQuantizationError, match=r"q_proj has scales of blocks, and only a part"):
        open_checkpoint(tmp_path / "blocks")
