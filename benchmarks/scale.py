"""One rank's blob of Llama-3.1-405B in FP8, tp 8: generated weights, streamed through the build's own conversion.

No checkpoint is on the disk: tensors have the names, shapes and dtypes that its index implies, and their bytes are made
when they are read. Every byte of every rank is converted, of which the first rank's are kept and digested and the other
ranks' dropped. `--layers` says how many of the 126 layers (a layer of the kept blob takes 0.4 GB of disk); for as many
the blob's size must be the plan's, and from there all layers follow exactly, as they are laid out alike.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.build_memory import anonymous_bytes
from benchmarks.common import ROOT, WORK, parser, save
from benchmarks.outline import LLAMA_3_1_405B_FP8, write_outline
from paiton_aot.build import source_bytes
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import NUMPY_DTYPES, Checkpoint, SourceTensor, TokenizerFiles
from paiton_aot.convert import write_tensors
from paiton_aot.lower import Lowered, lower
from paiton_aot.options import BuildOptions
from paiton_aot.quantize import Quantizer
from paiton_artifacts.writer import BundleWriter

TP = 8
LAYERS = 126
NOISE_BYTES = 16 << 20
FREE_BYTES = 4 << 30
"""Disk that must be left."""


class GeneratedTensor(SourceTensor):
    """A tensor whose rows are cut from a block of noise when they are read."""

    def __init__(self, like: SourceTensor, noise: NDArray[np.uint8]) -> None:
        super().__init__(like.name, like.shape, like.dtype)
        self._noise = noise

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        dtype = NUMPY_DTYPES[self.dtype]
        if self.dtype == "f32":
            return np.full((stop - start) * self.row_elements, 0.01, np.float32)
        size = (stop - start) * self.row_elements * dtype.itemsize
        first = start * 4096 % (NOISE_BYTES // 2)
        return np.resize(self._noise[first:], size).view(dtype)


class GeneratedCheckpoint(Checkpoint):
    """An outlined checkpoint with generated weights."""

    def __init__(self, outlined: Checkpoint) -> None:
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 0x7F, NOISE_BYTES, np.uint8) | (rng.integers(0, 2, NOISE_BYTES, np.uint8) << 7)
        plain = ((rng.standard_normal(NOISE_BYTES // 2).astype(np.float32) * 0.02).view(np.uint32) >> 16).astype("<u2")
        noise = {"fp8_e4m3fn": codes, "bf16": plain.view(np.uint8), "f32": codes}
        stored = [outlined.tensor(name) for name in outlined.names()]
        tensors = {tensor.name: GeneratedTensor(tensor, noise[tensor.dtype]) for tensor in stored}
        super().__init__(outlined.name, outlined.config, tensors, outlined.quantization, outlined.title)

    def tokenizer(self) -> TokenizerFiles:
        """There is none."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


def planned(folder: Path, layers: int) -> tuple[Checkpoint, Lowered]:
    """Returns the checkpoint of so many layers, and the model as a build lowers it."""
    checkpoint = open_checkpoint(
        write_outline(folder, {**LLAMA_3_1_405B_FP8, "num_hidden_layers": layers}), outline=True
    )
    return checkpoint, lower(checkpoint, BuildOptions(tp=TP, act="fp8", kv="fp8"))


