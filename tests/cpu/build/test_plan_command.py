"""Plans of checkpoints without weights, layers that stand for others, and predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.outline import LLAMA_3_1_405B_FP8, write_outline
from paiton_aot import cli
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import lower
from paiton_aot.options import BuildOptions
from paiton_aot.predict.boot import boot_ledger
from paiton_aot.predict.cpu import AMOUNTS, Batch, Reading, amounts, fit, predict
from paiton_aot.predict.limits import all_reduce_seconds, limits_of
from paiton_aot.targets.cpu import plans as cpu_plans
from paiton_aot.targets.representative import representative
from paiton_artifacts.errors import CheckpointFormatError, CheckpointNotFoundError
from paiton_artifacts.plan import encode_plan
from paiton_kernels.gpu.devices import profile_named
from tests.make_checkpoints import tiny_llama

OPTIONS = BuildOptions(tp=8, act="fp8", kv="fp8", max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outline(tmp_path_factory.mktemp("405b"), LLAMA_3_1_405B_FP8)


def test_a_405b_is_planned_from_config_and_index_alone(
    outlined: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--tp", "8", "--act", "fp8", "--kv", "fp8", "--max-num-batched-tokens", "64"]
    assert cli.main(["plan", str(outlined), *flags, "--json", "-q", "--cache-dir", str(tmp_path)]) == 0
    plan = json.loads(capsys.readouterr().out)
    # 126 layers of 3,187,671,040 FP8 weights, and bf16 embedding and head of 128,512 padded rows, on eight ranks
    assert plan["tensor_bytes_per_rank"]["fp8_e4m3fn"] == 126 * 3187671040 // 8
    assert plan["tensor_bytes_per_rank"]["bf16"] == 2 * 2 * 128512 * 16384 // 8 + 2 * 16384 * (2 * 126 + 1)
    assert plan["memory_per_rank"]["kv_per_token"] == 126 * 2 * 128
    assert plan["key"] is None


def test_an_outline_says_of_every_tensor_what_the_weights_would(tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "whole", fp8_static=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((whole / "config.json").read_bytes())
    with open_checkpoint(whole) as stored:
        index = {"weight_map": dict.fromkeys(stored.names(), "absent.safetensors")}
    (bare / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(whole) as expected, open_checkpoint(bare, outline=True) as found:
        assert found.outlined
        assert not expected.outlined
        assert set(found.names()) == set(expected.names())
        for name in expected.names():
            assert (found.tensor(name).shape or (1,), found.tensor(name).dtype) == (
                expected.tensor(name).shape or (1,),
                expected.tensor(name).dtype,
            )
        assert [replace(t, parts=()) for t in lower(found, BuildOptions()).tensors] == [
            replace(t, parts=()) for t in lower(expected, BuildOptions()).tensors
        ]


def test_weights_that_are_not_there_are_neither_read_nor_built(outlined: Path, tmp_path: Path) -> None:
    with open_checkpoint(outlined, outline=True) as checkpoint, pytest.raises(CheckpointNotFoundError, match="weights"):
        checkpoint.tensor("lm_head.weight").read_rows(0, 1)
    with pytest.raises(CheckpointFormatError, match="none of the weights") as caught:
        open_checkpoint(outlined)
    assert "paiton-build plan" in (caught.value.hint or "")
    assert cli.main([str(outlined), "-o", str(tmp_path / "out"), "-q"]) == 6
    assert not (tmp_path / "out").exists()


def test_an_index_with_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    folder = write_outline(tmp_path, {**LLAMA_3_1_405B_FP8, "num_hidden_layers": 1})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.0.mlp.router.weight"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointFormatError, match=r"router\.weight"):
        open_checkpoint(folder, outline=True)


@pytest.mark.parametrize("tp", [1, 2])
def test_few_layers_give_the_plans_of_all(tmp_path: Path, tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_outline(
        tmp_path,
        {
            **LLAMA_3_1_405B_FP8,
            "num_hidden_layers": 9,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 8,
            "head_dim": 32,
        },
    )
    options = replace(OPTIONS, tp=tp, max_num_batched_tokens=16)
    with open_checkpoint(folder, outline=True) as checkpoint:
        short = lower(checkpoint, options)
        monkeypatch.setattr(cpu_plans, "representative", lambda program, _tensors: program)
        whole = lower(checkpoint, options)
    assert len({op.layer for op in representative(short.program, short.tensors).ops} - {None}) == 4
    assert [encode_plan(plan) for plan in short.cpu.plans] == [encode_plan(plan) for plan in whole.cpu.plans]


def test_all_reduces_are_predicted_near_the_published_ones() -> None:
    limits = limits_of(profile_named("mi300x"))
    for mebibytes, published in ((2, 28e-6), (16, 147e-6), (64, 426e-6)):
        assert all_reduce_seconds(mebibytes << 20, 8, limits) == pytest.approx(published, rel=0.15)
    assert all_reduce_seconds(32 << 10, 8, limits) < all_reduce_seconds(2 << 20, 8, limits)


def test_a_boot_waits_for_the_slower_of_storage_and_links() -> None:
    limits = limits_of(profile_named("mi300x"))
    slow, fast = (
        {stage.name: stage for stage in boot_ledger(50 * 10**9, 8, 20, rate, limits, 0.1, 0.02)}
        for rate in (10e9, 1e15)
    )
    assert slow["weights"].seconds == pytest.approx(40)
    assert fast["weights"].seconds == pytest.approx(50e9 / limits.copy_rate)
    assert slow["total"].end == pytest.approx(slow["golden check"].end)


def test_rates_are_found_again_and_predict_another_step(outlined: Path) -> None:
    with open_checkpoint(outlined, outline=True) as checkpoint:
        cpu = lower(checkpoint, OPTIONS).cpu
    variants = {variant.symbol: variant for variant in cpu.variants}
    forward = sorted((p for p in cpu.plans if p.family == "forward"), key=lambda plan: plan.tokens)
    reading = Reading([1e6, 1e9], [1e-5, 0.1])

    def step(batch: Batch) -> Any:
        plan = next(p for p in forward if p.tokens >= batch.rows and p.requests >= batch.requests)
        return amounts(plan, variants, batch, reading)

    truth = np.array([1e-6, 0.7, 4e-11, 1e-11, 1e-10, 1e-11, 1e-11, 1e-11])
    assert len(truth) == len(AMOUNTS)
    known = [
        step(Batch(requests, tokens, context))
        for requests, tokens in ((1, 1), (4, 1), (8, 1), (1, 16), (1, 32), (1, 64))
        for context in (0, 500)
    ]
    rates = fit(known, [float(amount @ truth) for amount in known])
    assert (rates >= 0).all()
    other = step(Batch(2, 8, 100))
    assert predict(other, rates) == pytest.approx(float(other @ truth), rel=0.05)


def test_reading_follows_the_caches_between_measured_sizes() -> None:
    reading = Reading([10.0, 30.0], [10.0, 90.0])  # 1 and 3 seconds a byte
    assert [reading.seconds_of(size) for size in (4, 10, 20, 30, 100)] == [4, 10, 40, 90, 300]


def test_a_step_reads_the_weights_of_its_decode_form_at_the_speed_of_all_that_it_goes_through(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path)) as checkpoint:
        cpu = lower(checkpoint, BuildOptions(weights="bf16", max_num_batched_tokens=64)).cpu
    variants = {variant.symbol: variant for variant in cpu.variants}
    head, layers = 2 * 384 * 128, 2 * 2 * 128 * (128 + 2 * 64 + 128 + 3 * 256)
    reading = Reading([head, head + layers], [head, 2 * (head + layers)])
    found = {}
    for tokens in (1, 64):
        plan = next(p for p in cpu.plans if p.family == "forward" and p.tokens == tokens)
        found[tokens] = dict(zip(AMOUNTS, amounts(plan, variants, Batch(1, tokens, 0), reading), strict=True))
    assert found[1]["decode: seconds of reading weights"] == pytest.approx(2 * (head + layers))
    assert found[64]["decode: seconds of reading weights"] == pytest.approx(2 * head)
    assert found[64]["prefill: multiply-adds"] == 64 * layers / 2


def test_predictions_go_with_a_plan(outlined: Path) -> None:
    assert cli.main([str(outlined), "-o", "unused", "--predict"]) == 2
    assert cli.main(["plan", str(outlined), "--storage-gbps", "5"]) == 2
