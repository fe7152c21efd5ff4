"""Pushes and pulls of a bundle beside plain transfers of the same objects by the same client, and a boot from a store.

The server is SeaweedFS on this machine, which shares the processors with its clients: numbers compare contenders of one
run, no more. With --megabytes-per-second the clients reach it through a link of that speed, as a network would be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save, smollm2_bundle, summary
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import Address, parse_address
from paiton_artifacts.store.items import bundle_bytes
from paiton_artifacts.store.push import Push
from tests.cpu.store import bundles
from tests.cpu.store.weed import BUCKET, Weed

MIB = 1 << 20
PUSH, PULL, PLAIN_PUT, PLAIN_GET, PLAIN_FILE = "push", "pull", "plain put", "plain get", "plain get to a file"

# Run in a process of its own, so that memory and connections are those of one contender. Prints seconds and peak RSS.
CHILD = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import obstore
from obstore.store import from_url
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.cache import Cache
from paiton_artifacts.store.client import PART_BYTES
from paiton_artifacts.store.items import items_of
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.resolve import Resolver

kind, bundle, url, scratch, workers = sys.argv[1:]
address = parse_address(url)
items = [item for item in items_of(open_bundle(Path(bundle)).manifest) if item.size]
store = from_url(address.root, client_options={"allow_http": True, "timeout": "300s"})
pool = ThreadPoolExecutor(int(workers))

class Anybody:
    require_signature = False
    def check(self, *_args, **_named): pass

def put(item):
    place = item.places[0]
    with open(Path(bundle, place.path), "rb") as file:
        data = os.pread(file.fileno(), item.size, place.offset)
    obstore.put(store, "plain/" + item.digest, data, chunk_size=PART_BYTES)

def parts(item):
    return [(item, start, min(PART_BYTES, item.size - start)) for start in range(0, item.size, PART_BYTES)]

def get(part):
    item, start, size = part
    data = obstore.get_range(store, "blobs/sha256/" + item.digest, start=start, length=size)
    if kind == "plain get":
        for place in item.places: buffers[place.path][place.offset + start : place.offset + start + size] = data
    else:
        for place in item.places: os.pwrite(files[place.path], data, place.offset + start)

sizes = {}
for item in items:
    for place in item.places: sizes[place.path] = max(sizes.get(place.path, 0), place.offset + item.size)
if kind == "plain get":
    buffers = {path: bytearray(size) for path, size in sizes.items()}
if kind == "plain get to a file":
    os.makedirs(scratch)
    names = {path: os.path.join(scratch, path.replace("/", "_")) for path in sizes}
    files = {path: os.open(name, os.O_RDWR | os.O_CREAT) for path, name in names.items()}
start = time.perf_counter()
if kind == "push":
    Push(Path(bundle), address).run()
elif kind == "plain put":
    list(pool.map(put, items))
elif kind == "pull":
    Resolver(Anybody(), Cache(Path(scratch))).cached(address)
else:
    list(pool.map(get, [part for item in items for part in parts(item)]))
    if kind == "plain get to a file":
        for file in files.values(): os.fsync(file)
seconds = time.perf_counter() - start
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_rss": int(peak.split()[1]) * 1024}))
"""


@contextmanager
def link(port: int, rate: float | None) -> Iterator[int]:
    """Yields a port that leads to another at a number of bytes per second in all; None: as fast as it goes."""
    if rate is None:
        yield port
        return
    listener = socket.create_server(("127.0.0.1", 0))
    bucket = _Bucket(rate)

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(128 << 10):
                bucket.take(len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server), (server, client)):
                for end in pair:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


class _Bucket:
    """Lets so many bytes a second pass."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Returns when these bytes may pass."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            wait = self._free_at - now
        if wait > 0.002:
            time.sleep(wait)


def run_child(kind: str, bundle: Path, address: Address, workers: int) -> dict[str, Any]:
    """Runs one contender once; returns its seconds and peak RSS in bytes."""
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        arguments = [kind, str(bundle), str(address), str(Path(scratch, "out")), str(workers)]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def transfers(server: Weed, args: argparse.Namespace) -> dict[str, Any]:
    """Measures pushes and pulls, each beside the plain transfer, turn by turn."""
    folder = WORK / "store-bundle"
    shutil.rmtree(folder, ignore_errors=True)
    bundle = bundles.make(folder, mib=args.mib // 2, chunk=64 * MIB)
    size = bundle_bytes(open_bundle(bundle).manifest)
    samples: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        address = parse_address(f"s3://{BUCKET}/round-{number}/bundle:v1")
        for kind in (PUSH, PLAIN_PUT, PULL, PLAIN_FILE, PLAIN_GET):
            samples.setdefault(kind, []).append(run_child(kind, bundle, address, args.workers))
        server.forget(f"round-{number}")
    rates = {kind: [size / 1e6 / run["seconds"] for run in runs] for kind, runs in samples.items()}
    peaks = {kind: max(run["peak_rss"] for run in runs) / MIB for kind, runs in samples.items()}
    pairs = {PUSH: PLAIN_PUT, PULL: PLAIN_FILE}
    return {
        "bytes": size,
        "megabytes_per_second": {kind: summary(values) for kind, values in rates.items()},
        "peak_rss_mib": peaks,
        "share_of_plain": {
            kind: statistics.median(ours / plain for ours, plain in zip(rates[kind], rates[plain_kind], strict=True))
            for kind, plain_kind in pairs.items()
        },
    }


def boots(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a boot from the store, a process that only transfers, and a boot from disk, turn by turn.

    Boots are measured from exec to the ledger's `total`, the transfer (into memory, nothing verified) to its exit.
    """
    bundle = args.bundle or smollm2_bundle()
    address = Push(bundle, parse_address(f"s3://{BUCKET}/boot/smollm2:v1")).run().address
    samples: dict[str, list[float]] = {"stream": [], "transfer": [], "local": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=WORK) as cache:
            samples["stream"].append(_boot(str(address), cache))
        begun = time.perf_counter()
        run_child(PLAIN_GET, bundle, address, args.workers)
        samples["transfer"].append(time.perf_counter() - begun)
        samples["local"].append(_boot(str(bundle), cache))
    rounds = zip(samples["stream"], samples["transfer"], samples["local"], strict=True)
    return {
        "seconds": {name: summary(values) for name, values in samples.items()},
        "stream_over_longer": statistics.median(stream / max(others) for stream, *others in rounds),
    }


def _boot(bundle: str, cache: str) -> float:
    command = [sys.executable, "-m", "paiton_runtime.cli", "generate", bundle, "hello", "--max-tokens", "1", "--json"]
    environment = {**os.environ, "PAITON_CACHE": cache}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = {row["stage"]: row["end"] for row in json.loads(done.stdout)["ledger"]}
    total: float = rows["total"]
    return total


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--mib", type=int, default=512, help="size of the bundle for transfers")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--workers", type=int, default=4, help="plain transfers at once")
    arguments.add_argument("--megabytes-per-second", type=float, help="speed of the link to the server")
    arguments.add_argument("--bundle", type=Path, help="to boot (default: SmolLM2, built first)")
    args = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rate = args.megabytes_per_second
    with (
        tempfile.TemporaryDirectory(dir=WORK) as folder,
        Weed(Path(folder)) as server,
        link(server.port, rate * 1e6 if rate else None) as port,
    ):
        os.environ.update(server.environment(f"http://127.0.0.1:{port}"))
        result = {"link_megabytes_per_second": rate, "transfers": transfers(server, args), "boots": boots(args)}
    save("store" if rate is None else "store_link", result)


if __name__ == "__main__":
    main()
