"""What `paiton-build` tells: the plan of a build before it runs, and the summary after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paiton_aot.build import BuildResult, check_tensors, kernel_symbols
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import Lowered, lower
from paiton_aot.options import BuildOptions

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Sizes and kernels of a build, known from headers alone."""

    lowered: Lowered
    tp: int

    def as_json(self) -> dict[str, Any]:
        """Returns the report as plain data; sizes in bytes."""
        facts, memory = self.lowered.facts, self.lowered.cpu.memory
        tensors = self.lowered.tensors
        dtypes = sorted({tensor.dtype for tensor in tensors})
        return {
            "model": facts.name,
            "architecture": facts.architecture,
            "tp": self.tp,
            "weights": facts.weights,
            "lm_head": facts.lm_head,
            "activations": facts.activations,
            "kv_cache": facts.kv_cache,
            "max_model_len": facts.max_model_len,
            "blob_bytes_per_rank": self.lowered.blob_bytes,
            "blob_bytes": self.lowered.blob_bytes * self.tp,
            "tensor_bytes_per_rank": {d: sum(t.size for t in tensors if t.dtype == d) for d in dtypes},
            "memory_per_rank": {
                "weights": memory.weights_bytes,
                "io": memory.io_bytes,
                "scratch": memory.scratch_bytes,
                "scratch_per_thread": memory.worker_scratch_bytes,
                "comm": memory.comm_bytes,
                "kv_per_token": memory.kv_block_bytes // memory.kv_block_tokens,
                "kv_of_one_full_context": memory.max_blocks_per_request * memory.kv_block_bytes,
            },
            "plans": len(self.lowered.cpu.plans),
            "kernels": list(kernel_symbols(self.lowered)),
        }

    def as_text(self) -> str:
        """Returns the report as a table for people."""
        facts, memory = self.lowered.facts, self.lowered.cpu.memory
        rows = [
            ("model", f"{facts.name} ({facts.architecture}, {facts.layers} layers, hidden {facts.hidden_size})"),
            ("ranks", str(self.tp)),
            ("weights", f"{facts.weights}, head {facts.lm_head}: {_mib(self.lowered.blob_bytes)} per rank"),
            ("activations, KV", f"{facts.activations}, {facts.kv_cache}"),
            ("scratch", f"{_mib(memory.scratch_bytes)} + {_mib(memory.worker_scratch_bytes)} per thread"),
            ("io, comm", f"{_mib(memory.io_bytes)}, {_mib(memory.comm_bytes)}"),
            ("KV cache", f"{memory.kv_block_bytes // memory.kv_block_tokens} bytes per token and rank"),
            ("plans", f"{len(self.lowered.cpu.plans)} for tokens up to {memory.max_tokens}"),
        ]
        lines = [f"{name:16} {value}" for name, value in rows]
        symbols = kernel_symbols(self.lowered)
        return "\n".join([*lines, f"{'kernels':16} {len(symbols)}", *(f"  {symbol}" for symbol in symbols)])


def plan(model: Path, options: BuildOptions) -> PlanReport:
    """Returns what a build of `model` would write; reads headers only.

    Raises:
        PaitonError: the build would be refused.
    """
    with open_checkpoint(model) as checkpoint:
        lowered = lower(checkpoint, options)
        check_tensors(checkpoint, lowered)
        return PlanReport(lowered, options.tp)


def built(result: BuildResult) -> dict[str, Any]:
    """Returns the outcome of a build as plain data: sizes in bytes, times in seconds."""
    facts = result.lowered.facts
    return {
        "bundle": str(result.bundle),
        "model": facts.name,
        "tp": len(result.lowered.tensors[0].parts[0].source_row),
        "bytes": result.bytes,
        "blob_bytes": result.lowered.blob_bytes,
        "kernels": len(result.lowered.cpu.variants),
        "plans": len(result.lowered.cpu.plans),
        "verified_levels": list(result.verified),
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
    }


def summary(result: BuildResult) -> str:
    """Returns one line for people."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    total = sum(result.seconds.values())
    return f"{result.bundle}: {_mib(result.bytes)} in {total:.1f} s ({stages})"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
