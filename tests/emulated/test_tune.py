"""`paiton-build tune` on a stand-in device: the whole path but the times, which mean nothing there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paiton_aot import tune as tune_module
from paiton_aot.options import BuildOptions
from paiton_aot.tune import TuneResult, tune
from paiton_aot.tune_bench import Bench, Protocol, opened, profile_of
from paiton_aot.tune_command import model_requests, read_requests, tune_command
from paiton_aot.tune_operands import Operand, Operands, measurable, operands_of
from paiton_artifacts.errors import (
    CompilerError,
    DeviceFaultError,
    DeviceNotFoundError,
    UnsupportedTargetError,
    UsageError,
    VerificationError,
)
from paiton_artifacts.user_cache import user_cache_dir
from paiton_kernels.gpu.devices import PROFILES, TARGETS
from paiton_kernels.gpu.expert_linear import EXPERT_LINEAR
from paiton_kernels.gpu.families import FAMILIES
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.spec import Constant, Step
from paiton_kernels.gpu.tuning import Request, choose
from paiton_kernels.gpu.tuning_table import read_table
from paiton_runtime.drivers.device_launch import DeviceProperties, KernelLaunch
from tests.emulated.conftest import MakeHip
from tests.emulated.standin.hip import MI300X, MI355X, HipStandIn

GFX942, PROFILE = TARGETS["hip:gfx942"], PROFILES["mi300x"]
QUICK = Protocol(warm_up=0, repeats=1, run_seconds=0, rotate_bytes=0)
SMALL = replace(PROFILE, compute_units=4)
"""Persistent kernels launch a block for each unit, idle or not: with few of them the emulator is soon done."""

NORM_CONSTANTS: dict[str, Constant] = {"HIDDEN": 576, "ROWS": "TOKENS", "OUT": "BF16", "SCALE": "NONE", "CLEAR": 0}
NORM_REQUEST = Request(NORM, tuple(NORM_CONSTANTS.items()), Step(4, 2))

LINEAR_CONSTANTS: dict[str, Constant] = {
    "N": 64,
    "K": 128,
    "ROW_STRIDE": 128,
    "ROWS": "TOKENS",
    "A": "BF16",
    "A_SCALE": "NONE",
    "WEIGHT": "FP8",
    "EPILOGUE": "STORE",
    "OUT": "FP32",
    "AMAX": 0,
    "Q_HEADS": 0,
    "KV_HEADS": 0,
    "HEAD_DIM": 0,
    "KV": "BF16",
}
ROPE: dict[str, Constant] = {"EPILOGUE": "ROPE", "Q_HEADS": 4, "KV_HEADS": 1, "HEAD_DIM": 32, "KV": "FP8"}
ROPE_CONSTANTS: dict[str, Constant] = {**LINEAR_CONSTANTS, **ROPE, "N": 192, "OUT": "BF16"}
HEADS: dict[str, Constant] = {"Q_HEADS": 4, "KV_HEADS": 2, "HEAD_DIM": 64}
ATTENTION_CONSTANTS: dict[str, Constant] = {**HEADS, "KV": "FP8", "OUT": "BF16", "AMAX": 0}
EXPERT_FAMILIES = ("route", "expert_linear", "expert_sum")
EXPERTS: dict[str, Constant] = {"EXPERTS": 8, "TOP_K": 2}
EXPERT_CONSTANTS: dict[str, Constant] = {
    **{name: LINEAR_CONSTANTS[name] for name in EXPERT_LINEAR.constants if name in LINEAR_CONSTANTS},
    **EXPERTS,
    "INPUT": "ENTRIES",
}
ROUTE_CONSTANTS: dict[str, Constant] = {
    **EXPERTS,
    "HIDDEN": 256,
    "ROW_STRIDE": 256,
    "NORMALISE": 1,
    "OUT": "FP8",
    "AMAX": 0,
    "CLEAR": 0,
    "TILE": 16,
    "ORDER": 1,
}


def register_all(standin: HipStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers every code object with its assembly just before it is loaded."""
    load = Bench.load

    def registering(self: Bench, kernel: Any, stack: Any) -> int:
        standin.code.register(kernel.code, kernel.assembly)
        return load(self, kernel, stack)

    monkeypatch.setattr(Bench, "load", registering)


@pytest.fixture
def standin(make_hip: MakeHip, monkeypatch: pytest.MonkeyPatch) -> HipStandIn:
    made = make_hip(MI300X)
    register_all(made, monkeypatch)
    return made


