"""Loads weights: the read loop of the host library, into host memory or through a pinned ring to devices.

Digests are computed by the readers themselves, in C: with hashlib each of them would ask for the interpreter lock at
every slot, and wait whenever Python is busy with the rest of the boot.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import NoReturn, Protocol

from paiton_artifacts.errors import (
    DigestMismatchError,
    DriverError,
    FileSizeError,
    OutOfMemoryError,
    PaitonError,
    ResourceError,
    StoreError,
)
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import Chunk
from paiton_runtime.drivers.device_functions import address_of
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.host import Stop, library
from paiton_runtime.loader_records import (
    CUDA,
    HIP,
    SHA256_BYTES,
    CopyFunctions,
    Extent,
    Lane,
    Load,
    Operation,
    Result,
    Source,
)

CACHED_SHARE = 0.5
"""From this share of resident pages on a file is read through the page cache: it is several times quicker than a disk,
and what is missing there costs little more than with O_DIRECT."""

_HINT = "the bundle is damaged; build or fetch it again"


@dataclass(frozen=True, slots=True)
class FileLoad:
    """The first bytes of a file.

    Attributes:
        descriptor: the file, open for reading until the load has returned.
        size: bytes to load.
        name: the file's, for messages.
        chunks: digests, as the manifest lists them: they cover the bytes in order, without gap or overlap.
        parts: offset and size of what to load; by default everything. Not together with digests.
    """

    descriptor: int
    size: int
    name: str
    chunks: Sequence[Chunk] = ()
    parts: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class HostDestination:
    """Memory of this process, big enough for its file.

    Attributes:
        address: where the first byte goes.
    """

    address: int


@dataclass(frozen=True, slots=True)
class DeviceDestination:
    """Memory of a device, big enough for its file.

    Attributes:
        library: the device's driver library, initialised.
        ordinal: of the device.
        address: where the first byte goes.
    """

    library: DeviceLibrary
    ordinal: int
    address: int


Destination = HostDestination | DeviceDestination


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did: bytes in all, how many of them were read around the page cache, and the seconds it took."""

    bytes: int
    direct_bytes: int
    seconds: float


class LoadStoppedError(PaitonError):
    """A load gave up because it was told to; its destination holds nothing of value."""


