"""Loads a safetensors file with a loader of others, once for each line on stdin: `load_peers` runs this in their venv.

Every line on stdout is an object: first what is loaded and where to, then the seconds of each load and a checksum of
what lay in memory after it, or an error. It imports nothing but the loader and torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STRIDE = 512
"""Of the 64-bit words that the checksum adds up: one of each page of 4 KiB."""


@dataclass(frozen=True, slots=True)
class Loader:
    """A way to load.

    Attributes:
        package: of it.
        path: the file that it reads.
        destination: "given": into memory that was there and touched before, as a model's parameters are; "own": into
            memory that the loader allocates.
        load: returns the tensors, and what ends their life.
    """

    package: str
    path: Path
    destination: str
    load: Callable[[], tuple[Iterable[Any], Callable[[], None]]]


def _nothing() -> None:
    """Ends the life of nothing."""


def safetensors(path: Path) -> Loader:
    """Copies each tensor out of the library's memory map into a tensor that was there before."""
    from safetensors import safe_open  # noqa: PLC0415  (only one loader is imported)
    from safetensors.torch import load_file  # noqa: PLC0415

    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}

    def load() -> tuple[Iterable[Any], Callable[[], None]]:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))
        return tensors.values(), _nothing

    return Loader("safetensors", path, "given", load)


def fastsafetensors(path: Path) -> Loader:
    """Reads with the library's threads into its own buffer, of which tensors are views; there is no GDS on a CPU."""
    library = importlib.import_module("fastsafetensors")

    def load() -> tuple[Iterable[Any], Callable[[], None]]:
        loader = library.SafeTensorsFileLoader(library.SingleGroup(), "cpu", nogds=True)
        loader.add_filenames({0: [str(path)]})
        buffer = loader.copy_files_to_device()
        tensors = [buffer.get_tensor(name) for name in loader.get_keys()]

        def end() -> None:
            tensors.clear()
            buffer.close()
            loader.close()

        return tensors, end

    return Loader("fastsafetensors", path, "own", load)


def runai(path: Path) -> Loader:
    """Streams into the library's own buffer, of which tensors are views; nothing limits its memory."""
    os.environ.setdefault("RUNAI_STREAMER_MEMORY_LIMIT", "-1")
    library = importlib.import_module("runai_model_streamer")

    def load() -> tuple[Iterable[Any], Callable[[], None]]:
        with library.SafetensorsStreamer() as streamer:
            streamer.stream_file(str(path))
            return [tensor for _, tensor in streamer.get_tensors()], _nothing

    return Loader("runai-model-streamer", path, "own", load)


def flashpack(path: Path) -> Loader:
    """Reads the same tensors from the library's own format with its parallel reader; by default it only maps a file."""
    os.environ["FLASHPACK_CPU_PARALLEL_READ"] = "1"
    library, reader = importlib.import_module("flashpack"), importlib.import_module("flashpack.deserialization")
    from safetensors.torch import load_file  # noqa: PLC0415

    packed = path.with_suffix(".flashpack")
    library.pack_to_file(load_file(path), str(packed), target_dtype=None)

    def load() -> tuple[Iterable[Any], Callable[[], None]]:
        storage, _ = reader.read_flashpack_file(str(packed), device="cpu")
        return storage.blocks, _nothing

    return Loader("flashpack", packed, "own", load)


LOADERS: dict[str, Callable[[Path], Loader]] = {
    "safetensors": safetensors,
    "fastsafetensors": fastsafetensors,
    "runai-model-streamer": runai,
    "flashpack": flashpack,
}


def checksum(tensors: Iterable[Any]) -> int:
    """Returns the sum, modulo 2^64, of one 64-bit word of each page of the tensors."""
    import torch  # noqa: PLC0415  (after the loader, some of which want to be first)

    return sum(int(tensor.view(-1).view(torch.int64)[::STRIDE].sum()) for tensor in tensors) % 2**64


def one_load(loader: Loader) -> dict[str, Any]:
    """Loads once; returns seconds and checksum."""
    start = time.perf_counter()
    tensors, end = loader.load()
    seconds = time.perf_counter() - start
    found = checksum(tensors)
    end()
    return {"seconds": seconds, "checksum": found}


def main() -> None:
    """Answers each line with one load."""
    name, path = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    try:
        loader = LOADERS[name](path)
        one_load(loader)  # what a library does once, at its first load, is not loading
        release = importlib.metadata.version(loader.package)
        hello = {"version": release, "path": str(loader.path), "destination": loader.destination}
        answers.write(json.dumps(hello) + "\n")
        for _ in sys.stdin:
            answers.write(json.dumps(one_load(loader)) + "\n")
    except Exception as error:  # noqa: BLE001  (whatever a foreign library raises is the peer's reason)
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main()
