"""States of HIP kernels that they read nothing but their arguments, where that is so.

A HIP runtime can hand a kernel more: the size of the grid, queues, buffers for prints. LLVM finds out itself which
kernels need none of it, except where it takes an intrinsic to call something unknown: the asynchronous copies of gfx950
do, and gave kernels 20 hidden arguments that they never read. Once the optimised code is known not to read them, saying
so is safe; said any earlier, LLVM takes it for a promise and deletes what breaks it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from triton import knobs

_INPUTS = {
    "implicitarg-ptr": "implicitarg.ptr",
    "dispatch-ptr": "dispatch.ptr",
    "queue-ptr": "queue.ptr",
    "dispatch-id": "dispatch.id",
    "lds-kernel-id": "lds.kernel.id",
    "workitem-id-y": "workitem.id.y",
    "workitem-id-z": "workitem.id.z",
}
"""LLVM's attributes (amdgpu-no-...) and the intrinsics that read what they deny."""

_KERNEL = re.compile(r"^define amdgpu_kernel .*\)[^{]* #(\d+) ", re.MULTILINE)
_TRAP = re.compile(r"@llvm\.(debug)?trap\(")

VERSION = 1
"""Counts up whenever the code comes out differently."""


def without_implicit_inputs(llvm_ir: str) -> str:
    """Returns LLVM IR whose kernel denies each implicit input that nothing in it reads.

    IR that traps is returned as it is: what a trap handler needs is not written in it. So is IR that calls a function,
    which may read anything.
    """
    kernels = _KERNEL.findall(llvm_ir)
    calls = re.findall(r"\b(?:call|invoke) .*?@([\w.$]+)\(", llvm_ir)
    if len(kernels) != 1 or _TRAP.search(llvm_ir) or any(not name.startswith("llvm.") for name in calls):
        return llvm_ir
    denied = [f'"amdgpu-no-{name}"' for name, reads in _INPUTS.items() if f"@llvm.amdgcn.{reads}(" not in llvm_ir]
    group = f"attributes #{kernels[0]} = {{ "
    return llvm_ir.replace(f"\n{group}", f"\n{group}{' '.join(denied)} ")


@contextlib.contextmanager
def implicit_inputs_denied() -> Iterator[None]:
    """Has Triton pass its LLVM IR through `without_implicit_inputs` before it makes AMD code of it."""

    def inspect(
        _backend: object = None,
        stages: MutableMapping[str, Callable[[Any, Any], Any]] | None = None,
        *_: object,
    ) -> tuple[str, str] | None:
        if stages is None:  # Triton asks for what to add to the key of its own cache
            return f"-implicit-inputs-{VERSION}", str(VERSION)
        if "amdgcn" in stages:
            make = stages["amdgcn"]
            stages["amdgcn"] = lambda llvm_ir, metadata: make(without_implicit_inputs(llvm_ir), metadata)
        return None

    saved = knobs.runtime.add_stages_inspection_hook
    knobs.runtime.add_stages_inspection_hook = inspect
    try:
        yield
    finally:
        knobs.runtime.add_stages_inspection_hook = saved
