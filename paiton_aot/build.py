"""The build: checkpoint to bundle, stage by stage. Nothing appears at the output path until everything is done."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import paiton_aot
from paiton_aot.attest.provenance import provenance
from paiton_aot.attest.sbom import sbom
from paiton_aot.cache.stages import BlobStages
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import Checkpoint, TokenizerFiles, expect_tensor
from paiton_aot.convert import write_tensors
from paiton_aot.goldens import REFERENCE_LEVEL, check_levels, make_goldens
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.identity.inputs import Inputs, identify
from paiton_aot.lower import Lowered, lower
from paiton_aot.options import CPU, BuildOptions
from paiton_aot.progress import Progress
from paiton_aot.quantize import Quantizer
from paiton_artifacts.digest import GrowingDigests
from paiton_artifacts.kernel_table import encode_kernel_table
from paiton_artifacts.layout import FORMAT_MINOR, PROVENANCE_NAME, RUNTIME_ABI, SBOM_NAME
from paiton_artifacts.plan import Plan, encode_plan
from paiton_artifacts.schema import Blob, CodeObject, HubSource, Manifest, PlanFile, SpecialToken, Tokenizer
from paiton_artifacts.writer import BundleWriter, blob_chunks
from paiton_kernels.cpu.compile import COMPILER, LEVELS, compile_level

if TYPE_CHECKING:
    from paiton_aot.targets.gpu.build import GpuTarget  # needs triton, which a build for the cpu does without

_FLOATS = ("bf16", "f16", "f32")


@dataclass(slots=True)
class BuildResult:
    """What a build did: for `--json` and for the last line on the terminal."""

    bundle: Path
    lowered: Lowered
    key: BuildKey
    bytes: int = 0
    gpus: tuple[GpuTarget, ...] = ()
    verified: tuple[str, ...] = ()  # levels that ran here and met the goldens
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one stage of the build, in seconds of wall time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def build(
    model: Path,
    output: Path,
    options: BuildOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    inputs: Inputs | None = None,
    stages: BlobStages | None = None,
) -> BuildResult:
    """Builds a bundle of `model` at `output`.

    Args:
        model: a Hugging Face directory or a GGUF file.
        output: directory to create.
        options: what to build.
        force: replace an existing output, once the new bundle is complete.
        progress: where to tell how it gets on.
        inputs: of this model and these options, where they were identified already.
        stages: where converted weights are kept.

    Raises:
        PaitonError: see `paiton_artifacts.errors`; nothing is left behind.
    """
    progress = Progress(enabled=False) if progress is None else progress
    with ExitStack() as stack:
        writer = stack.enter_context(BundleWriter(output, force=force))
        started = time.perf_counter()
        checkpoint = stack.enter_context(open_checkpoint(model))
        lowered = lower(checkpoint, options)
        check_tensors(checkpoint, lowered)
        tell_left_out(checkpoint, progress)
        tokenizer = checkpoint.tokenizer()
        lowering = time.perf_counter() - started
        # After what is cheap to refuse: this reads the weights, once.
        inputs = identify(model, options, progress) if inputs is None else inputs
        result = BuildResult(output, lowered, inputs.key)
        result.seconds["identify"] = inputs.seconds
        result.seconds["read and lower"] = lowering
        manifest = _write(writer, checkpoint, tokenizer, options, result, progress, stages)
        with result.stage("verify"):
            mode = "fp8" if "fp8" in (options.act, options.kv) else "bf16"
            goldens = make_goldens(writer.directory, tokenizer.tokenizer_json, mode)
            result.verified = (REFERENCE_LEVEL, *check_levels(writer.directory, goldens))
        with result.stage("write"):
            inputs.check_unchanged()
            _write_manifest(writer, replace(manifest, goldens=goldens), inputs.key, options)
            result.bytes = sum(f.stat().st_size for f in writer.directory.rglob("*") if f.is_file())
            writer.commit()
    return result


def _write_manifest(writer: BundleWriter, manifest: Manifest, key: BuildKey, options: BuildOptions) -> None:
    """Writes the manifest, and beside it what the build tells about itself."""
    digest = writer.write_manifest(manifest).sha256
    writer.add_file(SBOM_NAME, sbom(key, manifest, digest))
    writer.add_file(PROVENANCE_NAME, provenance(key, digest, origin=options.origin, commit=options.commit))


def tell_left_out(checkpoint: Checkpoint, progress: Progress) -> None:
    """Says that a multimodal checkpoint's other models do not become part of the bundle."""
    if checkpoint.left_out:
        text = f"{checkpoint.name}: only the text model is built, {checkpoint.left_out} tensors of others are left out"
        progress.event("left-out", text, tensors=checkpoint.left_out)


