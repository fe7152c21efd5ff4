"""`paiton-run inspect`: what a bundle holds, for people or as JSON. Reads the manifest, and one plan if asked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TypedDict

from paiton_artifacts.errors import UsageError
from paiton_artifacts.plan import Plan, Relocation, RelocationKind
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.schema import Manifest, MemoryPlan, PlanFile


def run(args: argparse.Namespace) -> int:
    """Prints the manifest, and the tensors or a plan if asked."""
    bundle = open_bundle(args.bundle)
    plan = _plan(bundle, args.plan) if args.plan else None
    if args.json:
        value: dict[str, object] = asdict(bundle.manifest)
        if not args.tensors:
            del value["tensors"]
        if plan is not None:
            value["plan"] = list(_launches(plan))
        print(json.dumps(value, indent=2))
        return 0
    sections = [_model(bundle), _targets(bundle.manifest)]
    sections += [_memory(memory, bundle.manifest.tp) for memory in bundle.manifest.memory]
    if args.tensors:
        sections.append(_tensors(bundle.manifest))
    if plan is not None:
        sections.append("\n".join(["launches", *(f"  {_launch_line(launch)}" for launch in _launches(plan))]))
    print("\n\n".join(sections))
    return 0


def _name(entry: PlanFile) -> str:
    return f"{entry.family}-t{entry.tokens}-r{entry.requests}"


def _plan(bundle: Bundle, name: str) -> Plan:
    for target in {entry.target: None for entry in bundle.manifest.plans}:
        for entry, plan in bundle.plans(target):
            if _name(entry) == name:
                return plan
    names = ", ".join(_name(entry) for entry in bundle.manifest.plans)
    raise UsageError(f"no plan {name}", hint=f"the bundle has: {names}")


class _LaunchRow(TypedDict):
    repeat: int
    symbol: str
    flags: list[str]
    relocations: list[str]


def _launches(plan: Plan) -> Iterator[_LaunchRow]:
    """Yields the launches of the template, each with the repeats of its segment."""
    for segment in plan.segments:
        for launch in segment.launches:
            yield {
                "repeat": segment.repeat,
                "symbol": launch.symbol,
                "flags": [flag.name or "" for flag in launch.flags],
                "relocations": [_relocation(relocation) for relocation in launch.relocations],
            }


def _relocation(relocation: Relocation) -> str:
    """Returns e.g. "+16: weights[4096 + i * 512] 256 B"."""
    where = f"+{relocation.arg_offset}: "
    if relocation.kind is RelocationKind.RANK:
        return f"{where}rank * {relocation.offset}"
    peer = f"rank {relocation.rank} " if relocation.kind is RelocationKind.PEER else ""
    stride = f" + i * {relocation.stride}" if relocation.stride else ""
    return f"{where}{peer}{relocation.region.name.lower()}[{relocation.offset}{stride}] {relocation.size} B"


def _launch_line(launch: _LaunchRow) -> str:
    head = f"{launch['repeat']} x {launch['symbol']} {' '.join(launch['flags'])}".rstrip()
    return "\n      ".join([head, *launch["relocations"]])


def _model(bundle: Bundle) -> str:
    manifest, facts = bundle.manifest, bundle.manifest.model
    size = sum(blob.size for blob in manifest.blobs)
    made = f"{facts.name}  ({facts.architecture}, made by {manifest.generator})"
    shape = (
        f"  {facts.layers} layers, hidden {facts.hidden_size}, intermediate {facts.intermediate_size}, "
        f"{facts.attention_heads} heads / {facts.kv_heads} KV of {facts.head_dim}, vocabulary {facts.vocab_size}"
    )
    storage = (
        f"  context {facts.max_model_len} tokens; weights {facts.weights}, lm_head {facts.lm_head}, "
        f"activations {facts.activations}, KV cache {facts.kv_cache}"
    )
    parts = (
        f"  {manifest.tp} rank(s), {size:,} bytes of weights in {len(manifest.tensors)} tensors a rank, "
        f"{len(manifest.goldens)} goldens"
    )
    return f"{made}\n{shape}\n{storage}\n{parts}"


def _targets(manifest: Manifest) -> str:
    lines = ["targets"]
    lines += [
        f"  {code.target} {code.level}: {len(code.symbols)} kernels, {code.file.size:,} bytes, {code.compiler}"
        for code in manifest.code_objects
    ]
    names: dict[str, list[str]] = {}
    for entry in manifest.plans:
        names.setdefault(f"{entry.target}:{entry.profile}", []).append(_name(entry))
    lines += [f"  plans for {profile}: {' '.join(plans)}" for profile, plans in names.items()]
    return "\n".join(lines)


def _memory(memory: MemoryPlan, tp: int) -> str:
    rows = [
        ("weights", memory.weights_bytes, ""),
        ("io", memory.io_bytes, "shared by all ranks"),
        ("scratch", memory.scratch_bytes, f"and {memory.worker_scratch_bytes:,} a thread"),
        ("comm", memory.comm_bytes, ""),
        ("KV block", memory.kv_block_bytes, f"of {memory.kv_block_tokens} tokens"),
    ]
    lines = [f"memory plan for {memory.target}, bytes for each of {tp} rank(s)"]
    lines += [f"  {name:<9}{size:>16,}  {note}".rstrip() for name, size, note in rows]
    lines.append(f"  steps of up to {memory.max_tokens} tokens and {memory.max_requests} requests")
    return "\n".join(lines)


def _tensors(manifest: Manifest) -> str:
    lines = ["tensors (per rank)"]
    for tensor in manifest.tensors:
        shape = " x ".join(map(str, tensor.shape))
        lines.append(f"  {tensor.offset:>12}  {tensor.size:>12}  {tensor.dtype:<10} {shape:<15} {tensor.name}")
    return "\n".join(lines)
