"""Damaged and hostile GGUF files: each is refused with its own error, on one line, whatever the byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as gguf_library
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from paiton_aot.checkpoint import open_checkpoint
from paiton_artifacts.errors import (
    CheckpointError,
    CheckpointFormatError,
    DuplicateTensorError,
    PaitonError,
    TensorShapeError,
    UnsupportedArchitectureError,
    UnsupportedError,
    UnsupportedQuantizationError,
)
from tests.cpu.checkpoint.gguf_maker import write_gguf

Writer = gguf_library.GGUFWriter
Extra = Callable[[Writer], None]
NORM = "output_norm.weight"


def refused(path: Path, error: type[PaitonError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def data_start(path: Path) -> int:
    return min(int(tensor.data_offset) for tensor in gguf_library.GGUFReader(path).tensors)


def test_truncated_at_any_point(gguf: Path) -> None:
    whole = gguf.read_bytes()
    start = data_start(gguf)
    points = {*range(4, 64), *range(64, start, 97), start - 1, start, start + 1, len(whole) // 2, len(whole) - 33}
    for size in sorted(points):
        gguf.write_bytes(whole[:size])
        refused(gguf, CheckpointFormatError, "is truncated")
    gguf.write_bytes(b"")
    refused(gguf, CheckpointFormatError, "is truncated")


def test_a_file_that_shrinks_while_it_is_open(gguf: Path) -> None:
    with open_checkpoint(gguf) as checkpoint:
        gguf.write_bytes(gguf.read_bytes()[:2000])
        tensor = checkpoint.tensor("lm_head.weight")
        with pytest.raises(CheckpointFormatError, match="is truncated"):
            tensor.read_rows(0, tensor.rows)


def test_random_damage_never_escapes_as_another_error(gguf: Path) -> None:
    whole = gguf.read_bytes()
    start = data_start(gguf)
    rng = random.Random(0)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        position = rng.randrange(start)
        # Lengths and counts are what does harm: half of the damage makes large ones.
        damage = bytes([rng.randrange(256)]) if rng.random() < 0.5 else struct.pack("<Q", 1 << rng.randrange(64))
        damaged[position : position + len(damage)] = damage
        gguf.write_bytes(damaged)
        try:
            with open_checkpoint(gguf) as checkpoint:
                checkpoint.tokenizer()
        except (CheckpointError, UnsupportedError) as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, b"GGML", CheckpointFormatError, "is no GGUF file"),
        (4, struct.pack("<I", 1), UnsupportedError, "GGUF version 0x1"),
        (4, struct.pack(">I", 3), UnsupportedError, "GGUF version 0x3000000"),
        (8, struct.pack("<Q", 1 << 60), CheckpointFormatError, "a count of 1152921504606846976"),
        (16, struct.pack("<Q", 1 << 60), CheckpointFormatError, "a count of 1152921504606846976"),
        (24, struct.pack("<Q", 1 << 60), CheckpointFormatError, "metadata of more than"),
        (24, struct.pack("<Q", 1 << 27), CheckpointFormatError, "is truncated"),
    ],
)
def test_start_of_the_file(gguf: Path, position: int, value: bytes, error: type[PaitonError], message: str) -> None:
    whole = bytearray(gguf.read_bytes())
    whole[position : position + len(value)] = value
    gguf.write_bytes(whole)
    refused(gguf, error, message)


def patched(path: Path, find: bytes, after: int, value: bytes) -> None:
    """Overwrites bytes at a distance from the end of the only occurrence of `find`."""
    whole = bytearray(path.read_bytes())
    assert whole.count(find) == 1
    position = whole.index(find) + len(find) + after
    whole[position : position + len(value)] = value
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("after", "value", "error", "message"),
    [
        (0, struct.pack("<I", 5), CheckpointFormatError, "a count of 5, more than 4"),
        (4, struct.pack("<Q", 0), CheckpointFormatError, r"of shape \[0\]"),
        (4, struct.pack("<Q", 1 << 50), CheckpointFormatError, "of shape"),
        (4, struct.pack("<Q", 1 << 30), CheckpointFormatError, "overlaps|is truncated"),
        (12, struct.pack("<I", 9999), UnsupportedError, "has type 9999"),
        (12, struct.pack("<I", GGMLQuantizationType.Q4_0), TensorShapeError, "vector output_norm.weight"),
        (16, struct.pack("<Q", 1 << 40), CheckpointFormatError, "is truncated"),
        (16, struct.pack("<Q", 0), CheckpointFormatError, "overlaps"),
    ],
)
def test_description_of_a_tensor(gguf: Path, after: int, value: bytes, error: type[PaitonError], message: str) -> None:
    patched(gguf, NORM.encode(), after, value)
    refused(gguf, error, message)


def test_rows_that_are_no_whole_blocks(gguf: Path) -> None:
    patched(gguf, b"token_embd.weight", 4, struct.pack("<Q", 127))
    refused(gguf, CheckpointFormatError, "rows of 127, no multiple of the 32 of Q8_0")


def test_type_that_the_library_does_not_dequantise(gguf: Path) -> None:
    patched(gguf, b"token_embd.weight", 4 + 16, struct.pack("<I", GGMLQuantizationType.I8))
    refused(gguf, UnsupportedQuantizationError, "token_embd.weight .* has type I8")


def test_tensor_listed_twice(gguf: Path) -> None:
    whole = gguf.read_bytes()
    gguf.write_bytes(whole.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"))
    refused(gguf, DuplicateTensorError, "lists tensor blk.1.ffn_up.weight twice")


def test_key_twice(gguf: Path) -> None:
    whole = gguf.read_bytes()
    gguf.write_bytes(whole.replace(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"))
    refused(gguf, CheckpointFormatError, "key 'tokenizer.ggml.eos_token_id' twice")


def test_text_that_is_not_utf8(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes().replace(b"{{ messages }}", b"{{ \xffessages }}"))
    refused(gguf, CheckpointFormatError, "a string that is not UTF-8")


def setting(key: str, kind: str, value: object) -> Extra:
    def extra(writer: Writer) -> None:
        writer.kv_data[0].pop(key, None)
        getattr(writer, f"add_{kind}")(key, value)

    return extra


def without(key: str) -> Extra:
    def extra(writer: Writer) -> None:
        del writer.kv_data[0][key]

    return extra


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (without("llama.block_count"), CheckpointFormatError, "no field llama.block_count"),
        (setting("llama.block_count", "string", "2"), CheckpointFormatError, "has llama.block_count '2'"),
        (
            setting("llama.attention.head_count_kv", "uint32", 3),
            CheckpointFormatError,
            "4 attention heads for 3 KV heads",
        ),
        (
            setting("llama.attention.head_count", "array", [4, 4]),
            CheckpointFormatError,
            "has llama.attention.head_count",
        ),
        (setting("llama.attention.key_length", "uint32", 96), UnsupportedError, "llama.rope.dimension_count 32"),
        (setting("llama.rope.dimension_count", "uint32", 16), UnsupportedError, "llama.rope.dimension_count 16"),
        (setting("llama.rope.scaling.type", "string", "yarn"), UnsupportedError, "rope.scaling.type 'yarn'"),
        (setting("llama.rope.scale_linear", "float32", 4.0), UnsupportedError, "rope.scale_linear 4.0"),
        (setting("llama.expert_count", "uint32", 8), UnsupportedArchitectureError, "has 8 experts"),
        (setting("split.count", "uint16", 3), UnsupportedError, "is one of 3 parts"),
        (setting("general.architecture", "string", "falcon"), UnsupportedArchitectureError, "architecture 'falcon'"),
        (setting("general.architecture", "array", ["llama"]), UnsupportedArchitectureError, "architecture"),
        (setting("general.alignment", "uint32", 48), CheckpointFormatError, "alignment 48"),
        (setting("tokenizer.ggml.bos_token_id", "uint32", 384), CheckpointFormatError, "bos_token_id 384"),
    ],
)
def test_metadata(originals: Path, tmp_path: Path, extra: Extra, error: type[PaitonError], message: str) -> None:
    refused(write_gguf(originals / "tiny", tmp_path / "x.gguf", extra=extra), error, message)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "attn_q.weight", "blk.0.output.weight"]
)
def test_tensors_that_a_llama_model_does_not_have(originals: Path, tmp_path: Path, name: str) -> None:
    path = write_gguf(
        originals / "tiny", tmp_path / "x.gguf", change=lambda weights: weights | {name: np.zeros(128, np.float32)}
    )
    refused(path, UnsupportedArchitectureError, f"tensor {name}")


def test_projection_that_is_not_made_of_heads(originals: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    path = write_gguf(
        originals / "tiny", tmp_path / "x.gguf", change=lambda weights: weights | {name: weights[name][:100].copy()}
    )
    refused(path, TensorShapeError, rf"tensor {name} .* has shape \[100, 128\]")
