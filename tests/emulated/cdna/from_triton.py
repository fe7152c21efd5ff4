"""Compiles Triton functions of the emulator's own tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paiton_kernels.gpu import compile_cache
from paiton_kernels.gpu.compile_job import CompileJob, CompilerOutput, run
from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.spec import Constant
from tests.emulated.cdna.kernel import Kernel, Order

_TYPES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e4m3fnuz": "fp8e4b8",
    "float8_e5m2": "fp8e5",
    "float8_e5m2fnuz": "fp8e5b16",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint32": "u32",
}
"""numpy's names of types to Triton's."""


def run_triton(
    function: Callable[..., None],
    target: Target,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    constants: Mapping[str, Constant],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    order: Order = None,
    divisible: tuple[str, ...] = (),
) -> Kernel:
    """Compiles a function for a target and runs it in the emulator.

    Args:
        function: in Triton's language, undecorated.
        target: an AMD one.
        grid: workgroups.
        arguments: arrays (pointers, written in place), integers and floats, by parameter.
        constants: compile-time parameters.
        num_warps: waves of a workgroup.
        num_stages: of software pipelines.
        order: of the waves.
        divisible: integer arguments to be taken as multiples of 16; pointers always are.

    Returns:
        The kernel, after its run.
    """
    types = {name: _type_of(value) for name, value in arguments.items()}
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    job = CompileJob(
        symbol=function.__name__.strip("_"),
        module=function.__module__,
        function=function.__qualname__,
        signature=tuple(types.items()),
        constants=tuple((name, constants[name]) for name in names if name in constants),
        divisible=tuple(names.index(name) for name in types if types[name].startswith("*") or name in divisible),
        options=(("enable_fp_fusion", True), ("num_stages", num_stages), ("num_warps", num_warps)),
        target=target.name,
    )
    output = _compiled(job, function)
    kernel = Kernel(output.assembly, target.arch)
    kernel.launch(grid, list(arguments.values()), list(types.values()), num_warps, output.shared_bytes, order=order)
    return kernel


def _type_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "*" + _TYPES[value.dtype.name]
    return "fp32" if isinstance(value, float) else "i32"


def _compiled(job: CompileJob, function: Callable[..., None]) -> CompilerOutput:
    folder = Path(os.environ["PAITON_CACHE"], "gpu-tests")
    folder.mkdir(parents=True, exist_ok=True)
    key = job.key(function)
    output = compile_cache.load(folder, key)
    if output is None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = run(job, function, Path(scratch))
            compile_cache.store(folder, key, output, Path(scratch))
    return output
