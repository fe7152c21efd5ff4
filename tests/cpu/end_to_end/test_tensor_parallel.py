"""Ranks hold their share and no more, and each one's weights matter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Model
from tests.conftest import CHECKPOINT_MAKER, Cache, make_checkpoints
from tests.independent_reader import read_bundle
from tests.reference import relative_error
from tests.teacher_forced import logits_of

IDS = [(13 * index + 2) % 400 for index in range(24)]


@pytest.fixture(scope="module")
def two_ranks(build_bundle: Callable[..., Path], tiny_checkpoint: Path) -> Path:
    return build_bundle("tiny-tp2", tiny_checkpoint, "--tp", "2")


def _is_sharded(tensor: dict[str, object]) -> bool:
    parts: list[dict[str, list[int]]] = tensor["parts"]  # type: ignore[assignment]
    return any(len({*part["source_row"]}) > 1 or len({*part["source_col"]}) > 1 for part in parts)


def test_a_blob_holds_its_share_and_what_is_replicated(two_ranks: Path, tiny_bundle: Path) -> None:
    whole = {tensor["name"]: tensor["size"] for tensor in read_bundle(tiny_bundle).manifest["tensors"]}
    manifest = read_bundle(two_ranks).manifest
    assert [blob["rank"] for blob in manifest["blobs"]] == [0, 1]
    for tensor in manifest["tensors"]:
        share = 2 if _is_sharded(tensor) else 1
        assert tensor["size"] <= whole[tensor["name"]] / share + 16 * tensor["shape"][0]
    assert sum(_is_sharded(tensor) for tensor in manifest["tensors"]) > len(manifest["tensors"]) / 3


@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_agree_with_one(
    tp: int, build_bundle: Callable[..., Path], tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    """Four ranks share two KV heads, each held twice, and pad the vocabulary."""
    several = build_bundle(f"tiny-tp{tp}", tiny_checkpoint, "--tp", str(tp))
    with boot(tiny_bundle) as one, boot(several) as model:
        expected, ours = logits_of(one, IDS), logits_of(model, IDS)
    assert relative_error(ours, expected) < 0.02


def test_eight_ranks_agree_with_one(build_bundle: Callable[..., Path], cache: Cache) -> None:
    """Eight ranks with a query head each, of which four share a KV head."""

    def make(folder: Path) -> None:
        make_checkpoints().tiny_llama(folder, heads=8, kv_heads=2)

    checkpoint = cache.folder("tiny-8-heads-hf", make, (CHECKPOINT_MAKER,))
    flags = ("--max-num-batched-tokens", "32")
    whole = build_bundle("tiny-8-heads", checkpoint, *flags)
    several = build_bundle("tiny-8-heads-tp8", checkpoint, "--tp", "8", *flags)
    with boot(whole) as one, boot(several) as model:
        expected, ours = logits_of(one, IDS), logits_of(model, IDS)
    assert relative_error(ours, expected) < 0.02


def test_corrupting_a_weight_of_rank_1_changes_the_logits(two_ranks: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(two_ranks, broken)
    manifest = read_bundle(two_ranks).manifest
    (down,) = (tensor for tensor in manifest["tensors"] if tensor["name"] == "layers.0.down_proj")
    with (broken / manifest["blobs"][1]["path"]).open("r+b") as file:
        os.pwrite(file.fileno(), b"\x77" * down["size"], down["offset"])
    with boot(two_ranks) as good:
        before = _greedy(good)
    with boot(broken, BootOptions(golden_check=False)) as bad:
        assert _greedy(bad) != before


def _greedy(model: Model) -> list[int]:
    """Returns the most likely token after every prefix."""
    tokens: list[int] = logits_of(model, IDS).argmax(axis=1).tolist()
    return tokens