class WeightBackend(Protocol):
    """A way to move the bytes of files to where a model wants them.

    :func:`load` is the one that always works. Another may let the storage write to device memory itself (NVIDIA's
    cuFile, AMD's hipFile); such bytes never pass the host, so it refuses `verify`, and its users verify beforehand.
    """

    def __call__(
        self,
        files: Sequence[FileLoad],
        destinations: Sequence[Destination],
        *,
        stop: Stop | None = None,
        verify: bool = False,
    ) -> LoadReport:
        """Loads all bytes of all files, and returns when they are there; every other outcome raises.

        Args:
            files: one for each rank.
            destinations: of each file; all in host memory, or all on devices of one library.
            stop: once set, makes a load in another thread raise soon.
            verify: compare the digest of every chunk on its way.

        Raises:
            FileSizeError: a file is shorter than its load.
            DigestMismatchError: (verify) a chunk is not what the manifest says.
            StoreError: reading failed.
            DriverError: a copy to a device failed.
            OutOfMemoryError: no room for threads or pinned memory.
            LoadStoppedError: somebody set `stop`.
        """


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How the read loop works.

    Attributes:
        threads: readers in all, shared out among the devices, at least one each. Disk arrays need as many reads in
            flight to be quick, and a device's link as many copying threads to be full. Cached files go to host memory
            with one for each processor at most.
        slot_bytes: of one read and one copy; a multiple of 4096 for O_DIRECT.
        slots: pinned slots of a reader: with two, one is filled while the other is copied. All rings together have
            threads * slots * slot_bytes bytes, and pinning takes about a second for 5 GB.
        direct: read around the page cache (O_DIRECT) where the file system lets us; None: files that are not cached.
    """

    threads: int = 16
    slot_bytes: int = 4 << 20
    slots: int = 2
    direct: bool | None = None

    def __post_init__(self) -> None:
        if min(self.threads, self.slots, self.slot_bytes) < 1:
            raise PaitonError(f"readers need threads, slots and bytes: {self}")


def residency(descriptor: int, size: int, *, portable: bool = False) -> float:
    """Returns the share of a file's first `size` bytes that the page cache holds, from samples.

    Args:
        descriptor: an open file; it counts as cached if the kernel will not tell, because this process may not write
            it.
        size: in bytes; 0 counts as cached.
        portable: ask as on a kernel without cachestat(2).

    Raises:
        StoreError: it is no file of this size.
    """
    pages, resident = ctypes.c_uint64(), ctypes.c_uint64()
    status = library().paiton_resident(descriptor, size, portable, ctypes.byref(pages), ctypes.byref(resident))
    if status:
        raise StoreError(f"asking which pages of a file are cached failed: {os.strerror(-status)}")
    return resident.value / pages.value if pages.value else 1.0


def open_direct(descriptor: int) -> int:
    """Returns a second descriptor of an open file, for reads around the page cache; -1 where there are none.

    The file is opened anew, because O_DIRECT belongs to what a descriptor and its duplicates share.
    """
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def load(
    files: Sequence[FileLoad],
    destinations: Sequence[Destination],
    *,
    stop: Stop | None = None,
    verify: bool = False,
    settings: ReadSettings | None = None,
) -> LoadReport:
    """Loads weights with reader threads of the host library: see :class:`WeightBackend`.

    Loads to devices choose a device for the calling thread.
    """
    start = time.perf_counter()
    pairs = [pair for pair in zip(files, destinations, strict=True) if pair[0].size]
    for file, _ in pairs:
        if (found := os.fstat(file.descriptor).st_size) < file.size:
            raise FileSizeError(f"{file.name} has {found} bytes instead of {file.size}", hint=_HINT)
    if not pairs:
        return LoadReport(0, 0, time.perf_counter() - start)
    result = Result()
    with ExitStack() as cleanup:
        job = _Job(pairs, settings or ReadSettings(), cleanup, verify=verify)
        status = library().paiton_load(ctypes.byref(job.arguments(stop or Stop())), ctypes.byref(result))
        if status:
            try:
                job.fail(status, result)
            finally:
                with suppress(DriverError):  # a device that has crashed refuses this as well
                    cleanup.close()
    return LoadReport(result.bytes, result.direct_bytes, time.perf_counter() - start)


class _Job:
    """The arguments of one `paiton_load`, and all that they point to.

    Args:
        pairs: files and their destinations.
        settings: see :class:`ReadSettings`.
        cleanup: closes what is opened here.
        verify: give the readers digests.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[FileLoad, Destination]],
        settings: ReadSettings,
        cleanup: ExitStack,
        *,
        verify: bool,
    ) -> None:
        self._settings = settings
        self._devices = _library_of([destination for _, destination in pairs])
        lanes: dict[int, list[tuple[FileLoad, Destination]]] = {}
        for file, destination in pairs:
            ordinal = destination.ordinal if isinstance(destination, DeviceDestination) else 0
            lanes.setdefault(ordinal, []).append((file, destination))
        ordered = [pair for lane in lanes.values() for pair in lane]
        self._files = [file for file, _ in ordered]
        self._sources = (Source * len(ordered))(*(_source(file, settings.direct, cleanup) for file in self._files))
        each = [_extents(number, *pair, verify=verify) for number, pair in enumerate(ordered)]
        self._extents = (Extent * sum(map(len, each)))(*(extent for extents in each for extent in extents))
        if verify:
            self._digests = ctypes.create_string_buffer(b"".join(map(_digests, self._files)))
            for number, extent in enumerate(self._extents):
                extent.sha256 = ctypes.addressof(self._digests) + number * SHA256_BYTES
        self._lanes = (Lane * len(lanes))()
        threads = settings.threads
        if not self._devices and all(source.cached for source in self._sources):
            # Nobody waits for a disk: more threads than processors only take turns.
            threads = min(threads, len(os.sched_getaffinity(0)))
        first = 0
        for lane, (ordinal, members) in zip(self._lanes, lanes.items(), strict=True):
            lane.extent_first, lane.readers = first, -(-threads // len(lanes))
            lane.extent_count = sum(len(_parts(file, verify=verify)) for file, _ in members)
            first += lane.extent_count
            if self._devices:
                _attach(lane, self._devices, ordinal, settings, cleanup)
        self._functions = _copy_functions(self._devices) if self._devices else None

    def arguments(self, stop: Stop) -> Load:
        """Returns the C structure; this object must outlive its use."""
        return Load(
            files=self._sources,
            extents=self._extents,
            lanes=self._lanes,
            driver=ctypes.pointer(self._functions) if self._functions else None,
            stop=ctypes.pointer(stop.flag),
            extent_count=len(self._extents),
            slot_bytes=self._settings.slot_bytes,
            file_count=len(self._sources),
            lane_count=len(self._lanes),
            slots=self._settings.slots,
        )

    def fail(self, status: int, result: Result) -> NoReturn:
        """Raises what the host library reports."""
        file, offset = self._files[result.file], result.offset
        if status == -errno.ECANCELED:
            raise LoadStoppedError("loading weights was stopped")
        if result.operation == Operation.READ:
            if result.code == 0:
                message = f"{file.name} ended at {offset} instead of {file.size} while it was read"
                raise FileSizeError(message, hint=_HINT)
            reason = os.strerror(result.code)
            raise StoreError(f"{file.name}: reading at offset {offset} failed: {reason}", hint="check the disk")
        if result.operation == Operation.DIGEST:
            chunk = next(chunk for chunk in file.chunks if chunk.offset == offset)
            raise DigestMismatchError(
                f"{file.name}: SHA-256 of the {chunk.size} bytes at offset {offset} is {bytes(result.sha256).hex()},"
                f" the manifest declares {chunk.sha256}",
                hint=_HINT,
            )
        if self._devices and result.operation >= Operation.SET_DEVICE:
            what = _DRIVER_OPERATIONS[Operation(result.operation)]
            self._devices.check(result.code, f"{what}, with {file.name} loaded up to offset {offset}")
        if status == -errno.ENOMEM:
            raise OutOfMemoryError("no memory for the threads that load weights", hint="free memory")
        if status == -errno.EINVAL:
            raise PaitonError("extents of a load lie outside its lanes")
        raise ResourceError(
            f"starting {self._settings.threads} threads to load weights failed: {os.strerror(-status)}",
            hint="check the limits of this process (ulimit -a)",
        )


_DRIVER_OPERATIONS = {
    Operation.SET_DEVICE: "choosing a device to load weights to",
    Operation.COPY: "starting a copy to the device",
    Operation.RECORD: "recording the end of a copy to the device",
    Operation.WAIT: "copying to the device",
}


def _source(file: FileLoad, direct: bool | None, cleanup: ExitStack) -> Source:
    """Returns a file as the host library reads it, with a second descriptor for reads around the page cache if any."""
    share = residency(file.descriptor, file.size)
    descriptor = -1
    if direct or (direct is None and share < CACHED_SHARE):
        descriptor = open_direct(file.descriptor)
        if descriptor >= 0:
            cleanup.callback(os.close, descriptor)
    return Source(fd=file.descriptor, direct_fd=descriptor, cached=share == 1)


def _library_of(destinations: Sequence[Destination]) -> DeviceLibrary | None:
    """Returns the driver library of all destinations; none of host memory."""
    found = {item.library if isinstance(item, DeviceDestination) else None for item in destinations}
    if len(found) != 1:
        raise PaitonError("one load goes either to host memory or to devices of one library")
    return found.pop()


def _extents(number: int, file: FileLoad, destination: Destination, *, verify: bool) -> list[Extent]:
    """Returns a file as extents: its chunks if they are verified, else all of it."""
    parts = _parts(file, verify=verify)
    return [Extent(offset=at, size=size, address=destination.address + at, file=number) for at, size in parts]


def _parts(file: FileLoad, *, verify: bool) -> Sequence[tuple[int, int]]:
    """Returns offset and size of each part that is loaded by itself."""
    if verify:
        return [(chunk.offset, chunk.size) for chunk in file.chunks]
    return file.parts or [(0, file.size)]


def _digests(file: FileLoad) -> bytes:
    """Returns the digests of a file's chunks one after the other."""
    end = 0
    for chunk in file.chunks:
        if chunk.offset != end:
            break
        end += chunk.size
    if end != file.size:
        raise PaitonError(f"{file.name}: digests cover {end} bytes in order, of {file.size}")
    return b"".join(bytes.fromhex(chunk.sha256) for chunk in file.chunks)


def _attach(lane: Lane, devices: DeviceLibrary, ordinal: int, settings: ReadSettings, cleanup: ExitStack) -> None:
    """Gives a lane its device, and each of its readers a stream, slots, and an event for each slot."""
    devices.set_device(ordinal)
    lane.device = _thread_device(devices, ordinal)
    slots = lane.readers * settings.slots
    lane.ring = devices.allocate_pinned(slots * settings.slot_bytes)
    cleanup.callback(devices.free_pinned, lane.ring)
    streams = [_owned(cleanup, devices.create_stream(), devices.destroy_stream) for _ in range(lane.readers)]
    events = [_owned(cleanup, devices.create_event(), devices.destroy_event) for _ in range(slots)]
    lane.streams = (ctypes.c_uint64 * len(streams))(*streams)
    lane.events = (ctypes.c_uint64 * len(events))(*events)
    cleanup.callback(devices.set_device, ordinal)  # first of what is undone for this device


def _owned(cleanup: ExitStack, handle: int, free: Callable[[int], object]) -> int:
    cleanup.callback(free, handle)
    return handle


def _thread_device(devices: DeviceLibrary, ordinal: int) -> int:
    """Returns what native threads need to choose the calling thread's device."""
    if devices.backend == "hip":
        return ordinal
    context = ctypes.c_void_p()
    function = devices.functions["current_context"][0]
    devices.check(getattr(devices.library, function)(ctypes.byref(context)), f"choosing device {ordinal} ({function})")
    return context.value or 0


def _copy_functions(devices: DeviceLibrary) -> CopyFunctions:
    """Returns the addresses of the driver's functions."""
    hip = devices.backend == "hip"
    set_device = "set_device" if hip else "set_context"
    roles = set_device, "copy_to_device", "record_event", "query_event", "synchronise_stream"
    functions = (getattr(devices.library, devices.functions[role][0]) for role in roles)
    return CopyFunctions(HIP if hip else CUDA, *map(address_of, functions))
