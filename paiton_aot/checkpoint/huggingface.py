"""A Hugging Face directory: config.json, safetensors files (one, or shards with an index), tokenizer files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from paiton_aot.checkpoint.base import Checkpoint, SourceTensor, TokenizerFiles
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.files import AGAIN, CheckpointFile, read_object
from paiton_aot.checkpoint.generation_config import sampling_defaults
from paiton_aot.checkpoint.heads import in_order
from paiton_aot.checkpoint.huggingface_tokenizer import read_tokenizer
from paiton_aot.checkpoint.multimodal import text_config, text_names
from paiton_aot.checkpoint.outline import outline as outline_tensors
from paiton_aot.checkpoint.quantization.parse import parse_quantization
from paiton_aot.checkpoint.safetensors_file import read_header
from paiton_aot.checkpoint.split import Renamed, split_fused
from paiton_aot.checkpoint.transformers_config import parse_config
from paiton_artifacts.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    DuplicateTensorError,
    MissingTensorError,
    UnsupportedError,
)
from paiton_artifacts.schema import SamplingDefaults

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"
MERGED_EXPERTS = ".experts.gate_up_proj"
MAX_SHARDS = 4096


class HuggingFaceCheckpoint(Checkpoint):
    """A directory as transformers' `save_pretrained` writes it. Raises what its parts raise; see the modules above.

    Args:
        path: the directory.
        outline: do without weights where an index names them and none of them is there; see `outline`.

    Raises:
        CheckpointNotFoundError: the directory holds no config.json or no weights.
    """

    def __init__(self, path: Path, *, outline: bool = False) -> None:
        self._path = path
        from paiton_aot.models import ARCHITECTURES  # noqa: PLC0415  (which are made of checkpoints)

        config_path = path / "config.json"
        if not config_path.is_file():
            raise CheckpointNotFoundError(f"{path} holds no config.json", hint="give the directory of a checkpoint")
        stated = read_object(config_path)
        config = text_config(stated, str(config_path))
        generation_path = path / "generation_config.json"
        generation = read_object(generation_path) if generation_path.is_file() else {}
        facts = parse_config(config, generation, str(config_path))
        self._sampling = sampling_defaults(generation, str(generation_path))
        modelopt_path = path / MODELOPT
        modelopt = read_object(modelopt_path) if modelopt_path.is_file() else None
        with contextlib.ExitStack() as opened:
            fused = ARCHITECTURES[facts.architecture].fused(facts)
            self.outlined = outline and lacks_weights(path)
            opened_tensors = {} if self.outlined else _open_tensors(path, opened)
            names = list(_read_index(path / INDEX) if self.outlined else opened_tensors)
            own = {name: name for name in names} if config is stated else text_names(names)
            self.left_out = len(names) - len(own)
            if self.outlined:
                stored = outline_tensors(own, facts, config, str(path))
            else:
                found = own.items()
                stored = {n: opened_tensors[o] if n == o else Renamed(n, opened_tensors[o]) for n, o in found}
            if merged := next((name for name in stored if name.endswith(MERGED_EXPERTS)), None):
                raise UnsupportedError(
                    f"{path} holds tensor {merged}, the matrices of all experts in one",
                    hint="save it expert by expert: save_pretrained(..., save_original_format=True)",
                )
            tensors = split_fused(stored, fused, facts.layers)
            quantization = parse_quantization(config, tensors, facts.layers, str(config_path), modelopt)
            tensors, quantization = in_order(tensors, quantization, facts)
            self._files = opened.pop_all()
        origin = config.get("_name_or_path")
        title = Path(origin).name if isinstance(origin, str) else None
        super().__init__(path.resolve().name, facts, tensors, quantization, title)

    def tokenizer(self) -> TokenizerFiles:
        """Returns the directory's tokenizer; see `Checkpoint.tokenizer`."""
        eos = self.config.eos_token_ids
        return read_tokenizer(self._path, {"bos_token": self.config.bos_token_id, "eos_token": eos[0] if eos else None})

    def sampling(self) -> SamplingDefaults:
        """Returns what generation_config.json says; see `Checkpoint.sampling`."""
        return self._sampling

    def close(self) -> None:
        """Closes the weight files; may be called again."""
        self._files.close()


