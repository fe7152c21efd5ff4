"""Plans of models whose layers differ: few launches, and no value overwritten before it is read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from paiton_aot.blob_layout import lay_out
from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.transformers_config import parse_config
from paiton_aot.models import ARCHITECTURES
from paiton_aot.models.storage import Storage
from paiton_aot.program import Program, RmsNorm
from paiton_aot.targets.cpu.lower import Lowering
from paiton_aot.targets.draft import Bucket, Draft, Scratch
from paiton_aot.targets.scratch import allocate
from paiton_aot.targets.shape import Shape
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor

FACTS = {
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}
"""Gemma 3 1B, with a smaller vocabulary and one KV head more."""


def _lowered(name: str, tp: int) -> tuple[Program, dict[str, Tensor], Shape]:
    config: ModelConfig = parse_config({**FACTS, "architectures": [f"{name}ForCausalLM"]}, {}, "config.json")
    dtype = SimpleNamespace(dtype="bf16")
    checkpoint: Any = SimpleNamespace(config=config, quantization=None, name=name, tensor=lambda _: dtype)
    storage = Storage("bf16", "bf16", "bf16", "bf16")
    program = ARCHITECTURES[config.architecture].program(checkpoint, storage)
    specs = ARCHITECTURES[config.architecture].weights(checkpoint, storage)
    tensors = {tensor.name: tensor for tensor in lay_out(specs, tp, config.kv_heads)}
    return program, tensors, Shape.of(config, tp, "bf16", (64, 8, 1024))


def _drafts(name: str, tp: int, tokens: int) -> list[Draft]:
    return Lowering(*_lowered(name, tp), Bucket(tokens, 1)).forward()


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("tokens", [1, 64])
def test_what_is_read_is_what_was_written(name: str, tp: int, tokens: int) -> None:
    """Follows who wrote each byte of the scratch region last, launch by launch."""
    drafts = _drafts(name.removesuffix("ForCausalLM"), tp, tokens)
    offsets, total = allocate(drafts)
    owner: dict[int, str] = {}  # by offset of a 64-byte line
    for draft in drafts:
        uses = [reference for reference in draft.references.values() if isinstance(reference, Scratch)]
        for use in uses:
            lines = range(offsets[use.value] // 64, -(-(offsets[use.value] + use.size) // 64))
            assert lines.stop * 64 <= total
            if use.access & Access.READ:
                assert {owner[line] for line in lines} == {use.value}, draft.variant.symbol
        for use in uses:
            if use.access & Access.WRITE:
                lines = range(offsets[use.value] // 64, -(-(offsets[use.value] + use.size) // 64))
                owner.update(dict.fromkeys(lines, use.value))


@pytest.mark.parametrize(
    ("name", "tp", "launches"),
    [
        ("Llama", 1, 5),
        ("Qwen2", 2, 7),
        ("Qwen3", 1, 6),
        ("Gemma2", 1, 7),
        ("Gemma2", 2, 7),
        ("Gemma3", 2, 8),
        ("Mixtral", 1, 7),
        ("Mixtral", 2, 9),
        ("Qwen3Moe", 1, 8),
    ],
)
def test_launches_of_a_decode_layer(name: str, tp: int, launches: int) -> None:
    assert sum(draft.layer == 1 for draft in _drafts(name, tp, 1)) == launches


def test_gemma_3_rotates_by_two_tables() -> None:
    symbols = [draft.variant.symbol for draft in _drafts("Gemma3", 1, 1)]
    assert symbols[:3] == ["rope_table_d256"] * 2 + [symbols[2]]
    tables = [draft.references["rope"] for draft in _drafts("Gemma3", 1, 1) if "rope" in draft.references]
    names = [table.value for table in tables if isinstance(table, Scratch)]
    assert names == (["rope.local"] * 5 + ["rope"]) * 2


def test_an_offset_that_no_kernel_adds_is_refused() -> None:
    program, tensors, shape = _lowered("Gemma", 1)
    norms = [replace(op, offset=0.5) if isinstance(op, RmsNorm) else op for op in program.ops]
    with pytest.raises(UnsupportedShapeError, match=r"norms that add 0.5"):
        Lowering(replace(program, ops=tuple(norms)), tensors, shape, Bucket(1, 1)).forward()
