"""What becomes of FP8 weights and scales in the blobs of one and two ranks: nothing, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.cli import main
from paiton_aot.convert import write_tensors
from paiton_aot.lower import Lowered, lower
from paiton_aot.options import BuildOptions
from paiton_aot.quantize import Quantizer
from paiton_artifacts.errors import TensorValueError
from paiton_artifacts.schema import Tensor
from tests.fp8_checkpoints import FORMATS, INPUT_SCALE, K_SCALE, V_SCALE, configure, dequantized, quantized
from tests.make_checkpoints import Tensors, load_tensors, rewrite, tiny_llama

DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "fp8_e4m3fn": ml_dtypes.float8_e4m3fn}
LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


class Blobs:
    """The tensors of all ranks of a checkpoint, converted without compiling anything."""

    def __init__(self, source: Path, folder: Path, options: BuildOptions) -> None:
        with ExitStack() as stack:
            checkpoint = stack.enter_context(open_checkpoint(source))
            self.lowered: Lowered = lower(checkpoint, options)
            self.tensors = {tensor.name: tensor for tensor in self.lowered.tensors}
            paths = [folder / f"rank-{rank}" for rank in range(options.tp)]
            files = [stack.enter_context(path.open("w+b")) for path in paths]
            for file in files:
                file.truncate(self.lowered.blob_bytes)
            quantizer = Quantizer(options.cache_dir)
            write_tensors(checkpoint, self.lowered.specs, self.tensors, files, quantizer, lambda _: None)
            self._bytes = [path.read_bytes() for path in paths]

    def stored(self, rank: int, tensor: Tensor) -> NDArray[np.float32]:
        """Returns the stored values of a rank's tensor as f32, scales not applied."""
        dtype = np.dtype(DTYPES[tensor.dtype])
        cols = tensor.shape[1] if len(tensor.shape) == 2 else 1
        rows = np.ndarray(
            (tensor.shape[0], cols), dtype, self._bytes[rank], tensor.offset, (tensor.row_stride, dtype.itemsize)
        )
        return rows.astype(np.float32).reshape(tensor.shape)

    def values(self, rank: int, name: str) -> NDArray[np.float32]:
        """Returns the values of a rank's tensor, scales applied as FORMAT.md says."""
        tensor = self.tensors[name]
        values = self.stored(rank, tensor)
        if not tensor.scale:
            return values
        scales = self.stored(rank, self.tensors[tensor.scale])
        if tensor.scale_kind == "row":
            return values * scales[:, None]
        rows, cols = tensor.scale_block
        return values * scales[np.arange(values.shape[0])[:, None] // rows, np.arange(values.shape[1]) // cols]


def check_values(blobs: Blobs, wanted: Tensors, tp: int) -> int:
    """Compares the linear layers of all ranks with the checkpoint's plain weights; returns the number of elements."""
    checked = 0
    for tensor in blobs.lowered.tensors:
        if tensor.name.split(".")[-1] not in LINEAR:
            continue
        for rank in range(tp):
            values = blobs.values(rank, tensor.name)
            for part in tensor.parts:
                row, col = part.source_row[rank], part.source_col[rank]
                source = wanted[part.source].numpy()[row : row + part.rows, col : col + part.cols]
                assert np.array_equal(values[part.row : part.row + part.rows], source), (tensor.name, rank)
                checked += source.size
    return checked


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_values_are_the_checkpoints(formats: Path, name: str, tp: int, tmp_path: Path) -> None:
    form = FORMATS[name]
    blobs = Blobs(formats / name, tmp_path, BuildOptions(tp=tp, act="fp8", kv="fp8"))
    wanted = dequantized(load_tensors(formats / name), form)
    assert check_values(blobs, wanted, tp) == 2 * (512 * 256 + 256 * 256 + 1024 * 256 + 256 * 512)
    facts = blobs.lowered.facts
    assert facts.activations == ("fp8-static" if form.input_scale else "fp8-dynamic")
    for which, scale in zip("kv", (K_SCALE, V_SCALE) if len(form.kv) == 2 else (K_SCALE,) * 2, strict=True):
        assert blobs.values(0, f"layers.1.{which}_scale") == (scale if form.kv else 1.0)
    if form.input_scale:
        assert blobs.values(0, "layers.0.gate_up_proj.input_scale") == INPUT_SCALE


def test_blocks_of_fused_and_divided_rows(formats: Path, tmp_path: Path) -> None:
    """Two ranks hold 64 rows of K and of V each: blocks have 64 rows there, and 128 where parts start at multiples."""
    blobs = Blobs(formats / "fp8-block", tmp_path, BuildOptions(tp=2))
    kinds = {
        name: (blobs.tensors[f"layers.0.{name}"].scale_kind, blobs.tensors[f"layers.0.{name}"].scale_block)
        for name in LINEAR
    }
    assert kinds == {
        "qkv_proj": ("block", (64, 128)),
        "o_proj": ("block", (128, 128)),
        "gate_up_proj": ("block", (128, 128)),
        "down_proj": ("block", (128, 128)),
    }
    grid = blobs.tensors["layers.0.qkv_proj.scale"]
    assert (grid.dtype, grid.shape, grid.row_stride) == ("f32", (4, 2), 16)
    assert blobs.tensors["layers.1.down_proj"].dtype == "bf16"


def test_blocks_that_the_weight_does_not_fill(tmp_path: Path) -> None:
    """No width is a multiple of 128: grids end in narrower blocks, and fused parts start within one."""
    source = tiny_llama(tmp_path / "hf", hidden=160, intermediate=224, heads=5, kv_heads=1)
    rewrite(source, lambda tensors: quantized(tensors, FORMATS["fp8-block"]))
    configure(source, "fp8-block", FORMATS["fp8-block"].config)
    blobs = Blobs(source, tmp_path, BuildOptions())
    wanted = dequantized(load_tensors(source), FORMATS["fp8-block"])
    assert check_values(blobs, wanted, 1) == 2 * 160 * (224 + 160 + 3 * 224)
    assert blobs.tensors["layers.0.qkv_proj"].scale_block == (32, 128)
    assert blobs.tensors["layers.0.gate_up_proj.scale"].shape == (448 // 32, 2)


def test_number_of_ranks_that_divides_a_block(
    formats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(formats / "fp8-block"), "-o", str(tmp_path / "bundle"), "-q", "--tp", "4"]) == 2
    said = capsys.readouterr().err
    assert "--tp 4 divides the 256 columns of layers.0.o_proj within a block of 128" in said
    assert "use --tp with one of 1, 2" in said


def test_modules_that_are_fused_have_scales_of_one_kind(
    own_format: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_format("compressed-block")
    rows = load_tensors(own_format("compressed-old"))
    name = "model.layers.0.self_attn.q_proj"
    rewrite(path, lambda tensors: {**tensors, **{key: rows[key] for key in rows if key.startswith(name)}})
    blocks, old = FORMATS["compressed-block"].config, FORMATS["compressed-old"].config
    config = {
        **blocks,
        "config_groups": {**blocks["config_groups"], "q": {**old["config_groups"]["group_0"], "targets": [name]}},
    }
    configure(path, "compressed-block", config)
    assert main([str(path), "-o", str(tmp_path / "bundle"), "-q"]) == 3
    assert "scales of blocks for only some of the modules of layers.0.qkv_proj" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fp8-block", "compressed-channel"])
def test_nan_among_the_weights(own_format: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    module = "model.layers.0.mlp.up_proj"

    def spoil(tensors: Tensors) -> Tensors:
        codes = tensors[f"{module}.weight"].view(torch.uint8).clone()
        codes[300, 7] = 0xFF
        return {**tensors, f"{module}.weight": codes.view(torch.float8_e4m3fn)}

    path = own_format(name)
    rewrite(path, spoil)
    with pytest.raises(TensorValueError, match=rf"{module}.weight holds FP8 NaN at \[300, 7\]") as caught:
        Blobs(path, tmp_path, BuildOptions())
    assert caught.value.exit_code == 6
