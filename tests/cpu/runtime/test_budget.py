"""What fits is decided by arithmetic on the memory plan, and refused with its numbers."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from paiton_artifacts.errors import OutOfMemoryError, UsageError
from paiton_artifacts.schema import MemoryPlan
from paiton_runtime.budget import Budget, available_memory, plan_budget

MIB = 1 << 20
MEMORY = MemoryPlan(
    target="cpu",
    profile="any",
    compute_units=0,
    weights_bytes=100 * MIB,
    io_bytes=1 * MIB,
    io_input_bytes=0,
    scratch_bytes=10 * MIB,
    worker_scratch_bytes=2 * MIB,
    comm_bytes=5 * MIB,
    kv_block_tokens=16,
    kv_block_bytes=MIB,
    max_tokens=512,
    max_requests=4,
    max_blocks_per_request=8,
    logits_offset=0,
    logits_stride=100,
    io=(),
)
CONTEXT = 128  # tokens: 8 blocks
FIXED = 1 + 2 * (100 + 10 + 3 * 2 + 5)  # MiB, two ranks of three threads


def plan(available: int, kv_tokens: int | None = None) -> Budget:
    return plan_budget(MEMORY, tp=2, workers=3, max_model_len=CONTEXT, kv_tokens=kv_tokens, available=available * MIB)


@pytest.mark.parametrize(
    ("room", "blocks"),
    [
        (1000, 32),  # all four requests at full context
        (2 * 2 * 20, 20),  # half of what is left, over two ranks
        (2 * 8, 8),  # one request at least, even if that is all there is
    ],
)
def test_the_default_rule(room: int, blocks: int) -> None:
    budget = plan(FIXED + room)
    assert budget.kv_blocks == blocks
    assert budget.sizes.kv == blocks * MIB
    assert budget.sizes.scratch == 16 * MIB
    assert budget.total == (FIXED + 2 * blocks) * MIB


def test_a_wish_is_rounded_up_to_blocks() -> None:
    assert plan(1000, kv_tokens=17).kv_blocks == 2
    assert plan(1000, kv_tokens=16).kv_blocks == 1


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        plan(FIXED + 15)
    message = str(caught.value)
    for number in ((FIXED + 16) * MIB, 200 * MIB, 16 * MIB, (FIXED + 15) * MIB):
        assert f"{number:,}" in message
    assert "--kv-tokens 112 would fit" in message  # seven blocks for each of two ranks
    assert plan(FIXED + 15, kv_tokens=112).kv_blocks == 7
    with pytest.raises(OutOfMemoryError, match="smaller model"):
        plan(FIXED - 1)


def test_nothing_is_no_cache() -> None:
    with pytest.raises(UsageError, match="0 tokens"):
        plan(1000, kv_tokens=0)


def test_the_address_space_limit_counts() -> None:
    """A child with RLIMIT_AS sees no more than what the limit leaves."""
    program = "from paiton_runtime.budget import available_memory; print(available_memory())"
    limit = 400 * MIB

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, preexec_fn=restrict
    )
    assert 0 < int(out.stdout) < limit
    assert available_memory() > 0
