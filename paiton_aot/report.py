"""What `paiton-build` tells: the plan of a build before it runs, and the summary after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paiton_aot.build import BuildResult, build_gpus, check_tensors, kernel_symbols, tell_left_out
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.identity.inputs import identify
from paiton_aot.lower import Lowered, lower
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_artifacts.schema import MemoryPlan
from paiton_kernels.gpu.devices import profile_named
from paiton_runtime.budget import DEFAULT_UTILIZATION, device_kv_room, driver_reserve

if TYPE_CHECKING:
    from paiton_aot.predict.prediction import Prediction
    from paiton_aot.targets.gpu.build import GpuTarget

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Sizes and kernels of a build, known from headers alone, and its key; kernels of GPU targets are compiled for it.

    Attributes:
        lowered: the model as it would be written.
        tp: number of ranks.
        key: of the build; None where the checkpoint has no weights, whose digests are a part of it.
        gpus: what the bundle would hold for each GPU target.
        cache: what a build through a cache would find, as `cache.command.look_up` returns it.
        predictions: one for each profile of the GPU targets, if they were asked for.
    """

    lowered: Lowered
    tp: int
    key: BuildKey | None
    gpus: Sequence[GpuTarget] = ()
    cache: dict[str, Any] | None = None
    predictions: Sequence[Prediction] = ()

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
            "experts": None if facts.experts is None else asdict(facts.experts),
            "activations": facts.activations,
            "kv_cache": facts.kv_cache,
            "max_model_len": facts.max_model_len,
            "blob_bytes_per_rank": self.lowered.blob_bytes,
            "blob_bytes": self.lowered.blob_bytes * self.tp,
            "tensor_bytes_per_rank": {d: sum(t.size for t in tensors if t.dtype == d) for d in dtypes},
            "memory_per_rank": _memory(memory),
            "plans": len(self.lowered.cpu.plans),
            "kernels": list(kernel_symbols(self.lowered)),
            "gpus": [_gpu(gpu) for gpu in self.gpus],
            "key": self.key.value if self.key else None,
            "components": dict(self.key.components) if self.key else {},
            "cache": self.cache,
            "predictions": [prediction.as_json() for prediction in self.predictions],
        }

    def as_text(self) -> str:
        """Returns the report as a table for people."""
        facts, memory = self.lowered.facts, self.lowered.cpu.memory
        rows = [
            ("model", f"{facts.name} ({facts.architecture}, {facts.layers} layers, hidden {facts.hidden_size})"),
            ("ranks", str(self.tp)),
            ("weights", f"{facts.weights}, head {facts.lm_head}: {_mib(self.lowered.blob_bytes)} per rank"),
            *(() if facts.experts is None else (("experts", facts.experts.as_text()),)),
            ("activations, KV", f"{facts.activations}, {facts.kv_cache}"),
            ("scratch", f"{_mib(memory.scratch_bytes)} + {_mib(memory.worker_scratch_bytes)} per thread"),
            ("io, comm", f"{_mib(memory.io_bytes)}, {_mib(memory.comm_bytes)}"),
            ("KV cache", f"{memory.kv_block_bytes // memory.kv_block_tokens} bytes per token and rank"),
            ("plans", f"{len(self.lowered.cpu.plans)} for tokens up to {memory.max_tokens}"),
        ]
        lines = [f"{name:16} {value}" for name, value in rows]
        symbols = kernel_symbols(self.lowered)
        lines += [f"{'kernels':16} {len(symbols)}", *(f"  {symbol}" for symbol in symbols)]
        lines += [line for gpu in self.gpus for line in _gpu_lines(gpu)]
        lines += [line for prediction in self.predictions for line in ("", prediction.as_text(), "")]
        if self.key is None:
            return "\n".join([*lines, f"{'build key':16} none: it covers the digests of weights, which are not there"])
        lines += [f"{'build key':16} {self.key.value}"]
        if self.cache is not None:
            lines += [f"{'cache':16} {_cache_text(self.cache)}"]
        return "\n".join([*lines, *(f"  {name} {value}" for name, value in self.key.components.items())])


def _cache_text(cache: dict[str, Any]) -> str:
    if cache["hit"]:
        return f"has it: {cache['bundle']}"
    if cache["differs"] is None:
        return "has no build of this model"
    return f"has an older build of this model; changed since: {', '.join(cache['differs']) or 'nothing'}"


def _memory(memory: MemoryPlan) -> dict[str, int]:
    return {
        "weights": memory.weights_bytes,
        "io": memory.io_bytes,
        "scratch": memory.scratch_bytes,
        "scratch_per_thread": memory.worker_scratch_bytes,
        "comm": memory.comm_bytes,
        "kv_per_token": memory.kv_block_bytes // memory.kv_block_tokens,
        "kv_of_one_full_context": memory.max_blocks_per_request * memory.kv_block_bytes,
    }


def _device(memory: MemoryPlan, plans: int) -> dict[str, int]:
    """Returns what a rank's device offers, and how many tokens of KV cache fit beside everything else."""
    total = profile_named(memory.profile).memory_bytes
    usable, reserve = int(total * DEFAULT_UTILIZATION), driver_reserve(plans)
    tokens = max(0, device_kv_room(memory, usable, reserve)) * memory.kv_block_tokens
    return {"device": total, "usable": usable, "regions": memory.fixed_bytes, "reserve": reserve, "kv_tokens": tokens}


