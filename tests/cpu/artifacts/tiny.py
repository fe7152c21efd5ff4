"""A bundle of two ranks and a handful of tensors, small enough to pin its bytes and to damage it in every way."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from paiton_artifacts.layout import DTYPE_BYTES, EXTENT_ALIGNMENT, Region, align_up
from paiton_artifacts.plan import (
    Access,
    Launch,
    LaunchFlag,
    Plan,
    Relocation,
    RelocationKind,
    Segment,
    encode_plan,
)
from paiton_artifacts.schema import (
    Blob,
    CodeObject,
    ExpertFacts,
    FileEntry,
    Golden,
    GoldenLogit,
    GoldenStep,
    HubSource,
    IoField,
    Manifest,
    MemoryPlan,
    ModelFacts,
    Part,
    PlanFile,
    Rope,
    SamplingDefaults,
    SpecialToken,
    TemplateCheck,
    Tensor,
    Tokenizer,
)
from paiton_artifacts.writer import BundleWriter

RANKS = 2
VOCABULARY = 10
LAYERS = 3
SYMBOLS = ("embed", "linear", "sample")
KV_BLOCK_BYTES = 4096

# name, dtype, shape, scale
_TENSORS = (
    ("embed_tokens.weight", "bf16", (10, 12), ""),
    ("layers.0.linear.weight", "fp8_e4m3fn", (6, 20), "layers.0.linear.scale"),
    ("layers.0.linear.scale", "f32", (6,), ""),
    ("lm_head.weight", "int8", (5, 33), "lm_head.scale"),
    ("lm_head.scale", "f32", (1,), ""),
    ("norm.weight", "bf16", (7,), ""),
    ("blocks.weight", "fp8_e4m3fn", (6, 20), "blocks.scale"),
    ("blocks.scale", "f32", (3, 2), ""),
)
_SCALE_BLOCK = (2, 16)


def tensors() -> tuple[Tensor, ...]:
    """Returns the tensor table."""
    table: list[Tensor] = []
    offset = 0
    for name, dtype, shape, scale in _TENSORS:
        width = DTYPE_BYTES[dtype]
        cols = shape[1] if len(shape) == 2 else 1
        stride = align_up(cols * width, 16) if len(shape) == 2 else width
        size = (shape[0] - 1) * stride + cols * width
        kind = {"": "none", "lm_head.scale": "tensor", "blocks.scale": "block"}.get(scale, "row")
        block = _SCALE_BLOCK if kind == "block" else ()
        source = Part(f"model.{name}", 0, shape[0], cols, (0, shape[0]), (0, 0))
        table.append(Tensor(name, dtype, shape, stride, offset, size, "row-major", scale, kind, block, (source,)))
        offset = align_up(offset + size, 256)
    return tuple(table)


def rows(rank: int, tensor: Tensor) -> list[bytes]:
    """Returns the contents of a tensor: rows of bytes that differ by rank, tensor and place."""
    width = DTYPE_BYTES[tensor.dtype] * (tensor.shape[1] if len(tensor.shape) == 2 else 1)
    seed = 7 * rank + tensor.offset // 256
    return [bytes((seed + 31 * row + col) % 251 for col in range(width)) for row in range(tensor.shape[0])]


def plan(family: str = "forward", tokens: int = 4) -> Plan:
    """Returns a plan with every kind of relocation, a repeated segment and every flag."""
    pointers = (
        Relocation(0, RelocationKind.LOCAL, Region.WEIGHTS, Access.READ, 0, 256, 512, 100),
        Relocation(8, RelocationKind.PEER, Region.COMM, Access.READ | Access.WRITE, 1, 64, 0, 64),
        Relocation(16, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, -5, 0, 0),
        Relocation(24, RelocationKind.LOCAL, Region.KV, Access.WRITE, 0, 0, 1024, 1024),
    )
    body = Launch("linear", LaunchFlag.GROUP_BARRIER, struct.pack("<QQqQd", 0, 0, 0, 0, 1e-5), pointers)
    io = Relocation(0, RelocationKind.LOCAL, Region.IO, Access.READ, 0, 16, 0, 16)
    first = Launch("embed" if family == "forward" else "sample", LaunchFlag.NONE, bytes(16), (io,))
    last = Launch("embed", LaunchFlag.GROUP_BARRIER | LaunchFlag.RANK0_ONLY, bytes(8), ())
    return Plan(
        "cpu", "default", family, tokens, 2, (Segment(1, (first,)), Segment(LAYERS, (body,)), Segment(1, (last,)))
    )


def _memory() -> MemoryPlan:
    return MemoryPlan(
        target="cpu",
        profile="default",
        compute_units=0,
        weights_bytes=EXTENT_ALIGNMENT,
        io_bytes=256,
        io_input_bytes=128,
        scratch_bytes=1024,
        worker_scratch_bytes=256,
        comm_bytes=4096,
        kv_block_tokens=16,
        kv_block_bytes=KV_BLOCK_BYTES,
        max_tokens=8,
        max_requests=2,
        max_blocks_per_request=2,
        logits_offset=1024,
        logits_stride=16,
        io=(IoField("counts", "i32", 4, 0), IoField("token_ids", "i32", 8, 16), IoField("seed", "u64", 2, 64)),
    )


def manifest(
    blobs: tuple[Blob, ...], code: tuple[CodeObject, ...], plans: tuple[PlanFile, ...], tokenizer: Tokenizer
) -> Manifest:
    """Returns the manifest that ties the files together."""
    model = ModelFacts(
        name="tiny",
        architecture="LlamaForCausalLM",
        layers=LAYERS,
        hidden_size=12,
        intermediate_size=20,
        experts=ExpertFacts(layers=1, count=4, per_token=2, intermediate_size=10),
        attention_heads=2,
        kv_heads=2,
        head_dim=6,
        vocab_size=VOCABULARY,
        max_model_len=32,
        rms_norm_eps=1e-5,
        rope=Rope(10000.0, "none"),
        tied_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(2, 3),
        weights="fp8",
        lm_head="int8",
        activations="bf16",
        kv_cache="bf16",
    )
    steps = (GoldenStep(4, (GoldenLogit(4, 1.5), GoldenLogit(1, -0.25))),)
    return Manifest(
        format_minor=1,
        runtime_abi=3,
        generator="paiton-aot 0.0.0 (test)",
        model=model,
        source=HubSource("org/tiny", "0123456789abcdef0123456789abcdef01234567"),
        tp=RANKS,
        blobs=blobs,
        tensors=tensors(),
        memory=(_memory(),),
        code_objects=code,
        plans=plans,
        tokenizer=tokenizer,
        sampling=SamplingDefaults(temperature=0.5, top_p=None, top_k=40, min_p=None, repetition_penalty=None),
        goldens=(Golden(True, (1, 2, 3), steps, 0.05),),
    )


def fill(writer: BundleWriter) -> None:
    """Writes everything but the commit."""
    blobs = []
    for rank in range(RANKS):
        with writer.create_blob(rank) as file:
            for tensor in tensors():
                for number, row in enumerate(rows(rank, tensor)):
                    os.pwrite(file.fileno(), row, tensor.offset + number * tensor.row_stride)
        blobs.append(writer.finish_blob(rank, EXTENT_ALIGNMENT, tensors()))
    code = tuple(
        CodeObject(
            "cpu", level, writer.add_file(f"code/cpu/{level}.so", f"code of {level}".encode()), None, SYMBOLS, "none 1"
        )
        for level in ("generic", "x86-64-v3")
    )
    plans = tuple(_plan_file(writer, plan(family, tokens)) for family, tokens in (("forward", 4), ("sample", 8)))
    tokenizer = Tokenizer(
        writer.add_file("tokenizer/tokenizer.json", b"{}"),
        None,
        "an empty tokenizer",
        writer.add_file("tokenizer/chat_template.jinja", b"{{ messages }}"),
        add_bos=False,
        special_tokens=(SpecialToken("bos_token", "<s>"), SpecialToken("eos_token", "</s>")),
        template_check=TemplateCheck(2, ("chat",)),
    )
    writer.write_manifest(manifest(tuple(blobs), code, plans, tokenizer))


def write(path: Path, *, force: bool = False) -> Path:
    """Writes the bundle; returns its path."""
    with BundleWriter(path, force=force) as writer:
        fill(writer)
        writer.commit()
    return path


def _plan_file(writer: BundleWriter, made: Plan) -> PlanFile:
    path = f"plans/cpu/{made.family}-t{made.tokens}-r{made.requests}.plan"
    entry: FileEntry = writer.add_file(path, encode_plan(made))
    return PlanFile(made.target, made.profile, made.family, made.tokens, made.requests, entry)
