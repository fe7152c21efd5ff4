"""Boot and step on a real bundle: what kernels would trust is checked first, and the ledger tells what happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paiton_artifacts.errors import (
    GoldenMismatchError,
    OutOfMemoryError,
    PaitonError,
    UnsupportedTargetError,
    UsageError,
)
from paiton_artifacts.schema import Golden, GoldenLogit, GoldenStep
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.goldens import check_golden
from paiton_runtime.ledger import STAGES
from paiton_runtime.model import Chunk, Model, Sampling

VOCABULARY = 384


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with boot(tiny_bundle, BootOptions(threads=2)) as booted:
        yield booted


def test_the_ledger_has_every_stage(tiny_bundle: Path) -> None:
    with boot(tiny_bundle) as model:
        rows = {row.stage: row for row in model.ledger.in_order()}
    assert list(rows) == [stage for stage in STAGES if stage not in {"tokenizer", "first token"}]
    assert all(0.0 <= row.start <= row.end <= rows["total"].end for row in rows.values())
    assert rows["weights"].bytes == sum(blob.size for blob in model.manifest.blobs)
    assert "compiler calls: 0" in rows["graph compilation"].note
    assert rows["warm-up"].note == "0 steps before the first request"
    assert rows["golden check"].note == "1 prompt(s), 2 steps"
    assert rows["golden check"].start >= max(rows["weights"].end, rows["graph compilation"].end)


def test_rows_come_in_the_order_of_the_batch(model: Model) -> None:
    """A ragged batch gives the rows that each request gives alone, bit for bit."""
    texts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    alone = [model.step([Chunk(text, 0, [0])]).logits(0).tolist() for text in texts]
    every = [model.step([Chunk(texts[2][: i + 1], 0, [0])]).logits(0).tolist() for i in range(5)]
    first, second, third = (Chunk(text, 0, [block]) for block, text in enumerate(texts))
    result = model.step([first, replace(second, logits="none"), replace(third, logits="all")])
    assert len(result.sampled) == 1 + 5
    assert result.logits(0).tolist() == alone[0]
    assert [result.logits(1 + i).tolist() for i in range(5)] == every
    assert result.sampled == [row.index(max(row)) for row in [alone[0], *every]]
    with pytest.raises(UsageError, match="row 6 of a step that has 6"):
        result.logits(6)


def test_a_step_without_logits_samples_nothing(model: Model) -> None:
    assert model.step([Chunk([1, 2], 0, [0], logits="none")]).sampled == []


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (Chunk([], 0, [0]), "without tokens"),
        (Chunk([VOCABULARY], 0, [0]), f"0 .. {VOCABULARY - 1}"),
        (Chunk([-2], 0, [0]), "token id"),
        (Chunk([-1], 0, [0], slot=1), "token id"),
        (Chunk([1], 0, [0], slot=32), "slot 32 outside 0 .. 31"),
        (Chunk([1], 0, [0], sampling=Sampling(bias=((VOCABULARY, 1.0),))), "a biased token outside"),
        (Chunk([1], 0, [0], sampling=Sampling(bias=((1, 1.0),) * 301)), "301 biased tokens exceed"),
        (Chunk([1], -1, [0]), "positions -1 .. 0"),
        (Chunk([1], 256, range(20)), "positions 256 .. 257 leave the context of 256"),
        (Chunk([1] * 17, 0, [0]), "1 KV blocks given for 17 positions, which need 2"),
        (Chunk([1], 0, [-1]), "a KV block outside"),
        (Chunk([1], 16, [0, 1 << 30]), "a KV block outside"),
        (Chunk([1] * 33, 0, range(3), logits="all"), "33 logits rows exceeds the plans' 32"),
        (Chunk([1] * 513, 0, range(40)), "513 tokens exceeds the plans' 512"),
    ],
)
def test_nothing_outside_a_region_reaches_a_kernel(model: Model, chunk: Chunk, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.step([chunk])


def test_too_many_requests_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="33 requests exceeds the plans' 32"):
        model.step([Chunk([1], 0, [0], logits="none")] * 33)


def test_a_slots_last_token_is_fed_on_the_device(model: Model) -> None:
    first = model.step([Chunk([5, 6, 7], 0, [0], slot=3)]).sampled[0]
    expected = model.step([Chunk([first], 3, [0], slot=3)]).logits(0).tolist()
    assert model.step([Chunk([5, 6, 7], 0, [1], slot=4), Chunk([9], 0, [2], slot=3)]).sampled[0] == first
    assert model.step([Chunk([-1 - 4], 3, [1], slot=4)]).logits(0).tolist() == expected


def test_masks_are_needed_and_have_a_size(model: Model) -> None:
    step = model.prepare([Chunk([5, 6, 7], 0, [0], masked=True)])
    with pytest.raises(UsageError, match="1 rows of the step wait"):
        model.run(step)
    model.forward(step)
    with pytest.raises(UsageError, match="mask of row 0 has 0 bytes instead of"):
        model.sample(step)
    width = 4 * -(-VOCABULARY // 32)
    only = bytearray(width)
    only[123 // 8] = 1 << 123 % 8
    assert model.sample(step, {0: bytes(only)}).sampled == [123]


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"sampling": Sampling(top_k=5, top_p=0.5, min_p=0.1, seed=7)}, True),  # of no account at temperature 0
        ({"sampling": Sampling(1e-42)}, False),
        ({"sampling": Sampling(repetition_penalty=1.1)}, False),
        ({"sampling": Sampling(presence_penalty=-0.5)}, False),
        ({"sampling": Sampling(frequency_penalty=0.5)}, False),
        ({"sampling": Sampling(top_logprobs=0)}, False),
        ({"sampling": Sampling(bias=((3, 1.0),))}, False),
        ({"masked": True}, False),
        ({"targets": [9]}, False),
    ],
)
def test_steps_that_only_ask_for_the_most_probable_tokens_are_known(
    model: Model, change: dict[str, Any], *, plain: bool
) -> None:
    greedy = Chunk([5, 6, 7], 0, [0], slot=1)
    other = replace(Chunk([9], 0, [1], slot=2), **change)
    assert model.prepare([greedy, other]).plain_greedy == plain
    assert model.prepare([greedy, replace(other, logits="none", targets=None, masked=False)]).plain_greedy


def test_a_history_must_exist(model: Model) -> None:
    for slot, tokens, words in ((32, [1], "slot 32"), (0, [], "0 tokens"), (0, [VOCABULARY], "token id")):
        with pytest.raises(UsageError, match=words):
            model.load_history(slot, tokens, [])


def test_a_closed_model_runs_no_step(tiny_bundle: Path) -> None:
    model = boot(tiny_bundle, BootOptions(golden_check=False))
    model.close()
    model.close()
    with pytest.raises(PaitonError, match="closed"):
        model.step([Chunk([1], 0, [0])])


def test_levels_run_their_own_code(tiny_bundle: Path) -> None:
    """Two levels in one process: each gives its own bits, whichever was loaded first."""
    rows = []
    for level in ("generic", "x86-64-v3", "generic"):
        with boot(tiny_bundle, BootOptions(level=level)) as model:
            assert model.level == level
            assert f"memfd:cpu-{level}" in Path("/proc/self/maps").read_text()
            rows.append(model.step([Chunk([1, 2, 3], 0, [0])]).logits(0).tolist())
        assert f"memfd:cpu-{level}" not in Path("/proc/self/maps").read_text()
    assert rows[0] == rows[2]
    assert rows[1] == pytest.approx(rows[0], abs=0.05)


def test_wishes_that_cannot_be_granted(tiny_bundle: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match="x86-64-v9"):
        boot(tiny_bundle, BootOptions(level="x86-64-v9"))
    with pytest.raises(OutOfMemoryError, match="KV cache of 1,000,000,000,000 tokens"):
        boot(tiny_bundle, BootOptions(kv_tokens=10**12))
    with (
        boot(tiny_bundle, BootOptions(kv_tokens=1, golden_check=False)) as small,
        pytest.raises(OutOfMemoryError, match="needs 18 tokens of KV cache, which holds 16"),
    ):
        check_golden(small, Golden(True, (1,) * 16, (GoldenStep(1, ()),) * 2, 1.0), "golden 0")


def winners(model: Model) -> list[GoldenLogit]:
    """Returns the model's three largest logits after a prompt, best first."""
    row = model.step([Chunk([1, 2, 3], 0, [0])]).logits(0).tolist()
    best = sorted(range(VOCABULARY), key=lambda token: -row[token])[:3]
    return [GoldenLogit(token, row[token]) for token in best]


