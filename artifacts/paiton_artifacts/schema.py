"""The manifest as typed, frozen structs. `artifacts/FORMAT.md` says the same in words.

Field order and names are the wire format: each struct is a msgpack map from field name to value. `validate.py`
turns an untrusted map into these structs; nothing else constructs them from a file.
"""

from __future__ import annotations

from paiton_artifacts.layout import Region
from paiton_artifacts.record import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base frequency, and the scaling that `inv_freq` already contains."""

    theta: float
    scaling: str  # "none", "linear", "llama3", "yarn" or "longrope"


@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """The mixtures of experts that some layers have in place of an MLP."""

    layers: int  # that have one
    count: int  # experts of a layer
    per_token: int  # of them, that a token goes through
    intermediate_size: int  # of one expert

    def as_text(self) -> str:
        """Returns one line for people."""
        return (
            f"{self.layers} layers of {self.count} experts of intermediate {self.intermediate_size},"
            f" {self.per_token} for each token"
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model is. Counts are those of the whole model, not of a rank."""

    name: str
    architecture: str  # e.g. "LlamaForCausalLM"
    layers: int
    hidden_size: int
    intermediate_size: int  # of MLPs
    experts: ExpertFacts | None  # null where every layer has an MLP
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int  # tokens of context that the plans allow
    rms_norm_eps: float
    rope: Rope
    tied_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    weights: str  # "fp8" or "bf16": how linear layers are stored (layers left in bf16 by the checkpoint aside)
    lm_head: str  # "bf16", "int8" or "fp8"
    activations: str  # "bf16", "fp8-static" or "fp8-dynamic"
    kv_cache: str  # "bf16" or "fp8"


@dataclass(frozen=True, slots=True)
class HubSource:
    """The model on the Hugging Face hub that a bundle was built from."""

    model: str  # "ORG/NAME"
    commit: str  # whose files were read, whatever branch or tag was asked for


@dataclass(frozen=True, slots=True)
class Chunk:
    """A byte range of a blob and its SHA-256 (lower-case hex)."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Blob:
    """The weights region of one rank, as a file. Chunks cover it without gap or overlap, in order."""

    rank: int
    path: str  # relative to the bundle, "/" separated
    size: int  # a multiple of EXTENT_ALIGNMENT
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Where some rows of a tensor come from in the checkpoint (canonical Hugging Face names).

    Rank r holds source[source_row[r] : source_row[r] + rows, source_col[r] : source_col[r] + cols] at rows
    `row .. row + rows` of the tensor. One-dimensional tensors have cols = 1 and count elements as rows.
    An empty `source` marks rows of zeros (padding) or values computed at build time.
    """

    source: str
    row: int
    rows: int
    cols: int
    source_row: tuple[int, ...]  # one entry per rank
    source_col: tuple[int, ...]  # one entry per rank


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the weights region. Offsets and shapes are the same on every rank."""

    name: str
    dtype: str  # a key of layout.DTYPE_BYTES
    shape: tuple[int, ...]  # per rank; one or two dimensions
    row_stride: int  # bytes from one row to the next (element size for one-dimensional tensors)
    offset: int  # bytes from the start of the blob
    size: int  # bytes from the first row to the end of the last
    layout: str  # "row-major"
    scale: str  # name of the f32 tensor that holds its scales, or ""
    scale_kind: str  # "none", "row" (one scale per row), "tensor" (one element) or "block" (a grid)
    scale_block: tuple[int, ...]  # of kind "block": rows and columns that share a scale; else empty
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Any other file of the bundle: its path relative to the bundle, size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CodeObject:
    """Compiled kernels for one level of one target: a shared object (cpu), or an archive of images (GPUs)."""

    target: str  # "cpu", "hip:gfx942", ...
    level: str  # "generic", "x86-64-v3", ...; of a GPU target its architecture
    file: FileEntry
    kernels: FileEntry | None  # the kernel table of an archive (kernel_table.py)
    symbols: tuple[str, ...]  # sorted
    compiler: str  # name and version of what compiled it


@dataclass(frozen=True, slots=True)
class PlanFile:
    """One plan: for a target, a profile and a bucket of `tokens` x `requests`."""

    target: str
    profile: str
    family: str  # one of paiton_artifacts.plan.FAMILIES
    tokens: int
    requests: int
    file: FileEntry


@dataclass(frozen=True, slots=True)
class IoField:
    """A named array in the io region that the host writes before, or reads after, a step."""

    name: str
    dtype: str  # "i32", "u64" or "f32"
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Exact bytes of every region of one rank, for one profile of one target.

    scratch region = scratch_bytes + workers * worker_scratch_bytes (workers: threads of the rank's team);
    kv region = blocks * kv_block_bytes, where a block holds kv_block_tokens tokens of every layer.
    """

    target: str
    profile: str
    compute_units: int  # of the profile's device; 0 on the cpu, whose plans fit any
    weights_bytes: int
    io_bytes: int
    io_input_bytes: int  # from the start of the io region: what the host writes before every step
    scratch_bytes: int
    worker_scratch_bytes: int
    comm_bytes: int
    kv_block_tokens: int
    kv_block_bytes: int
    max_tokens: int  # of the largest bucket
    max_requests: int
    max_blocks_per_request: int
    logits_offset: int  # of rank 0's f32 logits [max_requests, logits_stride] within their region
    logits_stride: int  # elements from one row of logits to the next
    io: tuple[IoField, ...]

    @property
    def fixed_bytes(self) -> int:
        """All regions of a rank that has no workers, but the KV cache."""
        return self.weights_bytes + self.io_bytes + self.scratch_bytes + self.comm_bytes

    @property
    def extents(self) -> dict[Region, int]:
        """Bytes of each region that a plan may refer to; for KV those of one block."""
        return {
            Region.WEIGHTS: self.weights_bytes,
            Region.IO: self.io_bytes,
            # A team has at least one worker; pointers to worker scratch are to the first worker's.
            Region.SCRATCH: self.scratch_bytes + self.worker_scratch_bytes,
            Region.KV: self.kv_block_bytes,
            Region.COMM: self.comm_bytes,
        }

    @property
    def logits_region(self) -> Region:
        """Where the logits are: in io, if that has a field of this name, else in comm."""
        return Region.IO if any(field.name == "logits" for field in self.io) else Region.COMM


