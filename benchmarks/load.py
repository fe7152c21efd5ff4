"""Weight loads into memory, beside plain pread loops with `--threads` and loaders of others: cold, cached, tmpfs.

A round runs every contender once, in turn, on a file in the same state; the bar is the best plain loop. Peers that fill
memory which is there already are compared with `load`, those that allocate theirs with `load, own memory`, which does
so, too; `load, mapped` is what a boot on the cpu does: it maps the file and faults every page in. With --backend
the destination is a GPU's memory, and the bar its copies from pinned memory alone.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save
from benchmarks.comparison import Comparison, Numbers, compare, print_medians
from benchmarks.load_peers import PeerLoader, start_loaders, write_safetensors
from benchmarks.peers import add_peer_options, install
from paiton_artifacts.digest import cut_chunks, sha256_of_ranges
from paiton_artifacts.schema import Chunk
from paiton_runtime.drivers.cpu import POPULATE_THREADS, processors
from paiton_runtime.drivers.device_library import DeviceLibrary, open_library
from paiton_runtime.host import Mapping, Stop
from paiton_runtime.loader import (
    Destination,
    DeviceDestination,
    FileLoad,
    HostDestination,
    ReadSettings,
    load,
    residency,
)

TMPFS = Path("/dev/shm")  # noqa: S108 (a benchmark of just this)
MADV_POPULATE_WRITE = 23  # not yet in Python's mmap
COLD = 0.01  # share of cached pages that is as good as none
RATE = "gigabytes_per_second"
MAPPED = "load, mapped"
OURS = {"given": "load", "own": "load, own memory"}
"""Our contender by where a peer loads to."""

Contender = Callable[[], float]
"""Loads once and returns the seconds."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """A file of random tensors.

    Attributes:
        path: of a safetensors file.
        descriptor: open to read.
        size: of all of it, in bytes.
        tensor_bytes: of its tensors alone.
    """

    path: Path
    descriptor: int
    size: int
    tensor_bytes: int


@contextmanager
def scratch_file(folder: Path, tensor_bytes: int) -> Iterator[Scratch]:
    """Yields a file that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"paiton-load-{os.getpid()}.safetensors"
    try:
        write_safetensors(path, tensor_bytes)
        with path.open("rb") as file:
            yield Scratch(path, file.fileno(), path.stat().st_size, tensor_bytes)
    finally:
        path.unlink(missing_ok=True)


