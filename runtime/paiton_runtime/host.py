"""The host library through ctypes: mappings, programs and thread groups, as objects that free what they hold.

Calls into the library release the interpreter lock, so that weights are read and steps run while Python goes on.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paiton_artifacts.errors import CodeObjectError, OutOfMemoryError, PaitonError, ResourceError, UnsupportedHostError
from paiton_artifacts.layout import RUNTIME_ABI, Region

LIBRARY = Path(__file__).parent / "_native" / "libpaiton_host.so"
REGIONS = len(Region)

_pointer = ctypes.c_void_p
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64


class PlanRecords(ctypes.Structure):
    """`struct paiton_plan` of paiton_host.h."""

    _fields_ = [
        ("segments", ctypes.c_char_p),
        ("launches", ctypes.c_char_p),
        ("relocations", ctypes.c_char_p),
        ("args", ctypes.c_char_p),
        ("segment_count", _u64),
        ("launch_count", _u64),
        ("relocation_count", _u64),
        ("args_size", _u64),
    ]


class DevicePlanRecords(ctypes.Structure):
    """`struct paiton_device_plan` of paiton_host.h."""

    _fields_ = [
        ("plan", PlanRecords),
        ("launches", ctypes.c_char_p),
        ("offsets", ctypes.c_char_p),
        ("offset_count", _u64),
        ("function_count", _u64),
    ]


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "paiton_abi": (_u32, []),
    "paiton_map_file": (ctypes.c_int, [ctypes.c_int, _u64, ctypes.POINTER(_pointer)]),
    "paiton_map_anonymous": (ctypes.c_int, [_u64, ctypes.POINTER(_pointer)]),
    "paiton_unmap": (ctypes.c_int, [_pointer, _u64]),
    "paiton_populate": (ctypes.c_int, [ctypes.c_int, _pointer, _u64, _u32, ctypes.POINTER(ctypes.c_int32)]),
    "paiton_load": (ctypes.c_int, [_pointer, _pointer]),
    "paiton_resident": (ctypes.c_int, [ctypes.c_int, _u64, _u32, ctypes.POINTER(_u64), ctypes.POINTER(_u64)]),
    "paiton_sha256": (None, [ctypes.c_char_p, _u64, _u32, ctypes.c_char_p]),
    "paiton_code_open": (_pointer, [ctypes.c_int]),
    "paiton_code_symbol": (_pointer, [_pointer, ctypes.c_char_p]),
    "paiton_code_close": (ctypes.c_int, [_pointer]),
    "paiton_code_error": (ctypes.c_char_p, []),
    "paiton_encoder_create": (ctypes.c_int, [ctypes.c_char_p, _u64, ctypes.POINTER(_pointer)]),
    "paiton_encoder_destroy": (None, [_pointer]),
    "paiton_encode": (ctypes.c_int, [_pointer, ctypes.c_char_p, _u64, _pointer, ctypes.POINTER(_u64)]),
    "paiton_program_create": (
        ctypes.c_int,
        [ctypes.POINTER(PlanRecords), ctypes.POINTER(_u64), _u32, ctypes.POINTER(_pointer)],
    ),
    "paiton_program_destroy": (None, [_pointer]),
    "paiton_program_launches": (_u64, [_pointer]),
    "paiton_device_program_create": (
        ctypes.c_int,
        [
            *(ctypes.POINTER(DevicePlanRecords), ctypes.c_char_p, ctypes.c_char_p, _u32, _u32),
            ctypes.POINTER(_pointer),
        ],
    ),
    "paiton_device_program_destroy": (None, [_pointer]),
    "paiton_device_program_launches": (_u64, [_pointer]),
    "paiton_device_program_run": (ctypes.c_int, [_pointer, _pointer, _pointer, _u64, _u64, ctypes.POINTER(_u64)]),
    "paiton_device_program_add": (
        ctypes.c_int,
        [_pointer, _u32, _pointer, _pointer, ctypes.POINTER(_pointer), ctypes.POINTER(_u64)],
    ),
    "paiton_group_create": (
        ctypes.c_int,
        [_u32, _u32, _u32, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(_pointer)],
    ),
    "paiton_group_destroy": (None, [_pointer]),
    "paiton_step": (ctypes.c_int, [_pointer, ctypes.POINTER(_pointer), _u32]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the host library, loaded at first use.

    Raises:
        UnsupportedHostError: it is absent, does not load, or has another ABI than this Python code.
    """
    return _load(LIBRARY)