def _open_tensors(path: Path, opened: contextlib.ExitStack) -> dict[str, SourceTensor]:
    """Returns the tensors of all weight files; the files are closed with `opened`."""
    # In transformers' order: a single file wins over an index.
    if (path / SINGLE).is_file():
        return _open_file(path / SINGLE, opened)
    if not (path / INDEX).is_file():
        raise _no_weights(path)
    weight_map = _read_index(path / INDEX)
    tensors: dict[str, SourceTensor] = {}
    shard_of: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise _missing(path, shard)
        for name, tensor in _open_file(path / shard, opened).items():
            if name in tensors:
                raise DuplicateTensorError(
                    f"tensor {name} is stored in {shard_of[name]} and in {shard}", hint="save the checkpoint again"
                )
            tensors[name], shard_of[name] = tensor, shard
    for name, shard in weight_map.items():
        if shard_of.get(name) != shard:
            raise MissingTensorError(
                f"{path / INDEX} places tensor {shown(name)} in {shard}, which lacks it", hint=AGAIN
            )
    return tensors


def lacks_weights(path: Path) -> bool:
    """Returns whether a directory has an index of its weights, and none of the files that it names."""
    if (path / SINGLE).is_file() or not (path / INDEX).is_file():
        return False
    return not any((path / shard).is_file() for shard in _read_index(path / INDEX).values())


def shards_of(path: Path) -> list[str]:
    """Returns the names of the weight files that a directory's index lists, sorted.

    Raises:
        CheckpointFormatError: the index is malformed, or names a file that does not exist.
    """
    shards = named_shards(path)
    for shard in shards:
        if not (path / shard).is_file():
            raise _missing(path, shard)
    return shards


def named_shards(path: Path) -> list[str]:
    """Returns the names of the weight files that a directory's index lists, sorted, whether they are there or not.

    Raises:
        CheckpointFormatError: the index is malformed.
    """
    return sorted(set(_read_index(path / INDEX).values()))


def _missing(path: Path, shard: str) -> CheckpointFormatError:
    if lacks_weights(path):
        return CheckpointFormatError(
            f"{path} holds none of the weights that {INDEX} names",
            hint="fetch them; without, `paiton-build plan` tells sizes and kernels",
        )
    return CheckpointFormatError(f"{path / INDEX} names {shard}, which does not exist", hint=AGAIN)


def _open_file(path: Path, opened: contextlib.ExitStack) -> dict[str, SourceTensor]:
    file = CheckpointFile(path)
    opened.callback(file.close)
    return read_header(file)


def _read_index(path: Path) -> dict[str, str]:
    """Returns the file name of each tensor; only names of files beside the index are accepted."""
    section = Fields(read_object(path), str(path)).section("weight_map")
    if section is None or not section.values:
        raise CheckpointFormatError(f"{path} has no weight_map", hint=AGAIN)
    weight_map: dict[str, str] = {}
    for name, shard in section.values.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointFormatError(
                f"{path} places tensor {shown(name)} in {shown(shard)}, expected a safetensors file beside it",
                hint=AGAIN,
            )
        weight_map[name] = shard
    if (shards := len(set(weight_map.values()))) > MAX_SHARDS:
        raise CheckpointFormatError(f"{path} names {shards} files, more than {MAX_SHARDS}", hint=AGAIN)
    return weight_map


def _no_weights(path: Path) -> CheckpointFormatError | CheckpointNotFoundError:
    """Returns an error that says what the directory has instead of weights that we read."""
    if found := next(_files(path, "*.safetensors"), None):
        return CheckpointFormatError(f"{path} holds {found} but no {INDEX}", hint="fetch the index beside the shards")
    pickled = next((name for pattern in ("*.bin", "*.pt", "*.pth") for name in _files(path, pattern)), None)
    if pickled:
        return CheckpointFormatError(
            f"{path} holds pickled weights ({pickled}), which can run code when they are read",
            hint="convert them to safetensors, e.g. with transformers' save_pretrained",
        )
    return CheckpointNotFoundError(f"{path} holds no weights ({SINGLE} or {INDEX})", hint="fetch the checkpoint again")


def _files(path: Path, pattern: str) -> Iterator[str]:
    return iter(sorted(file.name for file in path.glob(pattern)))