def make_cold(descriptor: int, size: int) -> None:
    """Drops a file from the page cache."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if (share := residency(descriptor, size)) > COLD:
        raise SystemExit(f"{share:.0%} of the file are still cached: is it on a tmpfs?")


def make_warm(descriptor: int, size: int) -> None:
    """Reads a file into the page cache."""
    buffer = bytearray(16 << 20)
    for start in range(0, size, len(buffer)):
        os.preadv(descriptor, [buffer], start)
    if (share := residency(descriptor, size)) < 1 - COLD:
        raise SystemExit(f"only {share:.0%} of the file are cached: not enough memory?")


def plain_loop(descriptor: int, memory: memoryview, threads: int, piece: int) -> None:
    """Reads a file into memory with threads that take the next piece; preadv releases the interpreter lock.

    Memory is whole pages: reads around the page cache have no other lengths, and the last one ends with the file.
    """
    size = os.fstat(descriptor).st_size
    starts = iter(range(0, size, piece))
    lock = threading.Lock()

    def read() -> None:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            end = min(start + piece, len(memory))
            while start < min(end, size):
                start += os.preadv(descriptor, [memory[start:end]], start)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def measure(contenders: dict[str, tuple[Contender, int]], *, cold: bool, size: int, rounds: int) -> Comparison:
    """Returns gigabytes per second of contenders, each with the descriptor of the file that it reads."""

    def once(contender: Contender, descriptor: int) -> Numbers:
        (make_cold if cold else make_warm)(descriptor, os.fstat(descriptor).st_size)
        return {RATE: size / contender() / 1e9}

    return compare({name: functools.partial(once, *contender) for name, contender in contenders.items()}, rounds)


def judged(found: Comparison, peers: Sequence[PeerLoader] = ()) -> dict[str, Any]:
    """Returns rates, ours over the best plain loop's, and ours over each peer's for the same kind of destination."""
    medians = {name: found.median(name, RATE) for name in found.samples}
    bar = max((name for name in medians if name.startswith("plain")), key=medians.__getitem__)
    kinds = {peer.name: peer.destination for peer in peers if peer.name in medians}
    return {
        **found.as_json("load"),
        "bar": bar,
        "ratio_of_medians": medians["load"] / medians[bar],
        "peers": {
            name: {
                "destination": kind,
                "ours": OURS[kind],
                "ratio_of_medians": medians[OURS[kind]] / medians[name],
                "ratios_by_round": found.ratios(OURS[kind], name)[RATE],
                "mapped_ratio_of_medians": medians[MAPPED] / medians[name],
            }
            for name, kind in kinds.items()
        },
    }


def clocked(work: Callable[[], object]) -> float:
    """Returns the seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def allocate(size: int) -> mmap.mmap:
    """Returns memory of this process that is not touched yet: whole pages, huge ones where there are."""
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def into_own_memory(file: FileLoad, settings: ReadSettings, *, direct: bool) -> float:
    """Returns the seconds of a load together with the allocation of its destination."""
    start = time.perf_counter()
    with allocate(file.size) as pages:
        anchor = ctypes.c_char.from_buffer(pages)
        run_load(file, [HostDestination(ctypes.addressof(anchor))], settings, direct=direct)
        seconds = time.perf_counter() - start
        del anchor
    return seconds


def mapped(descriptor: int, size: int) -> float:
    """Returns the seconds of mapping a file and faulting its pages in, as `CpuDriver` does it."""
    start = time.perf_counter()
    mapping = Mapping.file(descriptor, size, what="scratch")
    try:
        mapping.populate(min(POPULATE_THREADS, processors()), Stop())
        return time.perf_counter() - start
    finally:
        mapping.close()


def to_memory(scratch: Scratch, options: argparse.Namespace, *, cold: bool) -> dict[str, Any]:
    """Measures loads of one file into memory of this process, and of the peers'."""
    size, descriptor = scratch.size, scratch.descriptor
    ranges = cut_chunks(size, ())
    digests = sha256_of_ranges(descriptor, ranges)
    chunks = [Chunk(*where, digest or "") for where, digest in zip(ranges, digests, strict=True)]
    settings = ReadSettings(threads=options.threads, slot_bytes=options.slot_bytes)
    # As many readers as the cpu driver has: more of them only get in each other's way at page faults.
    few = ReadSettings(threads=min(options.threads, POPULATE_THREADS), slot_bytes=options.slot_bytes)
    with allocate(size) as pages, ExitStack() as stack:
        pages.madvise(MADV_POPULATE_WRITE)
        memory = stack.enter_context(memoryview(pages))
        anchor = ctypes.c_char.from_buffer(pages)
        destinations = [HostDestination(ctypes.addressof(anchor))]
        file = FileLoad(descriptor, size, "scratch", chunks)
        plain = functools.partial(plain_loop, memory=memory, threads=options.threads, piece=options.slot_bytes)
        ours = functools.partial(run_load, file, destinations, settings, direct=cold)
        contenders: dict[str, tuple[Contender, int]] = {
            "load": (lambda: clocked(ours), descriptor),
            "plain buffered": (lambda: clocked(lambda: plain(descriptor)), descriptor),
            "load verified": (lambda: clocked(lambda: ours(verify=True)), descriptor),
            MAPPED: (lambda: mapped(descriptor, size), descriptor),
            "load, own memory": (lambda: into_own_memory(file, few, direct=cold), descriptor),
        }
        if cold:
            direct = os.open(scratch.path, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, direct)
            contenders["plain direct"] = (lambda: clocked(lambda: plain(direct)), descriptor)
        peers, absent = start_loaders(options.peers, scratch.path, scratch.tensor_bytes)
        for peer in peers:
            stack.enter_context(peer)
            its_file = os.open(peer.path, os.O_RDONLY)
            stack.callback(os.close, its_file)
            contenders[peer.name] = (peer.load, its_file)
        try:
            found = measure(contenders, cold=cold, size=size, rounds=options.runs)
            found.absent |= absent
            print_medians(found, "load")
            return {**judged(found, peers), "versions": {peer.name: peer.version for peer in peers}}
        finally:
            del anchor