def run(requests: Sequence[Request], tmp_path: Path, candidates: int = 2, *, resume: bool = False) -> TuneResult:
    with opened(GFX942, 0) as bench:
        output = tmp_path / "table.json"
        return tune(requests, bench, GFX942, SMALL, output, user_cache_dir(), QUICK, candidates, resume=resume)


@pytest.mark.usefixtures("standin")
def test_what_is_measured_is_what_the_build_then_uses(tmp_path: Path) -> None:
    result = run([NORM_REQUEST], tmp_path, candidates=0)
    (made,) = result.measured
    assert made.measured == len(NORM_REQUEST.space(PROFILE)) > 1
    entry = made.entry
    assert entry.provenance == "measured on AMD Instinct MI300X, HIP 7.2.54321"
    assert entry.microseconds > 0
    table = read_table(tmp_path / "table.json", PROFILE)
    assert list(table.entries) == [("norm", "h576_bf16", made.bucket)]
    choices = choose([NORM_REQUEST], GFX942, PROFILE, user_cache_dir(), [tmp_path / "table.json"])
    assert choices[NORM_REQUEST].source == "measured"
    assert choices[NORM_REQUEST].config == entry.config


@pytest.mark.parametrize(
    ("family", "constants", "step"),
    [
        ("linear", LINEAR_CONSTANTS, Step(8, 4)),
        ("linear", ROPE_CONSTANTS, Step(5, 2, context=40)),
        ("linear", {**LINEAR_CONSTANTS, "EPILOGUE": "SILU", "OUT": "FP8", "A": "FP8", "A_SCALE": "ROW"}, Step(3, 3)),
        ("linear", {**LINEAR_CONSTANTS, "EPILOGUE": "ADD", "A_SCALE": "AMAX"}, Step(3, 3)),
        ("attention", ATTENTION_CONSTANTS, Step(6, 3, context=70)),
        ("embed", {"HIDDEN": 576, "ROW_STRIDE": 576}, Step(4, 4)),
        ("quantize", {"K": 1536}, Step(4, 4)),
        ("rope_table", {"HEAD_DIM": 64}, Step(64, 4)),
        ("route", ROUTE_CONSTANTS, Step(4, 4)),
        ("expert_linear", EXPERT_CONSTANTS, Step(4, 4)),
        ("expert_sum", {"HIDDEN": 576, "TOP_K": 2, "MODE": "STORE"}, Step(4, 4)),
    ],
    ids=["store", "rope", "silu", "add", "attention", "embed", "quantize", "rope_table", *EXPERT_FAMILIES],
)
@pytest.mark.usefixtures("standin")
def test_every_family(family: str, constants: Mapping[str, Constant], step: Step, tmp_path: Path) -> None:
    """Two configurations run, touch nothing outside of their operands, and compute the same finite numbers."""
    request = Request(FAMILIES[family], tuple(constants.items()), step)
    result = run([request], tmp_path)
    assert [made.measured for made in result.measured] == [2], result.measured[0].skipped


@pytest.mark.usefixtures("standin")
def test_requests_of_one_bucket_are_measured_once(tmp_path: Path) -> None:
    result = run([NORM_REQUEST, replace(NORM_REQUEST, step=Step(3, 2))], tmp_path)
    assert len(result.measured) == 1


def test_resume(standin: HipStandIn, tmp_path: Path) -> None:
    run([NORM_REQUEST], tmp_path)
    launched = standin.library.calls.count("hipModuleLaunchKernel")
    assert not run([NORM_REQUEST], tmp_path, resume=True).measured
    assert standin.library.calls.count("hipModuleLaunchKernel") == launched
    assert run([NORM_REQUEST], tmp_path).measured


@pytest.mark.usefixtures("standin")
def test_families_without_operands_are_left_to_the_ranking(tmp_path: Path) -> None:
    sampling = [spec for spec in FAMILIES.values() if not measurable(spec) and spec.constants == ("VOCAB",)]
    requests = [Request(spec, (("VOCAB", 1000),), Step(2, 2)) for spec in sampling]
    result = run(requests, tmp_path)
    assert result.unmeasured == {made.spec.family for made in requests if len(made.space(PROFILE)) > 1} != set()
    assert not (tmp_path / "table.json").exists()


@pytest.mark.usefixtures("standin")
def test_a_configuration_that_computes_something_else_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = Bench.read, []

    def wrong(self: Bench, address: int, size: int) -> bytes:
        seen.append(address)
        return read(self, address, size) if len(seen) == 1 else bytes(size)

    monkeypatch.setattr(Bench, "read", wrong)
    with pytest.raises(VerificationError, match=r"out of kernel norm_h576_bf16_.* differs from that of norm_h576"):
        run([NORM_REQUEST], tmp_path)


