"""What must hold between the fields of a manifest, beyond the type and limits of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from paiton_artifacts.errors import BoundsError, ManifestError, VerificationError
from paiton_artifacts.layout import (
    COMPANIONS,
    DTYPE_BYTES,
    EXTENT_ALIGNMENT,
    MANIFEST_NAME,
    ROW_ALIGNMENT,
    TENSOR_ALIGNMENT,
    Region,
)
from paiton_artifacts.limits import MAX_CODE_AND_PLANS_BYTES
from paiton_artifacts.schema import Blob, FileEntry, Golden, Manifest, MemoryPlan, Tensor, Tokenizer

IO_DTYPE_BYTES = {"i32": 4, "u64": 8, "f32": 4}
"""Width of the dtypes of io fields."""

_HINT = "the bundle is damaged or was not written by paiton-build; build or fetch it again"


def check_manifest(manifest: Manifest, what: str) -> None:
    """Checks that the parts of a manifest agree.

    Args:
        manifest: typed and within limits.
        what: names the file in messages.

    Raises:
        ManifestError: two parts contradict each other.
        BoundsError: an extent lies outside the region that it belongs to.
    """
    try:
        _check_files(manifest)
        _check_blobs(manifest)
        _check_tensors(manifest)
        for memory in manifest.memory:
            _check_memory(memory, manifest)
        _check_code_and_plans(manifest)
        vocabulary = manifest.model.vocab_size
        bos = manifest.model.bos_token_id
        _require(bos is None or bos < vocabulary, f"bos_token_id {bos} is outside the vocabulary of {vocabulary}")
        _check_tokenizer(manifest.tokenizer)
        for n, golden in enumerate(manifest.goldens):
            _check_golden(golden, f"golden {n}", manifest)
    except VerificationError as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from None


def files_of(manifest: Manifest) -> list[FileEntry]:
    """Returns every file of a bundle except the manifest and the blobs."""
    files = [code.file for code in manifest.code_objects] + [plan.file for plan in manifest.plans]
    files += [code.kernels for code in manifest.code_objects if code.kernels is not None]
    files.append(manifest.tokenizer.file)
    if manifest.tokenizer.encoder is not None:
        files.append(manifest.tokenizer.encoder)
    if manifest.tokenizer.chat_template is not None:
        files.append(manifest.tokenizer.chat_template)
    return files


def _check_tokenizer(tokenizer: Tokenizer) -> None:
    names = [token.name for token in tokenizer.special_tokens]
    _require(names == sorted(set(names)), f"special_tokens {names} are not sorted and unique")
    _require(
        (tokenizer.encoder is None) == bool(tokenizer.no_encoder),
        f"no_encoder {tokenizer.no_encoder!r} says why there is no encoder file, and only that",
    )
    template, check = tokenizer.chat_template, tokenizer.template_check
    _require(
        (template is None) == (check is None), "template_check belongs to a chat_template, and the other way round"
    )
    if check is not None:
        differing = len(set(check.differing))
        _require(len(check.differing) == differing <= check.probes, f"{differing} of {check.probes} probes differ")


def tensor_bytes(tensor: Tensor) -> int:
    """Returns the bytes from the first row of a tensor to the end of its last."""
    width = DTYPE_BYTES[tensor.dtype]
    if len(tensor.shape) == 1:
        return tensor.shape[0] * width
    return (tensor.shape[0] - 1) * tensor.row_stride + tensor.shape[1] * width


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ManifestError(message, hint=_HINT)


def _require_inside(end: int, extent: int, message: str) -> None:
    if end > extent:
        raise BoundsError(f"{message} ends at byte {end} of {extent}", hint=_HINT)


def _require_unique(names: Iterable[Hashable], kind: str) -> None:
    seen: set[Hashable] = set()
    for name in names:
        _require(name not in seen, f"two {kind} are {name!r}")
        seen.add(name)


def _check_files(manifest: Manifest) -> None:
    paths = [entry.path for entry in files_of(manifest)] + [blob.path for blob in manifest.blobs]
    _require_unique([MANIFEST_NAME, *COMPANIONS, *paths], "files")
    taken = set(paths)
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder:
            _require(folder not in taken, f"file {path!r} lies inside the file {folder!r}")
            folder = folder.rpartition("/")[0]
    total = sum(entry.size for entry in [*(c.file for c in manifest.code_objects), *(p.file for p in manifest.plans)])
    _require(
        total <= MAX_CODE_AND_PLANS_BYTES,
        f"code objects and plans take {total} bytes, more than {MAX_CODE_AND_PLANS_BYTES}",
    )


def _check_blobs(manifest: Manifest) -> None:
    ranks = [blob.rank for blob in manifest.blobs]
    _require(ranks == list(range(manifest.tp)), f"tp is {manifest.tp}, but the blobs are of ranks {ranks}")
    for blob in manifest.blobs:
        size = manifest.blobs[0].size
        _require(blob.size == size, f"blob {blob.path!r} has {blob.size} bytes, that of rank 0 {size}")
        _require(not blob.size % EXTENT_ALIGNMENT, f"blob {blob.path!r} has {blob.size} bytes, not a multiple of 2 MiB")
        _check_chunks(blob)


def _check_chunks(blob: Blob) -> None:
    end = 0
    for n, chunk in enumerate(blob.chunks):
        _require(chunk.offset == end, f"blob {blob.path!r}: chunk {n} starts at byte {chunk.offset}, not {end}")
        end += chunk.size
    _require(end == blob.size, f"blob {blob.path!r}: the chunks cover {end} of {blob.size} bytes")


def _check_tensors(manifest: Manifest) -> None:
    extent = manifest.blobs[0].size
    by_name = {tensor.name: tensor for tensor in manifest.tensors}
    if len(by_name) != len(manifest.tensors):
        _require_unique((tensor.name for tensor in manifest.tensors), "tensors")
    end, previous = 0, ""
    for tensor in manifest.tensors:
        # The f-strings are only built for a tensor that fails: this loop runs at every boot.
        if tensor.offset % TENSOR_ALIGNMENT:
            raise ManifestError(
                f"tensor {tensor.name!r} starts at byte {tensor.offset}, not a multiple of {TENSOR_ALIGNMENT}",
                hint=_HINT,
            )
        if tensor.offset < end:
            raise ManifestError(
                f"tensor {tensor.name!r} starts at byte {tensor.offset}, before the end {end} of {previous!r}",
                hint=_HINT,
            )
        _check_shape(tensor)
        end, previous = tensor.offset + tensor.size, tensor.name
        if end > extent:
            raise BoundsError(f"tensor {tensor.name!r} ends at byte {end} of a blob of {extent}", hint=_HINT)
        _check_scale(tensor, by_name)
        if tensor.parts:
            _check_parts(tensor, manifest.tp)


def _check_shape(tensor: Tensor) -> None:
    width = DTYPE_BYTES[tensor.dtype]
    if len(tensor.shape) == 1:
        good = tensor.row_stride == width
    else:
        good = tensor.row_stride >= tensor.shape[1] * width and not tensor.row_stride % ROW_ALIGNMENT
    if not good or tensor.size != tensor_bytes(tensor):
        raise ManifestError(
            f"tensor {tensor.name!r} of shape {list(tensor.shape)} and dtype {tensor.dtype} cannot have"
            f" row stride {tensor.row_stride} and size {tensor.size}",
            hint=_HINT,
        )


def _check_scale(tensor: Tensor, by_name: dict[str, Tensor]) -> None:
    if tensor.scale_block and (tensor.scale_kind != "block" or len(tensor.scale_block) != len(tensor.shape)):
        raise ManifestError(
            f"tensor {tensor.name!r} of shape {list(tensor.shape)} has scale kind {tensor.scale_kind!r} and scale block"
            f" {list(tensor.scale_block)}",
            hint=_HINT,
        )
    if not tensor.scale:
        if tensor.scale_kind != "none":
            raise ManifestError(f"tensor {tensor.name!r} has scale kind {tensor.scale_kind!r} but no scale", hint=_HINT)
        return
    scale = by_name.get(tensor.scale)
    if scale is None:
        raise ManifestError(f"tensor {tensor.name!r} has the scale {tensor.scale!r}, which does not exist", hint=_HINT)
    grid = tuple(-(-size // block) for size, block in zip(tensor.shape, tensor.scale_block, strict=False))
    wanted = {"row": (tensor.shape[0],), "tensor": (1,), "block": grid}.get(tensor.scale_kind)
    if scale.dtype != "f32" or scale.shape != wanted:
        raise ManifestError(
            f"tensor {tensor.name!r} of shape {list(tensor.shape)} cannot have {scale.name!r}, {scale.dtype} of shape"
            f" {list(scale.shape)}, as its scale of kind {tensor.scale_kind!r}",
            hint=_HINT,
        )


def _check_parts(tensor: Tensor, tp: int) -> None:
    cols = tensor.shape[1] if len(tensor.shape) == 2 else 1
    end = 0
    for n, part in enumerate(tensor.parts):
        where = f"tensor {tensor.name!r}, part {n}"
        if part.row < end:
            raise ManifestError(f"{where} starts at row {part.row}, before the end {end} of the last", hint=_HINT)
        end = part.row + part.rows
        if end > tensor.shape[0] or part.cols > cols:
            raise BoundsError(
                f"{where} covers rows to {end} and {part.cols} columns of shape {list(tensor.shape)}", hint=_HINT
            )
        if len(part.source_row) != tp or len(part.source_col) != tp:
            raise ManifestError(f"{where} does not name one source row and column for each of {tp} ranks", hint=_HINT)


def _check_memory(memory: MemoryPlan, manifest: Manifest) -> None:
    where = f"memory plan of target {memory.target!r}, profile {memory.profile!r}"
    size = manifest.blobs[0].size
    _require(memory.weights_bytes == size, f"{where} has {memory.weights_bytes} bytes of weights, the blobs {size}")
    vocabulary = manifest.model.vocab_size
    _require(
        memory.logits_stride >= vocabulary,
        f"{where} has rows of {memory.logits_stride} logits for a vocabulary of {vocabulary}",
    )
    _require(memory.logits_offset % 4 == 0, f"{where} has logits at byte {memory.logits_offset}, not a multiple of 4")
    logits_end = memory.logits_offset + memory.max_requests * memory.logits_stride * 4
    if memory.logits_region is Region.COMM:
        _require_inside(logits_end, memory.comm_bytes, f"{where}: the logits' extent in comm")
    _require_unique((field.name for field in memory.io), f"io fields of {where}")
    _require_inside(memory.io_input_bytes, memory.io_bytes, f"{where}: the input part of io")
    end = 0
    for field in sorted(memory.io, key=lambda field: field.offset):
        width = IO_DTYPE_BYTES[field.dtype]
        _require(
            field.offset >= end and field.offset % width == 0,
            f"{where}: io field {field.name!r} starts at byte {field.offset}, misaligned or before another's end {end}",
        )
        end = field.offset + field.count * width
        _require_inside(end, memory.io_bytes, f"{where}: io field {field.name!r}")
        _require(
            field.name != "logits" or (field.offset == memory.logits_offset and end >= logits_end),
            f"{where}: io field 'logits' is not where logits_offset and logits_stride say",
        )


def _check_code_and_plans(manifest: Manifest) -> None:
    _require_unique(((memory.target, memory.profile) for memory in manifest.memory), "memory plans")
    _require_unique(((code.target, code.level) for code in manifest.code_objects), "code objects")
    _require_unique(((p.target, p.profile, p.family, p.tokens, p.requests) for p in manifest.plans), "plans")
    memory = {(memory.target, memory.profile): memory for memory in manifest.memory}
    targets = {target for target, _ in memory}
    for code in manifest.code_objects:
        where = f"code object {code.file.path!r}"
        _require(code.target in targets, f"{where} is for target {code.target!r}, which has no memory plan")
        _require(list(code.symbols) == sorted(set(code.symbols)), f"{where} has symbols out of order or twice")
    for plan in manifest.plans:
        where = f"plan {plan.file.path!r}"
        device = f"target {plan.target!r} and profile {plan.profile!r}"
        _require((plan.target, plan.profile) in memory, f"{where} is for {device}, which have no memory plan")
        largest = memory[plan.target, plan.profile]
        _require(
            plan.tokens <= largest.max_tokens and plan.requests <= largest.max_requests,
            f"{where} of {plan.tokens} tokens and {plan.requests} requests exceeds the memory plan's"
            f" {largest.max_tokens} and {largest.max_requests}",
        )


def _check_golden(golden: Golden, where: str, manifest: Manifest) -> None:
    vocabulary = manifest.model.vocab_size
    length = len(golden.prompt) + len(golden.steps)
    limit = manifest.model.max_model_len
    _require(length <= limit, f"{where} has {length} tokens, more than the context of {limit}")
    tokens = [*golden.prompt, *(step.token for step in golden.steps)]
    tokens += [logit.token for step in golden.steps for logit in step.top]
    largest = max(tokens)
    _require(largest < vocabulary, f"{where} has the token {largest}, outside the vocabulary of {vocabulary}")