def run_load(
    file: FileLoad, destinations: Sequence[Destination], settings: ReadSettings, *, direct: bool, verify: bool = False
) -> None:
    """Loads; the loader itself must find out whether the file is cached."""
    report = load([file], destinations, settings=settings, verify=verify)
    if (report.direct_bytes > 0) != direct:
        raise SystemExit(f"{report.direct_bytes} of {report.bytes} bytes were read around the page cache")


def copy_ceiling(library: DeviceLibrary, address: int, size: int, slot_bytes: int) -> None:
    """Copies one pinned slot all over the destination: what a load could reach if reading cost nothing."""
    ring, stream = library.allocate_pinned(slot_bytes), library.create_stream()
    for start in range(0, size, slot_bytes):
        library.copy_to_device(address + start, ring, min(slot_bytes, size - start), stream)
    library.synchronise_stream(stream)
    library.destroy_stream(stream)
    library.free_pinned(ring)


def to_device(scratch: Scratch, library: DeviceLibrary, options: argparse.Namespace, *, cold: bool) -> dict[str, Any]:
    """Measures loads of one file into memory of the first device."""
    size, descriptor = scratch.size, scratch.descriptor
    settings = ReadSettings(threads=options.threads, slot_bytes=options.slot_bytes, slots=options.slots)
    library.set_device(0)
    address = library.allocate(size)
    file, destinations = FileLoad(descriptor, size, "scratch"), [DeviceDestination(library, 0, address)]
    copies = functools.partial(copy_ceiling, library, address, size, options.slot_bytes)
    try:
        contenders: dict[str, tuple[Contender, int]] = {
            "load": (lambda: clocked(lambda: run_load(file, destinations, settings, direct=cold)), descriptor),
            "plain copies": (lambda: clocked(copies), descriptor),
        }
        return judged(measure(contenders, cold=cold, size=size, rounds=options.runs))
    finally:
        library.free(address)


def main() -> None:
    """Measures and reports."""
    args, usual = parser(__doc__ or ""), ReadSettings()
    args.add_argument("--bytes", type=int, default=1 << 30, help="of tensors; whole pages of 4,096")
    args.add_argument("--runs", type=int, default=9)
    args.add_argument("--threads", type=int, default=usual.threads)
    args.add_argument("--slot-bytes", type=int, default=usual.slot_bytes)
    args.add_argument("--slots", type=int, default=usual.slots)
    args.add_argument("--folder", type=Path, default=WORK, help="on the disk to measure")
    args.add_argument("--backend", choices=("hip", "cuda"), help="load to this machine's first GPU")
    add_peer_options(args)
    options = args.parse_args()
    if options.install_peers:
        install(options.peers, ["loaders"])
    library = open_library(options.backend) if options.backend else None
    if library:
        library.initialise()
    results = {}
    for state, folder in (("cold", options.folder), ("cached", options.folder), ("tmpfs", TMPFS)):
        with scratch_file(folder, options.bytes) as scratch:
            if library:
                results[state] = to_device(scratch, library, options, cold=state == "cold")
            else:
                results[state] = to_memory(scratch, options, cold=state == "cold")
    facts = {name: getattr(options, name) for name in ("bytes", "threads", "slot_bytes", "slots", "backend")}
    save("load", {**facts, **results})


if __name__ == "__main__":
    main()
