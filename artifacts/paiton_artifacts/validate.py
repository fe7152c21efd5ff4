"""From an untrusted map to a `Manifest`: the types and limits of every field, then `consistency.py`.

One table per struct of `schema.py`, in its field order.
"""

from __future__ import annotations

from paiton_artifacts import limits, schema
from paiton_artifacts.consistency import check_manifest
from paiton_artifacts.errors import ManifestError, UnsupportedVersionError
from paiton_artifacts.layout import CHUNK_BYTES, DTYPE_BYTES, RUNTIME_ABI
from paiton_artifacts.plan import FAMILIES, SYMBOL, TARGET, WORD
from paiton_artifacts.rules import (
    Rule,
    apply,
    boolean,
    choice,
    integer,
    optional,
    pattern,
    real,
    relative_path,
    sequence,
    struct,
    text,
)

_BYTES = integer(0, limits.MAX_BYTES)
_COUNT = integer(1, limits.MAX_DIMENSION)
_INDEX = integer(0, limits.MAX_DIMENSION)
_TOKENS = integer(1, limits.MAX_TOKENS)
_SHA256 = pattern("[0-9a-f]{64}", 64, "a SHA-256 in lower-case hexadecimal")
_NAME = pattern("[!-~]+", limits.MAX_NAME, "printable ASCII without spaces")
_NAME_OR_NOTHING = pattern("[!-~]*", limits.MAX_NAME, "printable ASCII without spaces")
_FREE_TEXT = text(limits.MAX_FREE_TEXT)
_LOGIT = real(-1e30, 1e30)

_ROPE = struct(schema.Rope, theta=real(1.0, 1e15), scaling=choice("none", "linear", "llama3", "yarn", "longrope"))

_EXPERTS = struct(
    schema.ExpertFacts,
    layers=integer(1, limits.MAX_LAYERS),
    count=_COUNT,
    per_token=_COUNT,
    intermediate_size=_COUNT,
)

_MODEL = struct(
    schema.ModelFacts,
    name=_FREE_TEXT,
    architecture=WORD,
    layers=integer(1, limits.MAX_LAYERS),
    hidden_size=_COUNT,
    intermediate_size=_COUNT,
    experts=optional(_EXPERTS),
    attention_heads=_COUNT,
    kv_heads=_COUNT,
    head_dim=_COUNT,
    vocab_size=_COUNT,
    max_model_len=_TOKENS,
    rms_norm_eps=real(0.0, 1.0),
    rope=_ROPE,
    tied_embeddings=boolean,
    bos_token_id=optional(_INDEX),
    eos_token_ids=sequence(_INDEX, limits.MAX_EOS_TOKENS),
    weights=choice("fp8", "bf16"),
    lm_head=choice("bf16", "int8", "fp8"),
    activations=choice("bf16", "fp8-static", "fp8-dynamic"),
    kv_cache=choice("bf16", "fp8"),
)

_SOURCE = struct(
    schema.HubSource,
    model=pattern("[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*", limits.MAX_NAME, "the id of a model"),
    commit=pattern("[0-9a-f]{40}", 40, "a commit in lower-case hexadecimal"),
)

_CHUNK = struct(schema.Chunk, offset=_BYTES, size=integer(1, CHUNK_BYTES), sha256=_SHA256)

_BLOB = struct(
    schema.Blob,
    rank=integer(0, limits.MAX_RANKS - 1),
    path=relative_path,
    size=_BYTES,
    chunks=sequence(_CHUNK, limits.MAX_CHUNKS),
)

_PART = struct(
    schema.Part,
    source=_NAME_OR_NOTHING,
    row=_INDEX,
    rows=_COUNT,
    cols=_COUNT,
    source_row=sequence(_INDEX, limits.MAX_RANKS),
    source_col=sequence(_INDEX, limits.MAX_RANKS),
)

_TENSOR = struct(
    schema.Tensor,
    name=_NAME,
    dtype=choice(*DTYPE_BYTES),
    shape=sequence(_COUNT, 2, low=1),
    row_stride=_BYTES,
    offset=_BYTES,
    size=_BYTES,
    layout=choice("row-major"),
    scale=_NAME_OR_NOTHING,
    scale_kind=choice("none", "row", "tensor", "block"),
    scale_block=sequence(_COUNT, 2),
    parts=sequence(_PART, limits.MAX_PARTS),
)


def _file(max_bytes: int) -> Rule[schema.FileEntry]:
    return struct(schema.FileEntry, path=relative_path, size=integer(0, max_bytes), sha256=_SHA256)


_CODE_OBJECT = struct(
    schema.CodeObject,
    target=TARGET,
    level=WORD,
    file=_file(limits.MAX_CODE_OBJECT_BYTES),
    kernels=optional(_file(limits.MAX_KERNEL_TABLE_COMPRESSED + 4096)),
    symbols=sequence(SYMBOL, limits.MAX_SYMBOLS),
    compiler=_FREE_TEXT,
)