def convert(folder: Path, layers: int) -> dict[str, Any]:
    """Converts, keeps and digests the first rank's blob; returns seconds and bytes."""
    outlined, lowered = planned(folder, layers)
    checkpoint = GeneratedCheckpoint(outlined)
    table = {tensor.name: tensor for tensor in lowered.tensors}
    total = source_bytes(checkpoint, lowered)
    with BundleWriter(folder / "bundle", force=True) as writer:
        started, before = time.perf_counter(), time.process_time()
        with ExitStack() as stack:
            files = [stack.enter_context(writer.create_blob(0))]
            files += [stack.enter_context(Path(os.devnull).open("wb", buffering=0)) for _ in range(TP - 1)]
            files[0].truncate(lowered.blob_bytes)
            quantizer = Quantizer(BuildOptions().cache_dir)
            write_tensors(checkpoint, lowered.specs, table, files, quantizer, lambda _count: None)
        converted, busy = time.perf_counter() - started, time.process_time() - before
        started = time.perf_counter()
        blob = writer.finish_blob(0, lowered.blob_bytes, lowered.tensors)
        digested = time.perf_counter() - started
        written = writer.blob_path(0).stat().st_size
    return {
        "layers": layers,
        "source_bytes": total,
        "planned_blob_bytes": lowered.blob_bytes,
        "blob_bytes": written,
        "chunks": len(blob.chunks),
        "convert_seconds": round(converted, 2),
        "convert_processor_seconds": round(busy, 2),
        "digest_seconds": round(digested, 2),
        "largest_tensor_bytes": max(checkpoint.tensor(name).nbytes for name in checkpoint.names()),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def watched(folder: Path, layers: int) -> dict[str, Any]:
    """Converts in a process of its own; returns what it reports, and its peak of anonymous memory."""
    command = [sys.executable, "-m", "benchmarks.scale", "--folder", str(folder), "--layers", str(layers)]
    peak = 0
    with (folder / "report.json").open("w+b") as stdout:
        child = subprocess.Popen(command, stdout=stdout, cwd=ROOT)
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(0.02)
        stdout.seek(0)
        report: dict[str, Any] = json.load(stdout)
    return {**report, "peak_anonymous_bytes": peak}


def extrapolated(measured: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Returns what all layers take: bytes exactly, from the plans; seconds in proportion to bytes read."""
    sizes = {n: planned(scratch, n)[1].blob_bytes for n in (measured["layers"], measured["layers"] + 1, LAYERS)}
    few, more, every = sizes.values()
    outlined, lowered = planned(scratch, LAYERS)
    total = source_bytes(outlined, lowered)
    share = total / measured["source_bytes"]
    return {
        "layers": LAYERS,
        "planned_blob_bytes": every,
        "blob_bytes_of_a_layer": more - few,
        "source_bytes": total,
        "convert_seconds": round(measured["convert_seconds"] * share),
        "convert_processor_seconds": round(measured["convert_processor_seconds"] * share),
        "digest_seconds_of_a_rank": round(measured["digest_seconds"] * every / measured["blob_bytes"]),
    }


def main() -> None:
    """Measures and reports; with `--folder`, in the process that is watched."""
    args = parser(__doc__ or "")
    args.add_argument("--layers", type=int, default=8, help="of 126")
    args.add_argument("--folder", type=Path, help="where to write (for the process that is watched)")
    options = args.parse_args()
    if options.folder is not None:
        print(json.dumps(convert(options.folder, options.layers)))
        return
    folder = WORK / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        needed = planned(folder, options.layers)[1].blob_bytes
        if shutil.disk_usage(folder).free - needed < FREE_BYTES:
            raise SystemExit(
                f"{needed / 1e9:.1f} GB would not leave {FREE_BYTES / 1e9:.1f} GB of disk: use fewer --layers"
            )
        measured = watched(folder, options.layers)
        if measured["blob_bytes"] != measured["planned_blob_bytes"]:
            raise SystemExit(f"the blob has {measured['blob_bytes']} bytes, planned {measured['planned_blob_bytes']}")
        rates = {
            "convert_seconds_per_gb_read": round(measured["convert_seconds"] / measured["source_bytes"] * 1e9, 3),
            "convert_processor_seconds_per_gb_read": round(
                measured["convert_processor_seconds"] / measured["source_bytes"] * 1e9, 3
            ),
            "digest_seconds_per_gb": round(measured["digest_seconds"] / measured["blob_bytes"] * 1e9, 3),
        }
        save("scale", {"tp": TP, "measured": {**measured, **rates}, "extrapolated": extrapolated(measured, folder)})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
