"""What a build is asked for: the flags of `paiton-build`, as one frozen struct."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paiton_artifacts.user_cache import user_cache_dir

WEIGHTS = ("fp8", "bf16")
LM_HEADS = ("bf16", "int8", "fp8")
PRECISIONS = ("bf16", "fp8")
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Flags that shape a bundle; None means the default that fits the checkpoint.

    Attributes:
        targets: GPU targets that the bundle is for besides the cpu.
        profiles: devices that plans are made for. Default: the usual one of each target.
        tuning_tables: measured choices of kernel configurations.
        candidates: configurations that static ranking compiles for each kernel, most promising first; 0 for all.
        weights: storage of linear layers. Default: fp8, or what an FP8 checkpoint holds.
        lm_head: storage of the output head. Default: as in the checkpoint, bf16 when the build quantises.
        act: precision of activations that enter linear layers.
        kv: precision of the KV cache.
        max_model_len: tokens of context. Default: the model's.
        max_num_seqs: sequences that one step can hold.
        max_num_batched_tokens: tokens that one step can hold, a power of two. Default: 512 on the cpu, 2,048 on GPUs.
        name: model name to record. Default: what the checkpoint's metadata says.
        cache_dir: where compiled kernels are kept.
        origin: URL that the checkpoint came from, empty for a path; provenance records it.
        hub_model: where the checkpoint came from the Hugging Face hub, its ORG/NAME there; the manifest records it.
        commit: that its files are of, likewise.
    """

    targets: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    tuning_tables: tuple[Path, ...] = ()
    candidates: int = 0
    tp: int = 1
    weights: str | None = None
    lm_head: str | None = None
    act: str = "bf16"
    kv: str = "bf16"
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    name: str | None = None
    cache_dir: Path = field(default_factory=user_cache_dir)
    origin: str = ""
    hub_model: str = ""
    commit: str = ""