def _load(path: Path) -> ctypes.CDLL:
    build = f"reinstall paiton-aot, or in a checkout run: python runtime/paiton_runtime/native/build.py {path}"
    if not path.exists():
        raise UnsupportedHostError(f"the host library is absent: {path}", hint=build)
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UnsupportedHostError(f"the host library does not load: {error}", hint=build) from error
    if (abi := loaded.paiton_abi()) != RUNTIME_ABI:
        raise UnsupportedHostError(f"{path} has ABI {abi}, this version needs {RUNTIME_ABI}", hint=build)
    return loaded


def check(status: int, operation: str) -> None:
    """Raises for a negative errno of the library, naming the operation.

    Raises:
        OutOfMemoryError: it was ENOMEM.
        ResourceError: it was anything else.
    """
    if status == 0:
        return
    text = os.strerror(-status)
    if status == -errno.ENOMEM:
        raise OutOfMemoryError(f"{operation} failed: {text}", hint="free memory, or raise the limits of this process")
    raise ResourceError(f"{operation} failed: {text}", hint="check the limits of this process (ulimit -a)")


class Stop:
    """Tells native threads that what they do is no longer wanted."""

    def __init__(self) -> None:
        self.flag = ctypes.c_int32(0)

    def set(self) -> None:
        """Asks them to end soon."""
        self.flag.value = 1


