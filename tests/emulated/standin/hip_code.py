"""Code objects for the stand-in of HIP: the metadata of an hsaco, and its assembly for the emulator."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from tests.emulated.cdna import DeviceMemory
from tests.emulated.cdna import Kernel as EmulatedKernel
from tests.emulated.standin.objects import (
    INVALID_IMAGE,
    NO_BINARY_FOR_GPU,
    UNKNOWN,
    Device,
    Dimensions,
    KernelArgument,
    RefusedError,
)
from tests.emulated.standin.objects import Kernel as DeviceKernel

_SECTION_NOTE, _METADATA_NOTE = 7, 32


@dataclass(frozen=True, slots=True)
class HipKernel:
    """A kernel of an hsaco, run by the emulator."""

    arguments: tuple[KernelArgument, ...]
    argument_bytes: int
    max_threads: int
    warps: int
    emulated: EmulatedKernel

    def run(
        self,
        memory: DeviceMemory,
        arguments: bytes,
        grid: Dimensions,
        shared_bytes: int,
        on_poll: Callable[[], None],
    ) -> None:
        """Runs it to its end."""
        self.emulated.launch_raw(memory, arguments, grid, self.warps, shared_bytes, on_poll=on_poll)


class HipCode:
    """Code objects that the stand-in can run: the emulator reads assembly, so each must be registered with its own."""

    def __init__(self) -> None:
        self._assembly: dict[str, str] = {}

    def register(self, code: bytes, assembly: str) -> None:
        """Makes an hsaco known by the text that it was assembled from."""
        self._assembly[hashlib.sha256(code).hexdigest()] = assembly

    def load(self, code: bytes, device: Device) -> Mapping[str, DeviceKernel]:
        """Returns the kernels of an hsaco on a device."""
        metadata = read_metadata(code)
        arch = metadata["amdhsa.target"].rpartition("-")[2].partition(":")[0]
        wanted = device.model.arch.partition(":")[0]
        if arch != wanted:
            raise RefusedError(NO_BINARY_FOR_GPU, f"code for {arch} on {wanted}")
        digest = hashlib.sha256(code).hexdigest()
        if digest not in self._assembly:
            raise RefusedError(UNKNOWN, f"no assembly was registered for the hsaco {digest}")
        return {
            kernel[".name"]: HipKernel(
                arguments=tuple(
                    KernelArgument(arg[".offset"], arg[".size"], arg[".value_kind"] == "global_buffer")
                    for arg in kernel[".args"]
                ),
                argument_bytes=kernel[".kernarg_segment_size"],
                max_threads=kernel[".max_flat_workgroup_size"],
                warps=kernel[".max_flat_workgroup_size"] // kernel[".wavefront_size"],
                emulated=EmulatedKernel(self._assembly[digest], arch),
            )
            for kernel in metadata["amdhsa.kernels"]
        }


def read_metadata(code: bytes) -> dict[str, Any]:
    """Returns the metadata map of an hsaco (LLVM, "User Guide for AMDGPU Backend", code object V5)."""
    sections, entry, count = struct.unpack_from("<Q", code, 40)[0], *struct.unpack_from("<HH", code, 58)
    for index in range(count):
        kind, _, _, offset, size = struct.unpack_from("<IQQQQ", code, sections + entry * index + 4)
        if kind != _SECTION_NOTE:
            continue
        owner_bytes, body_bytes, note = struct.unpack_from("<III", code, offset)
        body = offset + 12 + (owner_bytes + 3) // 4 * 4
        if note == _METADATA_NOTE and body + body_bytes <= offset + size:
            metadata: dict[str, Any] = msgpack.unpackb(code[body : body + body_bytes])
            return metadata
    raise RefusedError(INVALID_IMAGE, "the code object has no metadata")