def _profile(gpu: GpuTarget, memory: MemoryPlan) -> dict[str, Any]:
    mine = [plan for plan in gpu.plans if plan.profile == memory.profile]
    forward = [plan for plan in mine if plan.family == "forward"]
    buckets = [[plan.tokens, plan.requests] for plan in forward]
    launches = {f"t{plan.tokens}r{plan.requests}": plan.launches for plan in forward}
    return {**_memory(memory), **_device(memory, len(mine)), "buckets": buckets, "launches": launches}


def _gpu(gpu: GpuTarget) -> dict[str, Any]:
    return {
        "target": gpu.target.name,
        "code_bytes": len(gpu.code),
        "plans": len(gpu.plans),
        "spilling": list(gpu.spilling),
        "profiles": {memory.profile: _profile(gpu, memory) for memory in gpu.memory},
        "kernels": {kernel.symbol: kernel.tuning for kernel in gpu.table.kernels},
    }


def _gpu_lines(gpu: GpuTarget) -> list[str]:
    sources = Counter(kernel.tuning for kernel in gpu.table.kernels)
    chosen = ", ".join(f"{count} {source}" for source, count in sorted(sources.items()))
    spills = f"{len(gpu.spilling)} of them spill registers" if gpu.spilling else "none spills registers"
    lines = [f"{gpu.target.name:16} {len(gpu.table.kernels)} kernels ({chosen}), {_mib(len(gpu.code))}, {spills}"]
    for memory in gpu.memory:
        found = _profile(gpu, memory)
        forward = [plan for plan in gpu.plans if plan.profile == memory.profile and plan.family == "forward"]
        sizes = " ".join(f"{plan.tokens}/{plan.requests}" for plan in forward)
        lines += [
            (
                f"  {memory.profile:14} {sum(plan.profile == memory.profile for plan in gpu.plans)} plans,"
                f" {forward[0].launches} to {max(plan.launches for plan in forward)} launches; tokens/requests {sizes}"
            ),
            (
                f"  {'':14} of {_gib(found['device'])} on each device, {_gib(found['usable'])} are used: weights"
                f" {_gib(memory.weights_bytes)}, scratch {_mib(memory.scratch_bytes)}, io {_mib(memory.io_bytes)}, comm"
                f" {_mib(memory.comm_bytes)}, driver {_mib(found['reserve'])}"
            ),
            f"  {'':14} KV cache: {found['kv_tokens']:,} tokens of {found['kv_per_token']:,} bytes fit",
        ]
    return [*lines, *(f"  {kernel.symbol}" for kernel in gpu.table.kernels)]


def plan(
    model: Path, options: BuildOptions, progress: Progress, *, predict: bool = False, storage_rate: float | None = None
) -> PlanReport:
    """Returns what a build of `model` would write, and its key.

    Of the checkpoint it reads headers, and for the key every byte, unless its digests are remembered from an earlier
    time. A checkpoint without weights, of which there are only configuration and index, has no key. Kernels of GPU
    targets are compiled.

    Args:
        model: a Hugging Face directory or a GGUF file.
        options: what to build.
        progress: where to tell how it gets on.
        predict: also predict steps and boots on the GPU targets' devices.
        storage_rate: bytes per second at which weights are read, for predictions of boots.

    Raises:
        PaitonError: the build would be refused.
    """
    with open_checkpoint(model, outline=True) as checkpoint:
        lowered = lower(checkpoint, options)
        check_tensors(checkpoint, lowered)
        tell_left_out(checkpoint, progress)
        key = None if checkpoint.outlined else identify(model, options, progress).key
    gpus = build_gpus(lowered, options, progress)
    return PlanReport(lowered, options.tp, key, gpus, predictions=_predictions(lowered, gpus, storage_rate, predict))


def _predictions(
    lowered: Lowered, gpus: Sequence[GpuTarget], storage_rate: float | None, wanted: bool
) -> tuple[Prediction, ...]:
    if not wanted:
        return ()
    from paiton_aot.predict.prediction import predict  # noqa: PLC0415  (its launches are Triton's)

    return tuple(predict(lowered, made, storage_rate) for gpu in gpus for made in gpu.configured)


def built(result: BuildResult) -> dict[str, Any]:
    """Returns the outcome of a build as plain data: sizes in bytes, times in seconds."""
    facts = result.lowered.facts
    return {
        "bundle": str(result.bundle),
        "key": result.key.value,
        "model": facts.name,
        "tp": len(result.lowered.tensors[0].parts[0].source_row),
        "bytes": result.bytes,
        "blob_bytes": result.lowered.blob_bytes,
        "kernels": len(result.lowered.cpu.variants) + sum(len(gpu.table.kernels) for gpu in result.gpus),
        "plans": len(result.lowered.cpu.plans) + sum(len(gpu.plans) for gpu in result.gpus),
        "targets": ["cpu", *(gpu.target.name for gpu in result.gpus)],
        "verified_levels": list(result.verified),
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
    }


def summary(result: BuildResult) -> str:
    """Returns one line for people."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    total = sum(result.seconds.values())
    return f"{result.bundle}: {_mib(result.bytes)} in {total:.1f} s ({stages})"


def _gib(size: int) -> str:
    return f"{size / (MIB << 10):.2f} GiB"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