class Mapping:
    """Pages that this process mapped: a file read-only, or zeros that cost nothing until touched.

    Attributes:
        address: of the first byte; 0 once closed.
        size: in bytes; an empty mapping has address 0.
    """

    def __init__(self, address: int, size: int, descriptor: int | None = None) -> None:
        self.address = address
        self.size = size
        self._descriptor = descriptor

    @classmethod
    def file(cls, descriptor: int, size: int, *, what: str) -> Mapping:
        """Maps the first `size` bytes of an open file, which the caller knows to be there; `what` names it in errors.

        The descriptor is duplicated: it is needed again by `populate`.
        """
        own = os.dup(descriptor)
        address = _pointer()
        status = library().paiton_map_file(own, size, ctypes.byref(address))
        if status:
            os.close(own)
        check(status, f"mapping {size} bytes of {what}")
        return cls(address.value or 0, size, own)

    @classmethod
    def anonymous(cls, size: int, *, what: str) -> Mapping:
        """Maps `size` bytes of zeros; `what` names them in errors."""
        if size == 0:
            return cls(0, 0)
        address = _pointer()
        check(
            library().paiton_map_anonymous(size, ctypes.byref(address)),
            f"reserving {size} bytes for {what}",
        )
        return cls(address.value or 0, size)

    def populate(self, threads: int, stop: Stop) -> None:
        """Brings every page of a file mapping in with `threads` threads, unless told to stop.

        Raises:
            ResourceError: reading failed (the file shrank, or the device has an error).
        """
        if self._descriptor is None:
            raise PaitonError("only file mappings are populated")
        status = library().paiton_populate(self._descriptor, self.address, self.size, threads, ctypes.byref(stop.flag))
        if status != -errno.ECANCELED:
            check(status, "reading weights")

    def view(self, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns `size` bytes from `offset` as elements of a native struct letter; valid until close."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise PaitonError(f"view of {size} bytes at {offset} leaves a mapping of {self.size} bytes")
        array: Any = (ctypes.c_char * size).from_address(self.address + offset)
        plain: memoryview[Any] = memoryview(array).cast("B")
        return plain.cast(letter)  # type: ignore[call-overload,no-any-return]  # typeshed wants a literal

    def close(self) -> None:
        """Unmaps; views must no longer be used."""
        if self.address:
            check(library().paiton_unmap(self.address, self.size), "unmapping")
            self.address = 0
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Code:
    """A code object, loaded from memory: what was hashed is what runs, whatever happens to its file.

    Args:
        name: for messages, and in /proc/self/maps.
        data: an ELF shared object.

    Raises:
        CodeObjectError: it does not load.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._handle: int | None = None
        self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self.close()
            raise OutOfMemoryError(f"code object {name}: {error.strerror}", hint="free memory") from error
        self._handle = library().paiton_code_open(self._descriptor)
        if not self._handle:
            refusal = self._error()
            self.close()
            raise refusal

    def symbol(self, name: str) -> int:
        """Returns the address of a function.

        Raises:
            CodeObjectError: there is none of this name.
        """
        address: int | None = library().paiton_code_symbol(self._handle, name.encode())
        if not address:
            raise self._error()
        return address

    def _error(self) -> CodeObjectError:
        text = (library().paiton_code_error() or b"no reason given").decode(errors="replace")
        return CodeObjectError(f"code object {self.name}: {text}", hint="build or fetch the bundle again")

    def close(self) -> None:
        """Unloads it; none of its functions may be called any more."""
        if self._handle:
            library().paiton_code_close(self._handle)
            self._handle = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Program:
    """A plan, unrolled and relocated for every rank.

    Args:
        segments, launches, relocations, args: packed records as in paiton_host.h.
        counts: number of segments, of launches and of relocations.
        bases: for each rank the addresses of its regions, in the order of `Region`.

    Raises:
        PaitonError: a record points outside the arrays; plans are checked before, so this is a defect of ours.
    """

    def __init__(
        self,
        segments: bytes,
        launches: bytes,
        relocations: bytes,
        args: bytes,
        counts: tuple[int, int, int],
        bases: Sequence[Sequence[int]],
    ) -> None:
        self.handle: int | None = None
        plan = PlanRecords(segments, launches, relocations, args, *counts, len(args))
        flat = [address for rank in bases for address in rank]
        if any(len(rank) != REGIONS for rank in bases):
            raise PaitonError(f"every rank has {REGIONS} region addresses")
        handle = _pointer()
        status = library().paiton_program_create(
            ctypes.byref(plan), (_u64 * len(flat))(*flat), len(bases), ctypes.byref(handle)
        )
        if status == -errno.EINVAL:
            raise PaitonError("a launch or relocation points outside the plan")
        check(status, "unrolling a plan")
        self.handle = handle.value
        self.launches: int = library().paiton_program_launches(handle)

    def close(self) -> None:
        """Frees the program; no step may be running it."""
        if self.handle is not None:
            library().paiton_program_destroy(self.handle)
            self.handle = None


class Group:
    """A team of `workers` threads for each of `ranks` ranks; the caller of `step` is worker 0 of rank 0.

    Args:
        ranks: size of the tensor-parallel group.
        workers: threads per rank.
        spin_nanoseconds: how long a thread polls at a barrier before it sleeps; 0 where threads outnumber processors.
        cpus: a processor for each thread, rank-major, or -1; None leaves placement to the kernel.
    """

    def __init__(self, ranks: int, workers: int, *, spin_nanoseconds: int, cpus: Sequence[int] | None = None) -> None:
        self.ranks = ranks
        self.workers = workers
        self._handle: int | None = None
        if cpus is not None and len(cpus) != ranks * workers:
            raise PaitonError(f"{len(cpus)} processors given for {ranks * workers} threads")
        handle = _pointer()
        placement = None if cpus is None else (ctypes.c_int32 * len(cpus))(*cpus)
        check(
            library().paiton_group_create(ranks, workers, spin_nanoseconds, placement, ctypes.byref(handle)),
            f"starting {ranks * workers - 1} threads",
        )
        self._handle = handle.value

    def step(self, *programs: Program) -> None:
        """Runs the programs one after the other on all ranks, and returns when all are done. Not re-entrant."""
        if self._handle is None:
            raise PaitonError("the thread group is closed")
        chain = (_pointer * len(programs))(*(program.handle for program in programs))
        if library().paiton_step(self._handle, chain, len(programs)):
            raise PaitonError("a program was made for another number of ranks")

    def close(self) -> None:
        """Stops and joins the threads."""
        if self._handle is not None:
            library().paiton_group_destroy(self._handle)
            self._handle = None
