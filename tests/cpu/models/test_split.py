"""Modules that are fused on disk are offered in parts, with whatever scales they have."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import SourceTensor
from paiton_aot.checkpoint.split import split_fused
from paiton_aot.models.architecture import Fused
from paiton_artifacts.errors import TensorShapeError, UnsupportedQuantizationError

FUSED = {"self_attn.qkv_proj": (("self_attn.q_proj", 256), ("self_attn.k_proj", 128), ("self_attn.v_proj", 128))}
WHOLE = "model.layers.1.self_attn.qkv_proj"


class Stored(SourceTensor):
    """Numbers 0, 1, 2 ... in a shape."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__(name, shape, "f32")

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        return np.arange(start * self.row_elements, stop * self.row_elements).astype(np.float32)


def split(*tensors: SourceTensor, fused: Fused = FUSED) -> dict[str, SourceTensor]:
    return split_fused({tensor.name: tensor for tensor in tensors}, fused, layers=2)


def test_weights_and_biases_are_cut_by_rows() -> None:
    other = Stored("model.layers.1.self_attn.o_proj.weight", 8, 8)
    parts = split(Stored(f"{WHOLE}.weight", 512, 4), Stored(f"{WHOLE}.bias", 512), other)
    prefix = "model.layers.1.self_attn."
    assert {name.removeprefix(prefix) for name in parts} == {
        *(f"{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        "o_proj.weight",
    }
    key = parts[f"{prefix}k_proj.weight"]
    assert (key.shape, key.name) == ((128, 4), f"{prefix}k_proj.weight")
    assert key.read_rows(1, 3).tolist() == np.arange(257 * 4, 259 * 4).reshape(2, 4).tolist()
    assert parts[f"{prefix}v_proj.bias"].read_rows(0, 1).tolist() == [384.0]
    assert parts[f"{prefix}o_proj.weight"] is other


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_belongs_to_every_part(shape: tuple[int, ...]) -> None:
    parts = split(Stored(f"{WHOLE}.weight_scale", *shape), Stored(f"{WHOLE}.input_scale", *shape))
    assert len(parts) == 6
    assert {(part.shape, float(part.read_rows(0, 1).ravel()[0])) for part in parts.values()} == {(shape, 0.0)}


def test_scales_of_rows_and_of_blocks_are_cut_with_them() -> None:
    rows = split(Stored(f"{WHOLE}.weight_scale", 512, 1))
    assert rows["model.layers.1.self_attn.v_proj.weight_scale"].read_rows(0, 1).tolist() == [[384.0]]
    grid = split(Stored(f"{WHOLE}.weight_scale_inv", 4, 3))
    assert [part.shape for part in grid.values()] == [(2, 3), (1, 3), (1, 3)]
    assert grid["model.layers.1.self_attn.k_proj.weight_scale_inv"].read_rows(0, 1).tolist() == [[6.0, 7.0, 8.0]]


def test_blocks_that_belong_to_several_parts_are_refused() -> None:
    fused = {"self_attn.qkv_proj": (("self_attn.q_proj", 320), ("self_attn.k_proj", 96), ("self_attn.v_proj", 96))}
    with pytest.raises(UnsupportedQuantizationError, match="scales of 128 rows that belong to several of its parts"):
        split(Stored(f"{WHOLE}.weight_scale_inv", 4, 3), fused=fused)


def test_a_fused_tensor_of_other_rows_is_refused() -> None:
    with pytest.raises(TensorShapeError, match=r"qkv_proj.weight has shape \[500, 4\].* implies 512 rows"):
        split(Stored(f"{WHOLE}.weight", 500, 4))
    with pytest.raises(TensorShapeError, match=r"qkv_proj.weight has shape \[4, 4\].* implies 512 rows"):
        split(Stored(f"{WHOLE}.weight", 4, 4))
