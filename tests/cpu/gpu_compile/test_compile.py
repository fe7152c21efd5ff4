"""GPU kernels compile to the same bytes anywhere, once; what cannot be launched is refused; nothing is left behind."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paiton_artifacts.errors import CompilerError, UnsupportedTargetError
from paiton_kernels.gpu import compile_cache
from paiton_kernels.gpu.compile import compile_all, compile_kernel
from paiton_kernels.gpu.compile_inputs import without_implicit_inputs
from paiton_kernels.gpu.compile_job import CompileJob, source_digest
from paiton_kernels.gpu.devices import TARGETS, Target
from paiton_kernels.gpu.spec import GpuVariant
from tests.conftest import python_environment
from tests.cpu.gpu_compile.families import ALL_TARGETS, AMD_TARGETS, NVIDIA_TARGETS, product, scale

GFX942 = TARGETS["hip:gfx942"]
FP8_TARGETS = tuple(target for target in ALL_TARGETS if target.fp8)

HOSTILE = {
    "PYTHONHASHSEED": "4711",
    "TRITON_DISABLE_LINE_INFO": "0",
    "TRITON_DEFAULT_FP_FUSION": "0",
    "TRITON_ALWAYS_COMPILE": "1",
    "TRITON_F32_DEFAULT": "tf32",
    "DISABLE_LLVM_OPT": "1",
    "DISABLE_PTXAS_OPT": "1",
    "PTXAS_OPTIONS": "--opt-level 0",
    "AMDGCN_USE_BUFFER_OPS": "0",
    "TRITON_HIP_USE_ASYNC_COPY": "0",
    "TRITON_HIP_USE_BLOCK_PINGPONG": "0",
}
"""An environment that changes what Triton makes, were it to see it."""


def digests(cache_dir: str) -> dict[str, str]:
    """Compiles in this process and in workers; returns the digests of the code by target."""
    found = {}
    for target in FP8_TARGETS:
        here = compile_kernel(product(), target)
        there = compile_all([product()], target, Path(cache_dir))[product().symbol]
        assert here == there
        found[target.name] = hashlib.sha256(here.code).hexdigest()
    return found


def run_python(program: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**python_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def leftovers(cache_dir: Path) -> list[str]:
    """Returns what is in the cache besides its entries."""
    return [path.name for path in (cache_dir / "gpu").iterdir() if path.suffix not in (".kernel", ".choice")]


def compilers() -> list[str]:
    """Returns the running children of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [pid for pid in children if b"compile_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_the_same_bytes_in_another_process_folder_and_environment(kernel_cache: Path, tmp_path: Path) -> None:
    expected = digests(str(kernel_cache))
    elsewhere = tmp_path / "another place"
    elsewhere.mkdir()
    program = "import json; from tests.cpu.gpu_compile.test_compile import digests; print(json.dumps(digests('cache')))"
    output = run_python(program, elsewhere, HOME=str(elsewhere), TRITON_CACHE_DIR=str(tmp_path / "theirs"), **HOSTILE)
    assert json.loads(output) == expected
    assert sorted(path.name for path in elsewhere.iterdir()) == ["cache"], "no ~/.triton, nothing in the working folder"
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.level)
def test_code_objects_hold_no_path_and_no_line(target: Target, kernel_cache: Path) -> None:
    kernel = compile_kernel(scale(), target, kernel_cache)
    for text in (b"families.py", b"/tmp", os.fsencode(kernel_cache), os.fsencode(Path.cwd()), b".debug_line"):
        assert text not in kernel.code
    assert ".loc" not in kernel.assembly


def test_a_cached_kernel_starts_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [scale(), scale(block=256)]
    done: list[int] = []
    first = compile_all(variants, GFX942, tmp_path, advance=done.append)
    assert done == [0, 1, 1]

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    again = compile_all(variants[::-1] * 2, GFX942, tmp_path, advance=done.append)
    assert again == first
    assert list(again) == sorted(variant.symbol for variant in variants)
    assert done == [0, 1, 1, 2]
    assert compile_kernel(variants[0], GFX942, tmp_path) == first[variants[0].symbol]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["empty", "truncated", "changed", "other"])
def test_a_damaged_entry_is_compiled_again(damage: str, tmp_path: Path) -> None:
    (kernel,) = compile_all([scale()], GFX942, tmp_path).values()
    (path,) = (tmp_path / "gpu").glob("*.kernel")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[:-1],
            "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "other": b"not an entry" * 100,
        }[damage]
    )
    assert list(compile_all([scale()], GFX942, tmp_path).values()) == [kernel]
    assert path.read_bytes() == content


def test_entries_are_verified_before_they_are_unpacked(tmp_path: Path) -> None:
    path = compile_cache.entry_path(tmp_path, "key")
    path.write_bytes(hashlib.sha256(b"other").digest() + b"\x28\xb5\x2f\xfd not zstd")
    assert compile_cache.load(tmp_path, "key") is None


@pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.level)
def test_an_error_names_kernel_target_and_reason(target: Target, tmp_path: Path) -> None:
    wrong = scale(fault="ASSERT")
    message = rf"{wrong.symbol} for {target.name} failed.*this kernel never compiles"
    with pytest.raises(CompilerError, match=message):
        compile_kernel(wrong, target)
    with pytest.raises(CompilerError, match=message):
        compile_all([wrong], target, tmp_path)
    assert leftovers(tmp_path) == []
    assert compilers() == []