@dataclass(frozen=True, slots=True)
class GoldenLogit:
    """One of the reference's largest logits."""

    token: int
    logit: float


@dataclass(frozen=True, slots=True)
class GoldenStep:
    """What the reference computed at one step: the token it fed next, and its largest logits, best first."""

    token: int
    top: tuple[GoldenLogit, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """A prompt, and the teacher-forced steps that follow it."""

    at_boot: bool  # checked at every boot; the others by `verify`
    prompt: tuple[int, ...]
    steps: tuple[GoldenStep, ...]
    tolerance: float  # largest allowed absolute difference of a logit


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """What the build saw when it rendered conversations with jinja2, as transformers does, and as the runtime does."""

    probes: int  # conversations
    differing: tuple[str, ...]  # names of those that came out differently


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that chat templates know by a name, such as "eos_token"."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Files that turn text into token ids and messages into text."""

    file: FileEntry  # tokenizer.json of the tokenizers library
    encoder: FileEntry | None  # the same in the form in which it runs (encoder_file.py)
    no_encoder: str  # why there is none; empty where there is one
    chat_template: FileEntry | None  # Jinja source
    add_bos: bool  # generate prepends bos_token_id to raw text
    special_tokens: tuple[SpecialToken, ...]  # sorted by name
    template_check: TemplateCheck | None  # of chat_template


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How the model's makers advise to draw tokens (generation_config.json); null: they say nothing."""

    temperature: float | None
    top_p: float | None
    top_k: int | None  # 0: off
    min_p: float | None
    repetition_penalty: float | None


NO_ADVICE = SamplingDefaults(None, None, None, None, None)
"""Of makers who say nothing."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's table of contents: everything that the runtime must know before it maps a blob."""

    format_minor: int
    runtime_abi: int
    generator: str  # e.g. "paiton-aot 0.1.0"
    model: ModelFacts
    source: HubSource | None  # null where the checkpoint came from elsewhere
    tp: int
    blobs: tuple[Blob, ...]  # by rank
    tensors: tuple[Tensor, ...]  # by offset
    memory: tuple[MemoryPlan, ...]  # one per target and profile
    code_objects: tuple[CodeObject, ...]
    plans: tuple[PlanFile, ...]
    tokenizer: Tokenizer
    sampling: SamplingDefaults
    goldens: tuple[Golden, ...]