@pytest.mark.usefixtures("standin")
def test_a_configuration_that_the_device_refuses_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = NORM_REQUEST.space(PROFILE)[0]
    load = Bench.load

    def refused(self: Bench, kernel: Any, stack: Any) -> int:
        if kernel.symbol == NORM_REQUEST.variant(first).symbol:
            self.library.check(701, "launching it")
        return load(self, kernel, stack)

    monkeypatch.setattr(Bench, "load", refused)
    (made,) = run([NORM_REQUEST], tmp_path).measured
    assert made.entry.config == NORM_REQUEST.space(PROFILE)[1]
    assert "hipErrorLaunchOutOfResources (701)" in made.skipped[NORM_REQUEST.variant(first).symbol]


@pytest.mark.usefixtures("standin")
def test_no_configuration_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Bench, _kernel: Any, _stack: Any) -> int:
        self.library.check(701, "launching it")
        return 0

    monkeypatch.setattr(Bench, "load", refused)
    with pytest.raises(CompilerError, match=r"no configuration of kernel norm \(h576_bf16\) runs on AMD"):
        run([NORM_REQUEST], tmp_path)


def test_a_crash_names_the_kernel(standin: HipStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operand is too small: the error names the kernel, and what was measured before is kept."""
    run([NORM_REQUEST], tmp_path)

    def too_small(request: Request, step: Step) -> Operands:
        operands = operands_of(request, step)
        operands.memory["x"] = Operand(16)
        return operands

    monkeypatch.setattr(tune_module, "operands_of", too_small)
    other = replace(NORM_REQUEST, constants=tuple({**NORM_CONSTANTS, "HIDDEN": 1024}.items()))
    with pytest.raises(
        DeviceFaultError, match=r"kernel norm_h1024_bf16_\w+ crashed: .*hipErrorIllegalAddress"
    ) as caught:
        run([other], tmp_path)
    assert "--resume" in caught.value.hint
    assert len(read_table(tmp_path / "table.json", PROFILE).entries) == 1
    standin.machine.forget()


@pytest.mark.usefixtures("standin")
def test_streamed_operands_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read from as many copies as exceed the cache, activations always from the same place."""
    seen: list[Sequence[KernelLaunch]] = []

    def measure(_self: Bench, launches: Sequence[KernelLaunch], _protocol: Protocol) -> float:
        seen.append(launches)
        return 1.0

    monkeypatch.setattr(Bench, "measure", measure)
    request = Request(FAMILIES["linear"], tuple(LINEAR_CONSTANTS.items()), Step(4, 4))
    with opened(GFX942, 0) as bench:
        protocol = replace(QUICK, rotate_bytes=5 * 64 * 128)
        tune([request], bench, GFX942, PROFILE, tmp_path / "t.json", user_cache_dir(), protocol, 2)
    pointers = [bytes(launch.arguments.packed) for launch in seen[0]]
    assert len(pointers) == 5
    weight, a = ([packed[8 * place : 8 * place + 8] for packed in pointers] for place in (3, 1))
    assert len(set(weight)) == 5
    assert len(set(a)) == 1


def test_copies_are_bounded_by_caches_and_memory(make_hip: MakeHip) -> None:
    make_hip(replace(MI300X, memory_bytes=1 << 30))
    with opened(GFX942, 0) as bench:
        assert bench.copies_of(0, Protocol(), PROFILE) == 1
        assert bench.copies_of(16 << 20, Protocol(), PROFILE) == 32  # twice the 256 MiB behind the L2
        assert bench.copies_of(400 << 20, Protocol(), PROFILE) == 1  # no room for a second
        assert bench.copies_of(200 << 20, Protocol(), PROFILE) == 2


def test_operands_hold_no_codes_that_are_nan_anywhere() -> None:
    for constants in (LINEAR_CONSTANTS, {**LINEAR_CONSTANTS, "A": "FP8", "A_SCALE": "ROW"}):
        operands = operands_of(Request(FAMILIES["linear"], tuple(constants.items()), Step(8, 4)), Step(8, 4))
        codes = np.frombuffer(operands.memory["weight"].pattern, np.uint8)
        assert not np.isin(codes, [0x7F, 0x80, 0xFF]).any()
        assert len(np.unique(codes)) > 100


def test_large_operands_repeat_their_pattern(make_hip: MakeHip) -> None:
    make_hip(MI300X)
    with opened(GFX942, 0) as bench, ExitStack() as stack:
        address = bench.place(Operand(1000, b"abcdefg"), stack)
        assert bench.read(address, 1000) == (b"abcdefg" * 143)[:1000]


# What can be wrong with the machine


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/nowhere/libamdhip64.so")
    with pytest.raises(DeviceNotFoundError, match="hip driver library does not load"):
        opened(GFX942, 0).__enter__()


@pytest.mark.usefixtures("standin")
def test_no_such_device() -> None:
    with pytest.raises(DeviceNotFoundError, match="there is no device 3, only 1"):
        opened(GFX942, 3).__enter__()


def test_another_instruction_set(make_hip: MakeHip) -> None:
    make_hip(MI355X)
    with pytest.raises(UnsupportedTargetError, match=r"AMD Instinct MI355X \(hip:gfx950\)") as caught:
        opened(GFX942, 0).__enter__()
    assert caught.value.hint.startswith("tune with --target hip:gfx950")


def properties(**changes: Any) -> DeviceProperties:
    plain = DeviceProperties(0, "a device", "cuda:sm_90", 150_754_820_096, 132, 32, 227 << 10, 50 << 20)
    return replace(plain, **changes)


def test_the_profile_is_found_by_size() -> None:
    assert profile_of(properties(), None).name == "h200"
    assert profile_of(properties(memory_bytes=85 * 10**9), None).name == "h100"
    assert profile_of(properties(compute_units=78), None).name == "h20"
    with pytest.raises(UsageError, match="a device has 20 compute units"):
        profile_of(properties(compute_units=20), None)


def test_a_profile_that_this_device_is_not() -> None:
    with pytest.raises(UnsupportedTargetError, match="profile h300 is unknown"):
        profile_of(properties(), "h300")
    with pytest.raises(UsageError, match="profile mi300x is a device of hip:gfx942"):
        profile_of(properties(), "mi300x")
    with pytest.raises(UsageError, match="profile h20 has 78 compute units, a device has 132"):
        profile_of(properties(), "h20")


# The command


def shapes(tmp_path: Path, *items: Any) -> Path:
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(list(items)), encoding="utf-8")
    return path