def check_tensors(checkpoint: Checkpoint, lowered: Lowered) -> None:
    """Checks names, shapes and dtypes of all sources, from headers alone.

    Raises:
        MissingTensorError, TensorShapeError: the checkpoint does not hold what its configuration implies.
    """
    for spec in lowered.specs:
        for source in spec.sources:
            if source.name:
                module = source.name.removesuffix(".weight")
                quantized = checkpoint.quantization is not None and checkpoint.quantization.is_quantized(module)
                expect_tensor(checkpoint, source.name, source.shape, ("fp8_e4m3fn",) if quantized else _FLOATS)


def _write(
    writer: BundleWriter,
    checkpoint: Checkpoint,
    tokenizer: TokenizerFiles,
    options: BuildOptions,
    result: BuildResult,
    progress: Progress,
    stages: BlobStages | None,
) -> Manifest:
    """Writes every file but the final manifest; the one it leaves has no goldens yet."""
    lowered = result.lowered
    with result.stage("compile"):
        code = _write_code(writer, lowered, options, progress)
        result.gpus = build_gpus(lowered, options, progress)
        code += tuple(_write_archive(writer, gpu) for gpu in result.gpus)
    with result.stage("convert"):
        blobs = _obtain_blobs(writer, checkpoint, lowered, options, progress, stages)
    with result.stage("plan"):
        made = [*lowered.cpu.plans, *(plan for gpu in result.gpus for plan in gpu.plans)]
        plans = tuple(_write_plan(writer, plan) for plan in made)
    manifest = Manifest(
        format_minor=FORMAT_MINOR,
        runtime_abi=RUNTIME_ABI,
        generator=f"paiton-aot {paiton_aot.__version__}",
        model=lowered.facts,
        source=HubSource(options.hub_model, options.commit) if options.commit else None,
        tp=options.tp,
        blobs=blobs,
        tensors=tuple(lowered.tensors),
        memory=(lowered.cpu.memory, *(memory for gpu in result.gpus for memory in gpu.memory)),
        code_objects=code,
        plans=plans,
        tokenizer=_write_tokenizer(writer, tokenizer, options, result.key, progress),
        sampling=checkpoint.sampling(),
        goldens=(),
    )
    writer.write_manifest(manifest)
    return manifest


def _write_code(
    writer: BundleWriter, lowered: Lowered, options: BuildOptions, progress: Progress
) -> tuple[CodeObject, ...]:
    symbols = tuple(sorted(variant.symbol for variant in lowered.cpu.variants))
    objects = []
    with progress.bar("compile", len(LEVELS), "level") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda level: compile_level(level, lowered.cpu.variants, options.cache_dir), LEVELS)
        for level, code in zip(LEVELS, compiled, strict=True):
            entry = writer.add_file(f"code/cpu/{level}.so", code)
            objects.append(CodeObject("cpu", level, entry, None, symbols, COMPILER))
            advance(1)
    return tuple(objects)


def build_gpus(lowered: Lowered, options: BuildOptions, progress: Progress) -> tuple[GpuTarget, ...]:
    """Returns what a bundle holds for the GPU targets that were asked for: see `targets.gpu.build.build_targets`."""
    if not options.targets:
        return ()
    from paiton_aot.targets.gpu.build import build_targets  # noqa: PLC0415  (needs triton)

    return build_targets(lowered, options, progress)


def _write_archive(writer: BundleWriter, gpu: GpuTarget) -> CodeObject:
    folder = f"code/{gpu.target.slug}"
    code = writer.add_file(f"{folder}/kernels.bin", gpu.code)
    table = writer.add_file(f"{folder}/kernels.table", encode_kernel_table(gpu.table, len(gpu.code)))
    symbols = tuple(kernel.symbol for kernel in gpu.table.kernels)
    return CodeObject(gpu.target.name, gpu.target.level, code, table, symbols, gpu.compiler)


