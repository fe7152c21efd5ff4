"""Weight loads into memory, beside plain pread loops with as many threads: cold, cached, and from a tmpfs.

A round runs every contender once, in turn, on a file in the same state; the bar is the best plain loop. With --backend
the destination is a GPU's memory, and the bar its copies from pinned memory alone.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save, summary
from paiton_artifacts.digest import cut_chunks, sha256_of_ranges
from paiton_artifacts.schema import Chunk
from paiton_runtime.drivers.device_library import DeviceLibrary, open_library
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
Contender = Callable[[], None]


@contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[int]:
    """Yields the descriptor of a file of random bytes, which is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"paiton-load-{os.getpid()}"
    block = os.urandom(16 << 20)
    try:
        with path.open("w+b") as file:
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
            file.flush()
            os.fsync(file.fileno())
            yield file.fileno()
    finally:
        path.unlink()


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
    """Reads a file into memory with threads that take the next piece; preadv releases the interpreter lock."""
    starts = iter(range(0, len(memory), piece))
    lock = threading.Lock()

    def read() -> None:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            end = min(start + piece, len(memory))
            while start < end:
                start += os.preadv(descriptor, [memory[start:end]], start)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def measure(contenders: dict[str, Contender], prepare: Contender, size: int, rounds: int) -> dict[str, Any]:
    """Returns gigabytes per second of every contender, in rounds whose order rotates."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prepare()
            start = time.perf_counter()
            contenders[name]()
            speeds[name].append(size / (time.perf_counter() - start) / 1e9)
    bar = max((name for name in names if name.startswith("plain")), key=lambda name: statistics.median(speeds[name]))
    medians = {name: statistics.median(speeds[name]) for name in names}
    return {
        "gigabytes_per_second": {name: summary(speeds[name]) for name in names},
        "bar": bar,
        "ratio_of_medians": medians["load"] / medians[bar],
        "ratios_by_round": summary([ours / plain for ours, plain in zip(speeds["load"], speeds[bar], strict=True)]),
    }


def to_memory(descriptor: int, options: argparse.Namespace, *, cold: bool, chunks: list[Chunk]) -> dict[str, Any]:
    """Measures loads of one file into memory of this process."""
    size = options.bytes
    settings = ReadSettings(threads=options.threads, slot_bytes=options.slot_bytes)
    with mmap.mmap(-1, size) as pages, ExitStack() as stack:
        pages.madvise(MADV_POPULATE_WRITE)
        memory = stack.enter_context(memoryview(pages))
        anchor = ctypes.c_char.from_buffer(pages)
        destinations = [HostDestination(ctypes.addressof(anchor))]
        file = FileLoad(descriptor, size, "scratch", chunks)
        plain = functools.partial(plain_loop, memory=memory, threads=options.threads, piece=options.slot_bytes)
        contenders: dict[str, Contender] = {
            "load": lambda: run_load(file, destinations, settings, direct=cold),
            "plain buffered": lambda: plain(descriptor),
            "load verified": lambda: run_load(file, destinations, settings, direct=cold, verify=True),
        }
        if cold:
            direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, direct)
            contenders["plain direct"] = lambda: plain(direct)
        prepare = functools.partial(make_cold if cold else make_warm, descriptor, size)
        try:
            return measure(contenders, prepare, size, options.rounds)
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


def to_device(descriptor: int, library: DeviceLibrary, options: argparse.Namespace, *, cold: bool) -> dict[str, Any]:
    """Measures loads of one file into memory of the first device."""
    size = options.bytes
    settings = ReadSettings(threads=options.threads, slot_bytes=options.slot_bytes, slots=options.slots)
    library.set_device(0)
    address = library.allocate(size)
    file, destinations = FileLoad(descriptor, size, "scratch"), [DeviceDestination(library, 0, address)]
    try:
        contenders: dict[str, Contender] = {
            "load": lambda: run_load(file, destinations, settings, direct=cold),
            "plain copies": lambda: copy_ceiling(library, address, size, options.slot_bytes),
        }
        prepare = functools.partial(make_cold if cold else make_warm, descriptor, size)
        return measure(contenders, prepare, size, options.rounds)
    finally:
        library.free(address)


def main() -> None:
    """Measures and reports."""
    args, usual = parser(__doc__ or ""), ReadSettings()
    args.add_argument("--bytes", type=int, default=1 << 30)
    args.add_argument("--rounds", type=int, default=9)
    args.add_argument("--threads", type=int, default=usual.threads)
    args.add_argument("--slot-bytes", type=int, default=usual.slot_bytes)
    args.add_argument("--slots", type=int, default=usual.slots)
    args.add_argument("--folder", type=Path, default=WORK, help="on the disk to measure")
    args.add_argument("--backend", choices=("hip", "cuda"), help="load to this machine's first GPU")
    options = args.parse_args()
    library = open_library(options.backend) if options.backend else None
    if library:
        library.initialise()
    results = {}
    for state, folder in (("cold", options.folder), ("cached", options.folder), ("tmpfs", TMPFS)):
        with scratch_file(folder, options.bytes) as descriptor:
            if library:
                results[state] = to_device(descriptor, library, options, cold=state == "cold")
                continue
            ranges = cut_chunks(options.bytes, ())
            digests = sha256_of_ranges(descriptor, ranges)
            chunks = [Chunk(*where, digest or "") for where, digest in zip(ranges, digests, strict=True)]
            results[state] = to_memory(descriptor, options, cold=state == "cold", chunks=chunks)
    facts = {name: getattr(options, name) for name in ("bytes", "threads", "slot_bytes", "slots", "backend")}
    save("load", {**facts, **results})


if __name__ == "__main__":
    main()