_PLAN_FILE = struct(
    schema.PlanFile,
    target=TARGET,
    profile=WORD,
    family=choice(*FAMILIES),
    tokens=_TOKENS,
    requests=_TOKENS,
    file=_file(limits.MAX_PLAN_COMPRESSED + 4096),
)

_IO_FIELD = struct(
    schema.IoField, name=WORD, dtype=choice("i32", "u64", "f32"), count=integer(1, limits.MAX_BYTES), offset=_BYTES
)

_MEMORY = struct(
    schema.MemoryPlan,
    target=TARGET,
    profile=WORD,
    compute_units=integer(0, 1 << 16),
    weights_bytes=_BYTES,
    io_bytes=_BYTES,
    io_input_bytes=_BYTES,
    scratch_bytes=_BYTES,
    worker_scratch_bytes=_BYTES,
    comm_bytes=_BYTES,
    kv_block_tokens=_TOKENS,
    kv_block_bytes=_BYTES,
    max_tokens=_TOKENS,
    max_requests=_TOKENS,
    max_blocks_per_request=_TOKENS,
    logits_offset=_BYTES,
    logits_stride=_COUNT,
    io=sequence(_IO_FIELD, limits.MAX_IO_FIELDS),
)

_GOLDEN_STEP = struct(
    schema.GoldenStep,
    token=_INDEX,
    top=sequence(struct(schema.GoldenLogit, token=_INDEX, logit=_LOGIT), limits.MAX_GOLDEN_TOP, low=1),
)

_GOLDEN = struct(
    schema.Golden,
    at_boot=boolean,
    prompt=sequence(_INDEX, limits.MAX_ITEMS, low=1),
    steps=sequence(_GOLDEN_STEP, limits.MAX_GOLDEN_STEPS, low=1),
    tolerance=real(0.0, 1e30),
)

_TOKENIZER = struct(
    schema.Tokenizer,
    file=_file(limits.MAX_TOKENIZER_BYTES),
    encoder=optional(_file(limits.MAX_TOKENIZER_BYTES)),
    no_encoder=text(limits.MAX_FREE_TEXT, low=0),
    chat_template=optional(_file(limits.MAX_CHAT_TEMPLATE_BYTES)),
    add_bos=boolean,
    special_tokens=sequence(
        struct(schema.SpecialToken, name=WORD, text=text(limits.MAX_FREE_TEXT)), limits.MAX_SPECIAL_TOKENS
    ),
    template_check=optional(
        struct(
            schema.TemplateCheck,
            probes=integer(1, limits.MAX_PROBES),
            differing=sequence(_NAME, limits.MAX_PROBES),
        )
    ),
)

_SAMPLING = struct(
    schema.SamplingDefaults,
    temperature=optional(real(0.0, 1e4)),
    top_p=optional(real(1e-6, 1.0)),
    top_k=optional(integer(0, limits.MAX_DIMENSION)),
    min_p=optional(real(0.0, 1.0)),
    repetition_penalty=optional(real(1e-6, 1e4)),
)

_MANIFEST = struct(
    schema.Manifest,
    format_minor=integer(0, 1 << 16),
    runtime_abi=integer(0, 1 << 16),
    generator=_FREE_TEXT,
    model=_MODEL,
    source=optional(_SOURCE),
    tp=integer(1, limits.MAX_RANKS),
    blobs=sequence(_BLOB, limits.MAX_RANKS),
    tensors=sequence(_TENSOR, limits.MAX_TENSORS),
    memory=sequence(_MEMORY, limits.MAX_TARGETS),
    code_objects=sequence(_CODE_OBJECT, limits.MAX_CODE_OBJECTS),
    plans=sequence(_PLAN_FILE, limits.MAX_PLANS),
    tokenizer=_TOKENIZER,
    sampling=_SAMPLING,
    goldens=sequence(_GOLDEN, limits.MAX_GOLDENS),
)


def parse_manifest(value: object, what: str = "manifest") -> schema.Manifest:
    """Returns the manifest that a decoded msgpack value holds.

    Args:
        value: what `container.unpack` returned.
        what: names the file in messages.

    Raises:
        UnsupportedVersionError: it was written for another runtime ABI.
        ManifestError: a field is missing, of another type or outside its limits, or fields contradict each other.
        BoundsError: an extent lies outside the region that it belongs to.
    """
    # Before the rest: a bundle of another ABI may well differ elsewhere, and that would be a misleading message.
    if isinstance(value, dict):
        abi = value.get("runtime_abi")
        if type(abi) is int and abi != RUNTIME_ABI:
            raise UnsupportedVersionError(
                f"{what}: runtime ABI {abi}, this runtime has {RUNTIME_ABI}",
                hint="build the bundle again with this version, or install the one that wrote it",
            )
    manifest = apply(_MANIFEST, value, ManifestError, what)
    check_manifest(manifest, what)
    return manifest
