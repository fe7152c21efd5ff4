"""The static ranking: what is out, what comes first, and predictions that follow the formula's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from paiton_kernels.gpu import ranking
from paiton_kernels.gpu.compile import CompiledKernel
from paiton_kernels.gpu.devices import PROFILES, Profile
from paiton_kernels.gpu.isa import IsaFacts, LoopFacts, MatrixKind
from paiton_kernels.gpu.spec import Config, Constant, GpuVariant, Grid, Step, Work
from tests.cpu.gpu_compile.families import SCALE

MI300X, H200 = PROFILES["mi300x"], PROFILES["h200"]
STEP = Step(1, 1)
STREAMING = Work(bytes=100 << 20, fp8_operations=200 << 20)
LOOP = LoopFacts(40, {16: 4096}, 0, {MatrixKind("mfma", "fp8"): 8}, 1 << 18, 0, 0)
FACTS = IsaFacts(100, LOOP.matrix, (LOOP,), 0, 0)


@dataclass(frozen=True, slots=True)
class Made:
    """A variant whose grid, work and code are made up."""

    blocks: int = 304
    work: Work = STREAMING
    workspace: int = 0
    stages: int = 2
    warps: int = 4
    number: int = 0

    @property
    def variant(self) -> GpuVariant:
        """The variant."""

        def grid(_values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
            return self.blocks, 1, 1

        def needs(_values: Mapping[str, Constant], _step: Step, _profile: Profile) -> dict[str, int]:
            return {"workspace": self.workspace, "semaphores": 1} if self.workspace else {}

        spec = replace(SCALE, grid=grid, work=lambda _values, _step, _profile: self.work, workspace=needs)
        return spec.variant(Config.of(self.warps, self.stages, BLOCK=self.number), COLUMNS=1, FAULT="NONE")

    def kernel(self, registers: int = 64, spills: int = 0, shared_bytes: int = 0) -> CompiledKernel:
        """Returns its code with these resources."""
        symbol = self.variant.symbol
        threads = 64 * self.warps
        return CompiledKernel(
            symbol, MI300X.target, symbol.encode(), "", shared_bytes, threads, (), 0, registers, 0, 0, spills, 0
        )

    def seconds(self, facts: IsaFacts = FACTS, registers: int = 64) -> float:
        """Returns its predicted time."""
        return ranking.predict(self.variant, self.kernel(registers), facts, STEP, MI300X).seconds


def best(
    *candidates: tuple[Made, CompiledKernel, IsaFacts], monkeypatch: pytest.MonkeyPatch
) -> tuple[GpuVariant, ranking.Prediction]:
    found = best_or_none(*candidates, monkeypatch=monkeypatch)
    assert found is not None
    return found


def best_or_none(
    *candidates: tuple[Made, CompiledKernel, IsaFacts], monkeypatch: pytest.MonkeyPatch
) -> tuple[GpuVariant, ranking.Prediction] | None:
    facts = {kernel.code: found for _, kernel, found in candidates}
    monkeypatch.setattr(ranking, "isa_of", lambda kernel: facts[kernel.code])
    kernels = {kernel.symbol: kernel for _, kernel, _ in candidates}
    return ranking.best([made.variant for made, _, _ in candidates], kernels, STEP, MI300X)


def test_a_streaming_kernel_takes_its_bytes_at_the_memory_rate() -> None:
    prediction = ranking.predict(Made(blocks=304 * 8).variant, Made().kernel(), FACTS, STEP, MI300X)
    streaming = (100 << 20) / (MI300X.memory_rate * ranking.MEMORY_EFFICIENCY)
    assert prediction.bound == "memory"
    assert streaming < prediction.seconds < streaming + 5e-6


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Made(blocks=304), Made(blocks=18)),  # too few blocks to keep the memory busy: splitting K helps
        (Made(blocks=38, stages=4), Made(blocks=38)),  # more loads ahead
        (Made(blocks=304, workspace=1 << 10), Made(blocks=304, workspace=64 << 20)),  # partial results cost
        (Made(blocks=304), Made(blocks=304, workspace=1 << 10)),  # so does the last block's wait
        (Made(stages=2), Made(stages=1)),  # loads and products overlap
    ],
)
def test_what_is_faster_is_predicted_to_be(better: Made, worse: Made) -> None:
    assert better.seconds() < worse.seconds()


def test_products_take_the_matrix_units_time() -> None:
    dense = IsaFacts(100, LOOP.matrix, (replace(LOOP, operations=1 << 24),), 0, 0)
    fp8, bf16 = Work(1 << 20, 1 << 40), Work(1 << 20, 0, 1 << 40)
    once = Made(work=fp8).seconds(dense)
    assert once == pytest.approx((1 << 40) / (MI300X.fp8_rate * ranking.MATRIX_EFFICIENCY), rel=0.01)
    assert Made(work=bf16).seconds(dense) == pytest.approx(2 * once, rel=0.01)
    assert Made(work=fp8, blocks=305).seconds(dense) == pytest.approx(2 * once, rel=0.01), "a second wave of one block"


def test_rows_that_pad_a_tile_count() -> None:
    padded = IsaFacts(100, LOOP.matrix, (replace(LOOP, operations=LOOP.operations * 64),), 0, 0)
    assert Made().seconds(padded) > 2 * Made().seconds()


def test_instructions_count() -> None:
    long = IsaFacts(10_000, LOOP.matrix, (replace(LOOP, instructions=9_000),), 0, 0)
    assert Made().seconds(long) > 2 * Made().seconds()


def test_registers_count_where_blocks_must_share_a_unit() -> None:
    few_loads = IsaFacts(100, LOOP.matrix, (replace(LOOP, loads={16: 512}),), 0, 0)
    assert Made(blocks=304 * 8).seconds(few_loads, 64) < Made(blocks=304 * 8).seconds(few_loads, 512)


def test_spills_are_out_whatever_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Made(blocks=304 * 8), Made(blocks=2, number=1)
    chosen, _ = best((fast, fast.kernel(spills=1), FACTS), (slow, slow.kernel(), FACTS), monkeypatch=monkeypatch)
    assert chosen.symbol == slow.variant.symbol


def test_what_does_not_fit_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Made(blocks=304 * 8), Made(blocks=2, number=1)
    large = fast.kernel(shared_bytes=MI300X.shared_per_unit + 1)
    chosen, _ = best((fast, large, FACTS), (slow, slow.kernel(), FACTS), monkeypatch=monkeypatch)
    assert chosen.symbol == slow.variant.symbol


def test_of_those_that_spill_there_is_no_best(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    assert best_or_none((made, made.kernel(spills=3), FACTS), monkeypatch=monkeypatch) is None


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (IsaFacts(100, LOOP.matrix, (replace(LOOP, loads={4: 4096, 16: 4096}),), 0, 0), "50% of their bytes"),
        (IsaFacts(100, {}, (replace(LOOP, matrix={MatrixKind("mma", "f16"): 8}),), 0, 0), "no FP8 matrix"),
        (IsaFacts(100, LOOP.matrix, (replace(LOOP, promotions=8),), 0, 0), "not promoted"),
    ],
)
def test_shortcomings_lose_against_none(faulty: IsaFacts, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(says in found for found in ranking.shortcomings(faulty, Made().work))
    assert ranking.shortcomings(FACTS, Made().work) == []
    fast, slow = Made(blocks=304 * 8), Made(blocks=2, number=1)
    chosen, _ = best((fast, fast.kernel(), faulty), (slow, slow.kernel(), FACTS), monkeypatch=monkeypatch)
    assert chosen.symbol == slow.variant.symbol
    chosen, _ = best((fast, fast.kernel(), faulty), monkeypatch=monkeypatch)
    assert chosen.symbol == fast.variant.symbol, "better than nothing"


def test_the_first_of_equals_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Made(number=2), Made(number=1)
    chosen, prediction = best((first, first.kernel(), FACTS), (second, second.kernel(), FACTS), monkeypatch=monkeypatch)
    assert chosen.symbol == first.variant.symbol
    assert prediction.seconds == second.seconds()


def test_kernels_without_loops_are_ranked_by_bytes() -> None:
    plain = IsaFacts(50, {}, (), 0, 0)
    assert Made(work=Work(1 << 20)).seconds(plain) < Made(work=Work(1 << 30)).seconds(plain)
