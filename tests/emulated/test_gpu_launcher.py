"""What tests and benchmarks kernels on a real GPU, on a stand-in for one: packing, guards, cases, graphs, figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_device, gpu_kernels
from benchmarks.gpu_device import Bench
from paiton_artifacts.errors import UnsupportedError
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import TARGETS
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.rope_table import ROPE_TABLE
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, GpuVariant, Step
from tests.emulated.conftest import MakeCuda, MakeHip
from tests.emulated.standin.hip import MI300X
from tests.gpu.harness import best, cases_on, check_case, run_case, run_chain
from tests.gpu.launcher import Gpu, LoadedKernel, NoGpuError, checked_launch, open_gpu
from tests.gpu.test_graphs import test_a_replayed_graph_makes_the_bytes_of_its_launches_from_new_inputs as test_graph

__all__ = ["test_graph"]

GFX942 = TARGETS["hip:gfx942"]
NORM_CONSTANTS: dict[str, Constant] = {"HIDDEN": 576, "ROWS": "TOKENS", "OUT": "BF16", "SCALE": "NONE", "CLEAR": 0}


def norm_variant() -> GpuVariant:
    return NORM.variant(best(NORM, GFX942, Step(4, 1), **NORM_CONSTANTS).config, **NORM_CONSTANTS)


@pytest.fixture
def gpu(make_hip: MakeHip, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """An emulated MI300X; the stand-in is shown the assembly of what is loaded."""
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", "/absent/libcuda.so")
    standin = make_hip()
    opened = open_gpu(Path(os.environ["PAITON_CACHE"]))
    compile_variant = opened.compile

    def registered(variant: GpuVariant) -> CompiledKernel:
        kernel = compile_variant(variant)
        standin.code.register(kernel.code, kernel.assembly)
        return kernel

    monkeypatch.setattr(opened, "compile", registered)
    yield opened
    opened.close()


def test_the_device_is_recognised(gpu: Gpu) -> None:
    assert gpu.target is GFX942
    assert gpu.profile.name == "mi300x"


def test_nvidia_is_asked_first(make_cuda: MakeCuda, make_hip: MakeHip) -> None:
    standin, _ = make_cuda(), make_hip()
    with closing(open_gpu(Path(os.environ["PAITON_CACHE"]))) as opened:
        assert (opened.target.name, opened.profile.name) == ("cuda:sm_90", "h200")
        case, configs = next(cases_on(opened.target, QUANTIZE))
        run_case(opened, QUANTIZE, case, configs[0])
        variant = QUANTIZE.variant(configs[0], **case.constants)
    (launch,) = standin.launches
    assert launch.symbol == variant.symbol
    assert launch.grid == QUANTIZE.grid(variant.values, case.step, opened.profile)


@pytest.mark.parametrize("spec", [EMBED, NORM, QUANTIZE, ROPE_TABLE], ids=lambda spec: spec.family)
def test_cases_pass_through_the_driver(gpu: Gpu, spec: GpuKernelSpec) -> None:
    for case, configs in cases_on(gpu.target, spec):
        check_case(gpu, spec, case, configs[0])


def test_a_write_beside_an_array_is_found_out(gpu: Gpu) -> None:
    case = next(iter(EMBED.cases(gpu.target)))
    short = case.arrays["out"].ravel()[: 3 * int(case.constants["HIDDEN"]) - 4]
    call = best(EMBED, gpu.target, case.step, **case.constants)
    with pytest.raises(AssertionError, match="16 bytes beside an array"):
        run_chain(gpu, [call], case.step, {**case.arrays, "out": short}, case.scalars)


def loaded_norm() -> LoadedKernel:
    variant = norm_variant()
    return LoadedKernel(variant, compile_kernel(variant, GFX942), 7)


def test_arguments_lie_where_the_code_object_says() -> None:
    loaded = loaded_norm()
    values = {"counts": 0x100, "x": 0x7F0000000200, "weight": 0x300, "eps": 0.25, "out": 0x400}
    launch = checked_launch(loaded, GFX942, (4, 1, 1), values)
    by_name, raw = {arg.name: arg for arg in loaded.kernel.args}, bytes(launch.arguments.packed)
    assert len(raw) == loaded.kernel.args_bytes
    assert len(launch.arguments.pointers) == len(loaded.kernel.args) == len(NORM.args) + 2
    assert raw[by_name["x"].offset :][:8] == (0x7F0000000200).to_bytes(8, "little")
    assert raw[by_name["eps"].offset :][:4] == np.float32(0.25).tobytes()
    assert raw[by_name["rows"].offset :][:8] == bytes(8)
    assert (launch.function, launch.threads) == (7, 64 * loaded.variant.config.num_warps)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 1.0, "y": 16}, "has no argument y"),
        ({"counts": 16}, "needs eps"),
        ({"eps": 1.0, "x": 24}, "x is 24, not a multiple of 16"),
    ],
)
def test_wrong_arguments_are_refused(values: dict[str, int | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_launch(loaded_norm(), GFX942, (4, 1, 1), values)


def test_every_driver_says_why_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", "/absent/libcuda.so")
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/absent/libamdhip64.so")
    with pytest.raises(NoGpuError, match=r"cuda driver library.*/absent/libcuda\.so.*; .*hip.*/absent/libamdhip64\.so"):
        open_gpu(tmp_path)


def test_a_device_without_kernels_is_named(make_hip: MakeHip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", "/absent/libcuda.so")
    make_hip(replace(MI300X, name="AMD Instinct MI210", arch="gfx90a"))
    with pytest.raises(NoGpuError, match="AMD Instinct MI210 is hip:gfx90a, which no kernel is compiled for"):
        open_gpu(tmp_path)


def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", "/absent/libcuda.so")
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/absent/libamdhip64.so")
    monkeypatch.setattr("sys.argv", ["gpu_kernels"])
    with pytest.raises(SystemExit) as stopped:
        gpu_kernels.main()
    assert stopped.value.code == UnsupportedError.exit_code
    assert "needs a GPU: the cuda driver library does not load" in capsys.readouterr().err


def test_the_benchmark_fills_memory_and_frees_it(gpu: Gpu) -> None:
    bench, content = Bench(gpu), np.arange(7, dtype=np.uint8)
    with bench.scope():
        address = bench.place(content, 100)
        found = np.zeros(100, np.uint8)
        gpu.library.copy_to_host(found.ctypes.data, address, found.nbytes, gpu.stream)
        gpu.library.synchronise_stream(gpu.stream)
    assert np.array_equal(found, np.resize(content, 100))


def test_the_benchmark_compares_with_a_copy(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device, "WORK", tmp_path)
    for module in (gpu_device, gpu_kernels):
        monkeypatch.setattr(module, "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_device, "LAUNCHES", 2)
    monkeypatch.setattr(gpu_kernels, "PATTERN_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_kernels, "LINEARS", {"tiny": (64, 256)})
    monkeypatch.setattr(gpu_kernels, "DECODE_ROWS", (2,))
    bench = Bench(gpu, candidates=1)
    report = gpu_kernels.Report(bench.copy_rate())
    gpu_kernels.measure_decode(bench, report, "FP8")
    figures = report.sections["decode linear"]["tiny x2"]
    assert figures["GB/s"] == pytest.approx((256 * (64 + 2) + 4 * 64 * 2) / figures["us"] / 1e3, rel=1e-3)
    assert figures["of copy"] == pytest.approx(figures["GB/s"] * 1e9 / report.copy_rate, rel=1e-3)
