"""Compiles variants to code objects with Triton, without the device, reproducibly, and remembers the results.

The bytes depend on the kernel's sources, the variant, the target and the compiler's version: not on the environment,
the directory, the user or what was compiled before.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from paiton_artifacts.errors import CompilerError
from paiton_artifacts.temporary import LockedDirectory
from paiton_kernels.gpu import compile_cache
from paiton_kernels.gpu.code_object import KernelArg, read_code_object
from paiton_kernels.gpu.compile_job import COMPILER, CompileJob, CompilerOutput, run
from paiton_kernels.gpu.compile_pool import compile_into
from paiton_kernels.gpu.devices import Target, target_named
from paiton_kernels.gpu.spec import GpuVariant

__all__ = ["COMPILER", "CompiledKernel", "KernelArg", "compile_all", "compile_kernel"]

TIMEOUT = 600.0
"""Seconds after which the compilation of one kernel is given up: some hundred times what one takes."""

_SCALAR_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u32": 4, "u64": 8, "fp32": 4, "fp64": 8}
_POINTER_BYTES = 8
_SCRATCH_POINTERS = 2
"""Arguments that Triton appends: global scratch and profile scratch. Null does, for kernels that need none."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A variant compiled for a target.

    Attributes:
        symbol: name of the entry point.
        target: name of the target.
        code: the code object (hsaco or cubin).
        assembly: AMDGCN or PTX text of the same code.
        shared_bytes: dynamic shared memory to launch with.
        threads: per block.
        args: every argument as the code object states it, with the name of the parameter; the last two, nameless ones
            are pointers to scratch memory that the compiler added.
        args_bytes: size of the argument buffer.
        registers: per thread (AMD: VGPRs and AGPRs together, of a lane).
        agpr: how many of them are accumulation registers (AMD).
        sgpr: scalar registers of a wave (AMD).
        spills: registers (AMD) or bytes (NVIDIA) that the compiler moves to memory and back.
        scratch_bytes: stack memory of a thread.
    """

    symbol: str
    target: str
    code: bytes
    assembly: str
    shared_bytes: int
    threads: int
    args: tuple[KernelArg, ...]
    args_bytes: int
    registers: int
    agpr: int
    sgpr: int
    spills: int
    scratch_bytes: int

    @property
    def vgpr(self) -> int:
        """Architectural vector registers of a lane (AMD)."""
        return self.registers - self.agpr


def compile_kernel(variant: GpuVariant, target: Target, cache_dir: Path | None = None) -> CompiledKernel:
    """Compiles one variant in this process.

    Args:
        variant: what to compile.
        target: what for.
        cache_dir: where results are kept; without, they are remembered as long as the process lives.

    Raises:
        UnsupportedTargetError, UnsupportedShapeError: the target cannot run it.
        CompilerError: the compiler fails, or its output is not what a plan can launch.
    """
    job = CompileJob.of(variant, target)
    if cache_dir is None:
        return _remembered(job, variant.spec.function)
    folder, key = _folder(cache_dir), job.key(variant.spec.function)
    output = compile_cache.load(folder, key)
    if output is None:
        temporary = LockedDirectory(folder / "compile")
        try:
            output = run(job, variant.spec.function, temporary.path)
            compile_cache.store(folder, key, output, temporary.path)
        finally:
            temporary.remove()
    return _described(job, output)


def compile_all(
    variants: Iterable[GpuVariant],
    target: Target,
    cache_dir: Path,
    processes: int | None = None,
    advance: Callable[[int], object] = lambda _count: None,
    timeout: float = TIMEOUT,
    failures: dict[str, CompilerError] | None = None,
) -> dict[str, CompiledKernel]:
    """Compiles variants in parallel; those that the cache has are not compiled again.

    Args:
        variants: what to compile; duplicates are dropped.
        target: what for.
        cache_dir: results are kept in its folder `gpu`; created if absent.
        processes: worker processes; by default one per processor that this process may use.
        advance: called with the number of kernels done since the last call.
        timeout: seconds for one kernel.
        failures: receives the errors of kernels that do not compile, by symbol; the result is then without them.

    Returns:
        Kernels by symbol, in the order of their symbols.

    Raises:
        UnsupportedTargetError, UnsupportedShapeError: the target cannot run a variant.
        CompilerError: a kernel does not compile (unless `failures` is given) or not in time, or two variants have the
            same symbol.
    """
    jobs: dict[str, CompileJob] = {}
    keys: dict[str, str] = {}
    for variant in variants:
        job = CompileJob.of(variant, target)
        if jobs.setdefault(job.symbol, job) != job:
            raise CompilerError(f"two kernels for {target.name} are named {job.symbol}")
        keys[job.symbol] = job.key(variant.spec.function)
    if not jobs:
        return {}
    folder = _folder(cache_dir)
    found = {symbol: compile_cache.load(folder, key) for symbol, key in keys.items()}
    missing = {keys[symbol]: jobs[symbol] for symbol in sorted(jobs) if found[symbol] is None}
    advance(len(jobs) - len(missing))
    if missing:
        compile_into(folder, missing, processes or len(os.sched_getaffinity(0)), timeout, advance, failures)
    kernels = {}
    for symbol in sorted(jobs.keys() - (failures or {}).keys()):
        output = found[symbol] or compile_cache.load(folder, keys[symbol])
        if output is None:
            raise CompilerError(
                f"kernel {symbol} vanished from the cache in {folder}", hint="do not clear the cache during a build"
            )
        try:
            kernels[symbol] = _described(jobs[symbol], output)
        except CompilerError as error:
            if failures is None:
                raise
            failures[symbol] = error
    return kernels


def _folder(cache_dir: Path) -> Path:
    folder = cache_dir / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.lru_cache(maxsize=256)
def _remembered(job: CompileJob, function: Callable[..., None]) -> CompiledKernel:
    with tempfile.TemporaryDirectory() as scratch:
        return _described(job, run(job, function, Path(scratch)))


def _described(job: CompileJob, output: CompilerOutput) -> CompiledKernel:
    """Reads what the code object states and checks it against what was asked for.

    Raises:
        CompilerError: they differ.
    """
    target = target_named(job.target)
    what = f"code object of kernel {job.symbol} for {job.target}"
    facts = read_code_object(output.code, target.backend, what)
    names = [name for name, _ in job.signature] + [""] * _SCRATCH_POINTERS
    sizes = [_POINTER_BYTES if type_[0] == "*" else _SCALAR_BYTES[type_] for _, type_ in job.signature]
    sizes += [_POINTER_BYTES] * _SCRATCH_POINTERS
    if facts.symbol != job.symbol or [arg.size for arg in facts.args] != sizes:
        stated = ", ".join(str(arg.size) for arg in facts.args)
        raise CompilerError(f"{what} is {facts.symbol} with arguments of {stated} bytes, not of {sizes}")
    return CompiledKernel(
        symbol=job.symbol,
        target=job.target,
        code=output.code,
        assembly=output.assembly,
        shared_bytes=output.shared_bytes,
        threads=facts.max_threads,
        args=tuple(KernelArg(name, arg.offset, arg.size) for name, arg in zip(names, facts.args, strict=True)),
        args_bytes=facts.args_bytes,
        registers=facts.registers,
        agpr=facts.accumulation_registers,
        sgpr=facts.scalar_registers,
        spills=facts.spilled_registers + output.spill_bytes,
        scratch_bytes=facts.scratch_bytes,
    )
