"""One kernel to compile, as plain data, and how Triton compiles it: to the same bytes wherever that happens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.compile_inputs import implicit_inputs_denied
from paiton_kernels.gpu.devices import Target, target_named
from paiton_kernels.gpu.spec import Constant, GpuVariant

COMPILER = f"triton {triton.__version__}"
"""Name and version of the compiler, for the manifest, tuning tables and the cache."""

PINNED_ENVIRONMENT = {
    "PATH": os.defpath,
    "TRITON_DISABLE_LINE_INFO": "1",  # line tables hold the paths of the sources
    "TRITON_DEFAULT_FP_FUSION": "1",
    "TRITON_DUMP_PTXAS_LOG": "1",  # the only place that tells spills on NVIDIA; goes to Python's stdout
}
"""All that a compilation sees of the environment, besides places for its temporary files."""

_FORMAT = 4
"""Counts up whenever the same job gives other bytes, or the cache holds other things."""

_PTXAS_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")

_environment_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class CompileJob:
    """A variant for a target, in plain data that another process understands.

    Attributes:
        symbol: name of the entry point.
        module: where the kernel's function is defined.
        function: its name there.
        signature: run-time arguments, in order, with Triton's types.
        constants: compile-time parameters.
        divisible: indices of the arguments that are multiples of 16.
        options: of the compiler.
        target: name of the target.
    """

    symbol: str
    module: str
    function: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, Constant], ...]
    target: str

    @classmethod
    def of(cls, variant: GpuVariant, target: Target) -> CompileJob:
        """Returns the job that compiles a variant for a target.

        Raises:
            UnsupportedTargetError, UnsupportedShapeError: the target cannot run it.
        """
        variant.require(target)
        spec, config = variant.spec, variant.config
        constants = dict(variant.values)
        names = _parameters(spec.function)
        if "FP8_UNIT" in names:
            constants["FP8_UNIT"] = target.fp8_unit
        options: dict[str, Constant] = {
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": True,
            **dict(config.options),
        }
        if target.backend == "cuda":
            options["ptx_options"] = ""  # the default is PTXAS_OPTIONS as it was when Triton was imported
        return cls(
            symbol=variant.symbol,
            module=spec.function.__module__,
            function=spec.function.__qualname__,
            signature=tuple(variant.signature(target).items()),
            constants=tuple((name, constants[name]) for name in names if name in constants),
            divisible=tuple(names.index(arg.name) for arg in spec.args if arg.divisor == 16),
            options=tuple(sorted(options.items())),
            target=target.name,
        )

    def key(self, function: Callable[..., None]) -> str:
        """Returns a digest of all that the result depends on: sources, shapes, options, target, compiler."""
        fields = (self.symbol, self.signature, self.constants, self.divisible, self.options, self.target)
        return hashlib.sha256(repr((_FORMAT, COMPILER, source_digest(function), fields)).encode()).hexdigest()

    def resolve(self) -> Callable[..., None]:
        """Imports the kernel's function."""
        found: Any = importlib.import_module(self.module)
        for name in self.function.split("."):
            found = getattr(found, name)
        return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class CompilerOutput:
    """What comes out of the compiler, before anything is read from it.

    Attributes:
        code: hsaco or cubin.
        assembly: AMDGCN or PTX text of the same code.
        shared_bytes: shared memory to launch with.
        spill_bytes: that the assembler reports to store and load (NVIDIA); 0 on AMD, where the code object says it.
    """

    code: bytes
    assembly: str
    shared_bytes: int
    spill_bytes: int


def _parameters(function: Callable[..., None]) -> list[str]:
    return list(function.__code__.co_varnames[: function.__code__.co_argcount])


@functools.cache
def source_digest(function: Callable[..., None]) -> str:
    """Returns a digest of a kernel's source text, of every helper that it reaches, and of the constants that they use.

    Raises:
        CompilerError: Triton's interpreter is on, which replaces the helpers by something that cannot be compiled.
    """
    if knobs.runtime.interpret:
        raise CompilerError(
            "kernels cannot be compiled while Triton's interpreter is on", hint="unset TRITON_INTERPRET"
        )
    return str(JITFunction(function).cache_key)


@contextlib.contextmanager
def _pinned_environment(scratch: Path) -> Iterator[None]:
    """Gives the compiler the environment that it always has, and `scratch` for its cache and temporary files."""
    with _environment_lock:
        saved, saved_directory = dict(os.environ), tempfile.tempdir
        places = {"HOME": scratch, "TMPDIR": scratch, "TRITON_CACHE_DIR": scratch / "triton"}
        os.environ.clear()
        os.environ.update(PINNED_ENVIRONMENT | {name: str(path) for name, path in places.items()})
        tempfile.tempdir = str(scratch)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(saved)
            tempfile.tempdir = saved_directory


def run(job: CompileJob, function: Callable[..., None], scratch: Path) -> CompilerOutput:
    """Compiles, in this process.

    Args:
        job: what to compile.
        function: the kernel's function, `job.resolve()` unless at hand.
        scratch: an existing directory of the caller's, for the compiler's own files.

    Raises:
        CompilerError: the compiler fails, or the kernel needs memory that no plan provides.
    """
    target = target_named(job.target)
    jit = JITFunction(function, repr=lambda _: job.symbol)
    constants = dict(job.constants)
    signature = dict(job.signature) | dict.fromkeys(constants, "constexpr")
    attributes = {(index,): [["tt.divisibility", 16]] for index in job.divisible}
    arch = target.arch if target.backend == "hip" else int(target.arch)
    log = io.StringIO()
    try:
        with _pinned_environment(scratch), implicit_inputs_denied(), contextlib.redirect_stdout(log):
            kernel = triton.compile(
                ASTSource(jit, signature, constants, attributes),
                target=GPUTarget(target.backend, arch, target.warp_size),
                options=dict(job.options),
            )
    except Exception as error:
        raise CompilerError(f"compiling kernel {job.symbol} for {job.target} failed: {_reason(error)}") from error
    _refuse_unplannable(job, kernel)
    return CompilerOutput(
        code=bytes(kernel.asm["hsaco" if target.backend == "hip" else "cubin"]),
        assembly=str(kernel.asm["amdgcn" if target.backend == "hip" else "ptx"]),
        shared_bytes=int(kernel.metadata.shared),
        spill_bytes=sum(int(number) for numbers in _PTXAS_SPILLS.findall(log.getvalue()) for number in numbers),
    )


def _refuse_unplannable(job: CompileJob, kernel: Any) -> None:  # noqa: ANN401 - Triton's class is not public
    """Refuses what a plan has no way to provide: scratch memory, what a driver prints with.

    Raises:
        CompilerError: the kernel needs some of it.
    """
    what = f"kernel {job.symbol} for {job.target}"
    if kernel.metadata.global_scratch_size or kernel.metadata.profile_scratch_size:
        size = kernel.metadata.global_scratch_size + kernel.metadata.profile_scratch_size
        raise CompilerError(
            f"{what} needs {size} bytes of scratch a block",
            hint="tensor descriptors made on the device need it: use pointers",
        )
    if ".extern .func" in kernel.asm.get("ptx", ""):
        raise CompilerError(f"{what} calls functions of the driver", hint="remove device prints and assertions from it")


def _reason(error: BaseException) -> str:
    """Returns the line of an error's text that says most: the last, after Triton's excerpt of the source."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