def golden(top: Sequence[GoldenLogit], tolerance: float) -> Golden:
    return Golden(True, (1, 2, 3), (GoldenStep(top[0].token, tuple(top)),), tolerance)


def shifted(logit: GoldenLogit, by: float) -> GoldenLogit:
    return replace(logit, logit=logit.logit + by)


def test_goldens_are_met_within_their_tolerance(model: Model) -> None:
    top = winners(model)
    assert check_golden(model, golden([shifted(entry, 0.009) for entry in top], 0.01), "golden 7") == 1
    with pytest.raises(GoldenMismatchError, match=r"golden 7, step 0: logit of token \d+ is .* \(tolerance 0.01\)"):
        check_golden(model, golden([*top[:2], shifted(top[2], 0.011)], 0.01), "golden 7")
    with pytest.raises(GoldenMismatchError):
        check_golden(model, golden([shifted(entry, float("nan")) for entry in top], 0.01), "golden 7")


def test_another_winner_counts_beyond_the_margin_only(model: Model) -> None:
    """All logits are within the tolerance both times; the reference's first two are the model's, swapped."""
    first, second, _ = winners(model)
    gap = first.logit - second.logit
    assert gap > 0
    narrow = [shifted(second, 1.1 * gap), first]
    assert check_golden(model, golden(narrow, 2 * gap), "golden") == 1
    wide = [shifted(second, 1.9 * gap), shifted(first, -1.9 * gap)]
    with pytest.raises(GoldenMismatchError, match=f"token {first.token} wins, recorded is {second.token}"):
        check_golden(model, golden(wide, 2 * gap), "golden")