def _obtain_blobs(
    writer: BundleWriter,
    checkpoint: Checkpoint,
    lowered: Lowered,
    options: BuildOptions,
    progress: Progress,
    stages: BlobStages | None,
) -> tuple[Blob, ...]:
    """Takes the blobs from where they are kept, else converts them and keeps them."""
    if stages is None:
        return _write_blobs(writer, checkpoint, lowered, options, progress)
    taken = stages.take(writer, options.tp, lowered.blob_bytes, lowered.tensors)
    if taken is not None:
        progress.event("resumed", "convert: weights converted before are used again", stage="convert")
        return taken
    blobs = _write_blobs(writer, checkpoint, lowered, options, progress)
    stages.keep(writer, blobs, lowered.tensors)
    return blobs


def _write_blobs(
    writer: BundleWriter, checkpoint: Checkpoint, lowered: Lowered, options: BuildOptions, progress: Progress
) -> tuple[Blob, ...]:
    ranks, size, quantizer = range(options.tp), lowered.blob_bytes, Quantizer(options.cache_dir)
    table = {tensor.name: tensor for tensor in lowered.tensors}
    total = source_bytes(checkpoint, lowered)
    chunks = blob_chunks(size, lowered.tensors)
    with ExitStack() as stack:
        files = [stack.enter_context(writer.create_blob(rank)) for rank in ranks]
        for file in files:
            file.truncate(size)
        pool = stack.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0)), "paiton-digest"))
        digests = [GrowingDigests(file.fileno(), chunks, pool) for file in files]

        def settle(rank: int, end: int) -> None:
            digests[rank].settle(end)

        with progress.bar("convert", total, "B") as advance:
            write_tensors(checkpoint, lowered.specs, table, files, quantizer, advance, settle)
        with progress.bar("digest", options.tp, "rank") as advance:
            blobs = []
            for rank in ranks:
                blobs.append(writer.finish_blob(rank, size, lowered.tensors, digests[rank]))
                advance(1)
    return tuple(blobs)


def source_bytes(checkpoint: Checkpoint, lowered: Lowered) -> int:
    """Returns the checkpoint bytes that a build reads, as stored or, for GGUF, as dequantised."""
    names = [source.name for spec in lowered.specs for source in spec.sources if source.name]
    return sum(checkpoint.tensor(name).nbytes for name in names)


def _write_plan(writer: BundleWriter, plan: Plan) -> PlanFile:
    folder = plan.target.replace(":", "-") + ("" if plan.target == CPU else f"/{plan.profile}")
    path = f"plans/{folder}/{plan.family}-t{plan.tokens}-r{plan.requests}.plan"
    entry = writer.add_file(path, encode_plan(plan))
    return PlanFile(plan.target, plan.profile, plan.family, plan.tokens, plan.requests, entry)


def _write_tokenizer(
    writer: BundleWriter, files: TokenizerFiles, options: BuildOptions, key: BuildKey, progress: Progress
) -> Tokenizer:
    from paiton_aot.encoder import cached_encoder  # noqa: PLC0415  (numpy and tokenizers; the command line starts here)

    template, check = None, None
    if files.chat_template is not None:
        from paiton_aot.templates import check_template  # noqa: PLC0415  (jinja2 takes 25 ms; the command line starts here)

        template = writer.add_file("tokenizer/chat_template.jinja", files.chat_template.encode())
        check = check_template(files.chat_template, files.special_tokens)
        if check.differing:
            names = ", ".join(check.differing)
            text = (
                f"warning: the chat template renders {len(check.differing)} of {check.probes} conversations differently"
            )
            progress.event("template", f"{text} than transformers does: {names}", differing=list(check.differing))
    special = tuple(SpecialToken(name, text) for name, text in sorted(files.special_tokens.items()))
    entry = writer.add_file("tokenizer/tokenizer.json", files.tokenizer_json)
    made, refusal = cached_encoder(files.tokenizer_json, key, options.cache_dir)
    if made is None:
        progress.event("encoder", f"no encoder file, which would make the start faster: {refusal}", refusal=refusal)
    encoder = None if made is None else writer.add_file("tokenizer/encoder.bin", made)
    return Tokenizer(entry, encoder, refusal, template, files.add_bos, special, check)


def kernel_symbols(lowered: Lowered) -> Sequence[str]:
    """Returns the names of the kernels that the plans launch, sorted."""
    return sorted(variant.symbol for variant in lowered.cpu.variants)
