"""Runs a bundle's plans of a GPU target in the emulator: relocates every launch and executes it, one after the other.

No driver and no runtime: what is tested is the plan, the kernels and the memory plan, by a second, plain executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_aot.targets.segments import unroll
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Launch, Plan, RelocationKind
from paiton_artifacts.reader import open_bundle
from paiton_kernels.gpu.compile_cache import entry_path, load
from paiton_kernels.gpu.devices import target_named
from tests.emulated.cdna import DeviceMemory, Kernel

_DTYPES = {"i32": np.int32, "f32": np.float32, "u64": np.uint64}


@dataclass(frozen=True)
class Piece:
    """Tokens of one request in a step; logits are computed after the last, or after every token."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    every: bool = False


def assemblies(cache_dir: Path) -> list[tuple[bytes, str]]:
    """Returns the code object and the assembly text of every kernel in the compile cache."""
    folder = cache_dir / "gpu"
    outputs = (load(folder, path.stem) for path in folder.glob(f"*{entry_path(folder, '').suffix}"))
    return [(output.code, output.assembly) for output in outputs if output is not None]


class EmulatedModel:
    """A bundle on one emulated device.

    Args:
        bundle: its directory.
        target: an AMD target that it was built for.
        cache_dir: the build's, for the kernels' assembly.
        kv_blocks: blocks of the KV cache.
    """

    def __init__(self, bundle: Path, target: str, cache_dir: Path, kv_blocks: int = 8) -> None:
        self.bundle = open_bundle(bundle)
        self.arch = target_named(target).arch
        self.plan_memory = self.bundle.memory(target)
        self.kernels = self.bundle.kernels(target)
        self.plans = {(entry.family, entry.tokens, entry.requests): plan for entry, plan in self.bundle.plans(target)}
        texts = dict(assemblies(cache_dir))
        (code,) = self.bundle.code_objects(target).values()
        archive = self.bundle.read_file(code.file)
        self.emulated: dict[str, Kernel] = {}
        for kernel in self.kernels.values():
            image = archive[kernel.offset : kernel.offset + kernel.size]
            self.emulated[kernel.symbol] = Kernel(texts[image], self.arch)
        self.memory, self.bases = self._allocate(kv_blocks)
        self.io = {field.name: field for field in self.plan_memory.io}

    def _allocate(self, kv_blocks: int) -> tuple[DeviceMemory, dict[Region, int]]:
        plan = self.plan_memory
        weights = np.fromfile(self.bundle.blob_path(0), np.uint8)
        sizes = {
            Region.WEIGHTS: weights.size,
            Region.IO: plan.io_bytes,
            Region.SCRATCH: plan.scratch_bytes,
            Region.KV: kv_blocks * plan.kv_block_bytes,
            Region.COMM: plan.comm_bytes,
        }
        memory = DeviceMemory(sum(sizes.values()) + (1 << 20))
        bases = {region: memory.alloc(size) for region, size in sizes.items()}
        memory.write(bases[Region.WEIGHTS], weights)
        memory.write(bases[Region.IO], np.zeros(plan.io_bytes, np.uint8))  # state starts as zeros
        return memory, bases

    def set(self, name: str, values: NDArray[Any] | Sequence[Any], at: int = 0) -> None:
        """Writes elements of an io field from element `at` on."""
        field = self.io[name]
        array = np.ascontiguousarray(values, _DTYPES[field.dtype])
        assert at + array.size <= field.count
        self.memory.write(self.bases[Region.IO] + field.offset + at * array.itemsize, array.view(np.uint8).ravel())

    def get(self, name: str, count: int) -> NDArray[Any]:
        """Returns the first elements of an io field."""
        field = self.io[name]
        dtype = np.dtype(_DTYPES[field.dtype])
        return self.memory.read(self.bases[Region.IO] + field.offset, count * dtype.itemsize).view(dtype)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """Returns the logits of the last step, f32 [rows, vocabulary]."""
        plan = self.plan_memory
        raw = self.memory.read(self.bases[plan.logits_region] + plan.logits_offset, rows * plan.logits_stride * 4)
        return raw.view(np.float32).reshape(rows, -1)[:, : self.bundle.manifest.model.vocab_size]

    def step(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Runs one step; returns logits and sampled tokens of its rows."""
        tokens, rows = self._fill(pieces)
        requests = max(len(pieces), rows)
        self.run(self._find("forward", tokens, requests))
        self.run(self._find("sample", 0, rows))
        return self.logits(rows).copy(), self.get("sampled", rows).copy()

    def _find(self, family: str, tokens: int, requests: int) -> Plan:
        keys = [key for key in sorted(self.plans) if key[0] == family and key[1] >= tokens and key[2] >= requests]
        return self.plans[keys[0]]

    def _fill(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        starts, rows = [0], []
        for number, piece in enumerate(pieces):
            first, count = starts[-1], len(piece.tokens)
            self.set("token_ids", piece.tokens, first)
            self.set("positions", range(piece.start, piece.start + count), first)
            self.set("request_of", [number] * count, first)
            self.set("block_tables", piece.blocks, number * self.plan_memory.max_blocks_per_request)
            rows += [(first + i, number) for i in (range(count) if piece.every else [count - 1])]
            starts.append(first + count)
        self.set("query_start", starts)
        self.set("logit_rows", [token for token, _ in rows])
        self.set("slot_of", [request for _, request in rows])
        for name, value in _GREEDY.items():
            self.set(name, [value] * len(rows))
        self.set("stop_tokens", [-1] * (8 * len(rows)))
        self.set("counts", [starts[-1], len(pieces), len(rows), 0])
        return starts[-1], len(rows)

    def run(self, plan: Plan) -> None:
        """Executes every launch of a plan."""
        for segment in plan.segments:
            for launch in unroll(segment):
                self._launch(launch)

    def _launch(self, launch: Launch) -> None:
        kernel = self.kernels[launch.symbol]
        args = bytearray(launch.args)
        for relocation in launch.relocations:
            value = self.bases[relocation.region] + relocation.offset
            if relocation.kind is RelocationKind.RANK:
                value = 0
            args[relocation.arg_offset : relocation.arg_offset + 8] = value.to_bytes(8, "little")
        self.emulated[launch.symbol].launch_raw(
            self.memory,
            bytes(args[: kernel.args_bytes]),
            launch.grid,
            kernel.threads // 64,
            kernel.shared_bytes,
        )


_GREEDY: dict[str, float] = {
    "temperature": 0,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "seed": 0,
    "draw": 0,
    "mask_row": -1,
    "top_logprobs": -1,
    "max_position": 1 << 20,
}