NORM_ITEM = {"family": "norm", "constants": NORM_CONSTANTS, "tokens": 4, "requests": 2}


@pytest.mark.usefixtures("standin")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    words = ["--shapes", shapes(tmp_path, NORM_ITEM), "--target", "hip:gfx942", "-o", table]
    assert tune_command([*map(str, words), "--repeats", "1", "--warm-up", "0", "--candidates", "2"]) == 0
    assert "norm h576_bf16" in capsys.readouterr().err
    document = json.loads(table.read_bytes())
    assert (document["profile"], document["target"]) == ("mi300x", "hip:gfx942")
    assert document["compiler"].startswith("triton ")


def test_command_refuses_what_needs_no_device(tmp_path: Path) -> None:
    table = str(tmp_path / "table.json")
    listed = str(shapes(tmp_path, NORM_ITEM))
    with pytest.raises(UsageError, match="either a model or --shapes"):
        tune_command(["--target", "hip:gfx942", "-o", table])
    with pytest.raises(UnsupportedTargetError, match="target hip:gfx1 is unknown"):
        tune_command(["--shapes", listed, "--target", "hip:gfx1", "-o", table])
    with pytest.raises(UnsupportedTargetError, match="profile mi1 is unknown"):
        tune_command(["--shapes", listed, "--target", "hip:gfx942", "--profile", "mi1", "-o", table])
    with pytest.raises(UsageError, match="--repeats must be at least 1"):
        tune_command(["--shapes", listed, "--target", "hip:gfx942", "-o", table, "--repeats", "0"])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({**NORM_ITEM, "family": "normal"}, "kernel 'normal' is unknown"),
        ({**NORM_ITEM, "constants": {}}, "kernel norm has the constants HIDDEN"),
        ({**NORM_ITEM, "tokens": 0}, "tokens is 0, not a number above 0"),
        ({**NORM_ITEM, "depth": 1}, "does not have the fields"),
        ([], "does not have the fields"),
    ],
)
def test_shapes_that_say_something_else(item: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_requests(shapes(tmp_path, item))


def test_a_models_requests(tiny_checkpoint: Path) -> None:
    """What is tuned for a model is what its plans ask for."""
    requests = model_requests(tiny_checkpoint, BuildOptions(targets=("hip:gfx942",), act="fp8", kv="fp8"))
    families = {request.spec.family for request in requests}
    assert {"linear", "attention", "norm"} <= families
    for request in requests:
        if measurable(request.spec):
            known = operands_of(request, request.step)
            needed = {arg.name for arg in request.spec.args if not arg.pointer}
            assert needed <= known.scalars.keys()
