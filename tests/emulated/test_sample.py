"""``sample``: each launch and the whole chain, emulated, against float64."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from paiton_artifacts.errors import UnsupportedShapeError
from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import TARGETS, Target
from paiton_kernels.gpu.sample import SAMPLE_CHAIN, SAMPLE_SCRATCH
from paiton_kernels.gpu.sample_arithmetic import MAX_VOCAB, chunk_tokens
from paiton_kernels.gpu.sample_cases import STAGES, carried, chunked_scene, mixed_scene
from paiton_kernels.gpu.sample_history import HISTORY
from paiton_kernels.gpu.sample_scenes import Scene, new_scene
from paiton_kernels.gpu.sample_stages import Batch
from paiton_kernels.gpu.spec import GpuKernelSpec, Step
from paiton_kernels.sample import kept_tokens
from paiton_kernels.sample_reference import Row, best_tokens, processed_logits, rank_of, sampled_token
from tests.emulated.cdna import Kernel
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case, profile_of
from tests.numerics import assert_close

OUTPUTS = ("sampled", "sampled_rank", "last_token", "token_counts", "finished", "top_tokens")


def run_chain(scene: Scene, batch: Batch, target: Target, order: Literal["rev"] | None = None) -> Batch:
    """Returns a batch as the whole chain leaves it."""
    arrays = {name: array.copy() for name, array in batch.items()}
    profile = profile_of(target)
    for spec in SAMPLE_CHAIN:
        config = spec.space({"VOCAB": scene.vocab}, scene.step, profile)[0]
        variant = spec.variant(config, VOCAB=scene.vocab)
        kernel = compile_kernel(variant, target)
        arguments = [arrays[arg.name] if arg.pointer else arrays["logits"].shape[1] for arg in spec.args]
        types = list(variant.signature(target).values())
        grid = spec.grid(variant.values, scene.step, profile)
        emulated = Kernel(kernel.assembly, target.arch)
        emulated.launch(grid, arguments, types, config.num_warps, kernel.shared_bytes, order=order)
    return arrays


def check_outputs(scene: Scene, actual: Batch, expected: Batch) -> None:
    """Compares what the chain is for; scratch is compared launch by launch."""
    for name in OUTPUTS:
        assert np.array_equal(actual[name], expected[name]), name
    rows = len(scene.rows)
    assert_close(actual["sampled_logprob"][:rows], expected["sampled_logprob"][:rows], "f32")
    assert_close(actual["top_values"], expected["top_values"], "f32")


def continuous_scene(vocab: int, rows: int, seed: int) -> Scene:
    """Logits without ties, penalties that round, and random parameters."""
    random = np.random.default_rng(seed)

    def one_of(*values: float) -> float:
        return float(random.choice(values))

    parameters = [
        Row(
            temperature=one_of(0, 0.3, 1, 1.5),
            top_k=int(one_of(0, 5, 50, vocab // 3)),
            top_p=one_of(1, 0.5, 0.95, 0.999),
            min_p=one_of(0, 0, 0.02),
            repetition=one_of(1, 1.3),
            presence=one_of(0, 0.3),
            frequency=one_of(0, 0.1),
            seed=int(random.integers(1 << 62)),
            draw=int(random.integers(1 << 40)),
            top_logprobs=int(one_of(-1, 20)),
        )
        for _ in range(rows)
    ]
    logits = random.normal(0, one_of(1, 3), (rows, vocab)).astype(np.float32)
    return new_scene(f"continuous{vocab}", logits, parameters, seed)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("spec", [*SAMPLE_CHAIN, HISTORY], ids=lambda spec: spec.family)
def test_every_case(spec: GpuKernelSpec, target: Target, order: str | None) -> None:
    for case in spec.cases(target):
        check_case(spec, case, target, order=order)


@pytest.mark.parametrize(
    "scene",
    [chunked_scene(2049), continuous_scene(1000, 12, 1), continuous_scene(37, 8, 2), continuous_scene(17001, 4, 3)],
    ids=lambda scene: scene.name,
)
def test_the_chain_agrees_with_a_sort(scene: Scene) -> None:
    check_outputs(scene, run_chain(scene, scene.batch, AMD_TARGETS[0]), carried(scene, len(STAGES)))


def test_steps_follow_each_other_on_the_device() -> None:
    """What the first step leaves, in state and in scratch, is all that the second one has besides new draws."""
    target = AMD_TARGETS[0]
    scene = mixed_scene()
    first = run_chain(scene, scene.batch, target)
    rows = tuple(replace(row, draw=row.draw + 1) for row in scene.rows)
    second = Scene("second", scene.vocab, rows, {**first, "draw": first["draw"] + 1})
    actual = run_chain(second, second.batch, target)
    assert not np.array_equal(actual["sampled"], first["sampled"])
    check_outputs(second, actual, carried(second, len(STAGES)))


def test_a_token_depends_on_its_row_alone() -> None:
    """A row alone and the same row among others, in another order of waves, give the same bytes."""
    target = AMD_TARGETS[0]
    scene = chunked_scene(2049)
    together = run_chain(scene, scene.batch, target, "rev")
    for number in (2, 5):
        row = slice(number, number + 1)
        batch = {
            name: array if name in {"token_counts", "last_token", "finished", "mask", "positions"} else array[row]
            for name, array in scene.batch.items()
        }
        batch["counts"] = np.array([1, 1, 1, 0], np.int32)
        alone = run_chain(Scene("alone", scene.vocab, scene.rows[row], batch), batch, target)
        for name in ("sampled", "sampled_logprob", "sampled_rank", "processed", "top_values"):
            assert alone[name].tobytes() == together[name][row].tobytes(), name


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.arch)
@pytest.mark.parametrize("spec", [*SAMPLE_CHAIN, HISTORY], ids=lambda spec: spec.family)
def test_real_vocabularies_compile_without_spills(spec: GpuKernelSpec, target: Target) -> None:
    for vocab in (50257, 128256):
        config = spec.space({"VOCAB": vocab}, Step(32, 32), profile_of(target))[0]
        kernel = compile_kernel(spec.variant(config, VOCAB=vocab), target)
        assert (kernel.spills, kernel.scratch_bytes) == (0, 0)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.arch)
@pytest.mark.parametrize(("vocab", "rows"), [(50257, (1, 2, 1, 1, 1)), (128256, (2, 2, 1, 1, 1))])
def test_rows_are_read_sixteen_bytes_at_a_time(vocab: int, rows: tuple[int, ...], target: Target) -> None:
    """Rows of logits are padded, so an odd vocabulary is no exception; but its histories are."""
    for spec, rows_read in zip(SAMPLE_CHAIN, rows, strict=True):
        config = spec.space({"VOCAB": vocab}, Step(32, 32), profile_of(target))[0]
        kernel = compile_kernel(spec.variant(config, VOCAB=vocab), target)
        wide = re.findall(r"(?:global|buffer)_load_dwordx4\b|ld\.global\.v4\.b32\b", kernel.assembly)
        assert 4 * len(wide) * kernel.threads >= rows_read * chunk_tokens(vocab), kernel.symbol


def test_too_large_vocabularies_are_refused() -> None:
    for spec in SAMPLE_CHAIN:
        config = spec.space({"VOCAB": MAX_VOCAB + 1}, Step(1, 1), profile_of(AMD_TARGETS[0]))[0]
        with pytest.raises(UnsupportedShapeError, match="vocabulary of 262145 tokens"):
            spec.variant(config, VOCAB=MAX_VOCAB + 1).require(AMD_TARGETS[0])


def test_scratch_has_the_bytes_that_the_launches_use() -> None:
    scene = chunked_scene(2049)
    needed: dict[str, int] = {}
    for spec in SAMPLE_CHAIN:
        needed |= spec.workspace({"VOCAB": scene.vocab}, scene.step, profile_of(AMD_TARGETS[0]))
    assert needed == {name: scene.batch[name].nbytes for name in SAMPLE_SCRATCH}


def test_the_reference_penalises_as_documented() -> None:
    logits = np.array([4, -4, 4, -4, 4, np.nan], np.float32)
    in_prompt = -(1 << 31)
    history = np.array([0, in_prompt, in_prompt | 2, 3, 0, 0], np.int32)
    allowed = np.array([1, 1, 1, 1, 0, 1], bool)
    row = Row(repetition=2.0, presence=0.5, frequency=0.25)
    expected = [4, -8, 2 - 0.5 - 0.5, -8 - 0.75 - 0.5, -np.inf, -np.inf]
    assert processed_logits(logits, history, allowed, row).tolist() == expected
    bias = np.array([-np.inf, 12, -6, 0, 100, 100], np.float32)  # comes first: it decides which way repetition goes
    expected = [-np.inf, 8 / 2, -4 - 0.5 - 0.5, -8 - 0.75 - 0.5, -np.inf, -np.inf]
    assert processed_logits(logits, history, allowed, row, bias).tolist() == expected


def test_the_reference_drops_by_min_p_before_top_k() -> None:
    """Shares 4, 3, 1.9, 1: min_p 0.5 leaves two, so top_k = 3 finds nothing to drop, and top_p = 0.57 needs one."""
    logits = np.log(np.array([1, 4, 1.9, 3], np.float32))

    def drawn(row: Row) -> set[int]:
        return {sampled_token(logits, replace(row, temperature=1.0, draw=draw))[0] for draw in range(100)}

    assert drawn(Row()) == {0, 1, 2, 3}
    assert drawn(Row(top_k=3)) == {1, 2, 3}
    assert drawn(Row(min_p=0.5, top_k=3)) == {1, 3}
    assert drawn(Row(min_p=0.5, top_k=3, top_p=0.57)) == {1}
    assert set(kept_tokens(logits, 1.0, 3, 0.57).tolist()) == {1, 3}


def test_the_reference_ranks_equal_logits_by_id() -> None:
    logits = np.array([1, 3, np.nan, 3, -0.0, 0.0], np.float32)
    assert best_tokens(logits, 4).tolist() == [1, 3, 0, 4]
    assert [rank_of(logits, token) for token in range(6)] == [3, 1, 6, 1, 4, 4]