def test_failures_can_be_collected(tmp_path: Path) -> None:
    failures: dict[str, CompilerError] = {}
    good, wrong = scale(), scale(fault="ASSERT")
    kernels = compile_all([wrong, good], GFX942, tmp_path, failures=failures)
    assert list(kernels) == [good.symbol]
    assert list(failures) == [wrong.symbol]
    assert "never compiles" in failures[wrong.symbol].message


@pytest.mark.parametrize("fault", ["PRINT", "GRID"])
@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.level)
def test_hidden_arguments_are_refused(target: Target, fault: str, tmp_path: Path) -> None:
    wrong = scale(fault=fault)
    with pytest.raises(CompilerError, match=rf"{wrong.symbol} for {target.name} has an argument of kind hidden_\w+"):
        compile_kernel(wrong, target)
    failures: dict[str, CompilerError] = {}
    assert compile_all([wrong], target, tmp_path, failures=failures) == {}
    assert list(failures) == [wrong.symbol]


@pytest.mark.parametrize("target", NVIDIA_TARGETS, ids=lambda target: target.level)
def test_functions_of_the_driver_are_refused(target: Target) -> None:
    with pytest.raises(CompilerError, match=rf"scale_c300_print\S* for {target.name} calls functions of the driver"):
        compile_kernel(scale(fault="PRINT"), target)


def test_only_inputs_that_nothing_reads_are_denied() -> None:
    ir = """
define amdgpu_kernel void @k(ptr addrspace(1) inreg %0) local_unnamed_addr #0 {
  %2 = call i32 @llvm.amdgcn.workgroup.id.x()
  ret void
}
attributes #0 = { nounwind }
"""
    assert '"amdgpu-no-implicitarg-ptr"' in without_implicit_inputs(ir)
    assert '"amdgpu-no-dispatch-ptr"' in without_implicit_inputs(ir)
    reads = ir.replace("workgroup.id.x", "implicitarg.ptr")
    assert '"amdgpu-no-implicitarg-ptr"' not in without_implicit_inputs(reads)
    assert '"amdgpu-no-dispatch-ptr"' in without_implicit_inputs(reads)
    for unknown in ("@llvm.trap()", "@__ockl_printf_begin(i64 0)"):
        calls = ir.replace("  ret void", f"  call void {unknown}\n  ret void")
        assert without_implicit_inputs(calls) == calls


def test_a_dying_compiler_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=r"died with status 3 on kernel scale_c300_die"):
        compile_all([scale(fault="DIE")], GFX942, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_hanging_compiler_is_killed(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=r"scale_c300_none\S* for hip:gfx942 took more than 0.01 s"):
        compile_all([scale()], GFX942, tmp_path, timeout=0.01)
    assert leftovers(tmp_path) == []
    assert compilers() == []


def test_an_interrupted_build_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_all([scale(columns=columns) for columns in range(100, 140)], GFX942, tmp_path, 2, interrupt)
    assert leftovers(tmp_path) == []
    assert compilers() == []
    assert 1 <= len(list((tmp_path / "gpu").glob("*.kernel"))) < 40


def test_several_builders_share_a_cache(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from paiton_kernels.gpu.compile import compile_all
from paiton_kernels.gpu.devices import TARGETS
from tests.cpu.gpu_compile.families import scale
found = compile_all([scale(block=b) for b in (64, 128, 256)], TARGETS["hip:gfx942"], Path(sys.argv[1]), 1)
print([kernel.args_bytes for kernel in found.values()])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    builders = [subprocess.Popen(command, env=python_environment(), stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert outputs[0] == outputs[1] != b""
    assert leftovers(tmp_path) == []


def test_two_kernels_cannot_share_a_symbol(tmp_path: Path) -> None:
    first = scale()
    spec = first.spec
    same_name = GpuVariant(spec, (("COLUMNS", 300), ("FAULT", "none")), first.config)
    assert same_name.symbol == first.symbol
    with pytest.raises(CompilerError, match=f"two kernels for hip:gfx942 are named {first.symbol}"):
        compile_all([first, same_name], GFX942, tmp_path)


def test_a_target_without_fp8_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match="needs FP8"):
        compile_all([product()], TARGETS["cuda:sm_80"], tmp_path)


def test_the_key_changes_with_a_helper_and_with_a_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import triton
import triton.language as tl
SHIFT = tl.constexpr({shift})
@triton.jit
def helper(value):
    return value {operator} 2.0
def kernel(x):
    tl.store(x, helper(tl.load(x)) + SHIFT)
"""
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set()
    for number, (shift, operator) in enumerate(((1, "*"), (2, "*"), (1, "+"))):
        (tmp_path / f"kernels_{number}.py").write_text(source.format(shift=shift, operator=operator), encoding="utf-8")
        found.add(source_digest(importlib.import_module(f"kernels_{number}").kernel))
    assert len(found) == 3


def test_the_key_changes_with_everything_that_the_code_depends_on() -> None:
    function = scale().spec.function
    variants = [scale(), scale(columns=301), scale(block=64), scale(warps=2)]
    jobs = [CompileJob.of(variant, target) for variant in variants for target in ALL_TARGETS]
    assert len({job.key(function) for job in jobs}) == len(jobs)


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source_digest.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(CompilerError, match="unset TRITON_INTERPRET"):
        compile_all([scale()], GFX942, tmp_path)
