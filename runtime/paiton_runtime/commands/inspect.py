"""`paiton-run inspect`: what a bundle holds, for people or as JSON. Reads the manifest, and one plan if asked."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.schema import Manifest, MemoryPlan
from paiton_runtime.commands.inspect_plan import find_plan, plan_name
from paiton_runtime.commands.trust_arguments import policy_of


def run(args: argparse.Namespace) -> int:
    """Prints the manifest, and the tensors or a plan if asked."""
    bundle = open_bundle(args.bundle, policy_of(args).for_directory(args.bundle))
    plan = find_plan(bundle, args.plan, args.target, args.profile) if args.plan else None
    if args.json:
        value: dict[str, object] = asdict(bundle.manifest)
        if not args.tensors:
            del value["tensors"]
        if plan is not None:
            value["plan"] = plan.as_json()
        print(json.dumps(value, indent=2))
        return 0
    sections = [_model(bundle), _targets(bundle.manifest)]
    sections += [_memory(memory, bundle.manifest.tp) for memory in bundle.manifest.memory]
    if args.tensors:
        sections.append(_tensors(bundle.manifest))
    if plan is not None:
        sections.append(plan.as_text())
    print("\n\n".join(sections))
    return 0


def _model(bundle: Bundle) -> str:
    manifest, facts = bundle.manifest, bundle.manifest.model
    size = sum(blob.size for blob in manifest.blobs)
    made = f"{facts.name}  ({facts.architecture}, made by {manifest.generator})"
    source = () if manifest.source is None else (f"  from {manifest.source.model}, commit {manifest.source.commit}",)
    shape = (
        f"  {facts.layers} layers, hidden {facts.hidden_size}, intermediate {facts.intermediate_size}, "
        f"{facts.attention_heads} heads / {facts.kv_heads} KV of {facts.head_dim}, vocabulary {facts.vocab_size}"
    )
    mixtures = () if facts.experts is None else (f"  {facts.experts.as_text()}",)
    storage = (
        f"  context {facts.max_model_len} tokens; weights {facts.weights}, lm_head {facts.lm_head}, "
        f"activations {facts.activations}, KV cache {facts.kv_cache}"
    )
    parts = (
        f"  {manifest.tp} rank(s), {size:,} bytes of weights in {len(manifest.tensors)} tensors a rank, "
        f"{len(manifest.goldens)} goldens"
    )
    return "\n".join(
        (
            made,
            *source,
            shape,
            *mixtures,
            storage,
            parts,
            _tokenizer(manifest),
            _template(manifest),
            _sampling(manifest),
        )
    )


def _tokenizer(manifest: Manifest) -> str:
    """Returns whether a boot does without the tokenizers library; see `paiton_aot.encoder`."""
    encoder = manifest.tokenizer.encoder
    if encoder is None:
        return f"  no encoder file: {manifest.tokenizer.no_encoder}"
    return f"  encoder file: {encoder.size:,} bytes, compared with the tokenizers library"


def _template(manifest: Manifest) -> str:
    """Returns what the build's check of the chat template gave; see `paiton_aot.templates`."""
    check = manifest.tokenizer.template_check
    if check is None:
        return "  no chat template"
    if not check.differing:
        return f"  chat template: {check.probes} conversations rendered as by transformers"
    names = ", ".join(check.differing)
    return f"  chat template: {len(check.differing)} of {check.probes} conversations differ from transformers': {names}"


def _sampling(manifest: Manifest) -> str:
    advised = {name: value for name, value in asdict(manifest.sampling).items() if value is not None}
    shown = ", ".join(f"{name} {value:g}" for name, value in advised.items()) or "nothing advised"
    return f"  sampling: {shown}"


def _targets(manifest: Manifest) -> str:
    lines = ["targets"]
    lines += [
        f"  {code.target} {code.level}: {len(code.symbols)} kernels, {code.file.size:,} bytes, {code.compiler}"
        for code in manifest.code_objects
    ]
    names: dict[str, list[str]] = {}
    for entry in manifest.plans:
        names.setdefault(f"{entry.target} ({entry.profile})", []).append(plan_name(entry))
    lines += [f"  plans for {profile}: {' '.join(plans)}" for profile, plans in names.items()]
    return "\n".join(lines)


def _memory(memory: MemoryPlan, tp: int) -> str:
    rows = [
        ("weights", memory.weights_bytes, ""),
        ("io", memory.io_bytes, "shared by all ranks"),
        ("scratch", memory.scratch_bytes, _per_thread(memory)),
        ("comm", memory.comm_bytes, ""),
        ("KV block", memory.kv_block_bytes, f"of {memory.kv_block_tokens} tokens"),
    ]
    lines = [f"memory plan for {memory.target} ({memory.profile}), bytes for each of {tp} rank(s)"]
    lines += [f"  {name:<9}{size:>16,}  {note}".rstrip() for name, size, note in rows]
    lines.append(f"  steps of up to {memory.max_tokens} tokens and {memory.max_requests} requests")
    return "\n".join(lines)


def _per_thread(memory: MemoryPlan) -> str:
    return f"and {memory.worker_scratch_bytes:,} a thread" if memory.worker_scratch_bytes else ""


def _tensors(manifest: Manifest) -> str:
    lines = ["tensors (per rank)"]
    for tensor in manifest.tensors:
        shape = " x ".join(map(str, tensor.shape))
        lines.append(f"  {tensor.offset:>12}  {tensor.size:>12}  {tensor.dtype:<10} {shape:<15} {tensor.name}")
    return "\n".join(lines)
