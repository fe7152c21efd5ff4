"""Damaged and hostile Hugging Face directories: each is refused with its own error, on one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.safetensors_file import MAX_HEADER_BYTES
from paiton_artifacts.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    DuplicateTensorError,
    MissingTensorError,
    PaitonError,
    UnsupportedArchitectureError,
    UnsupportedError,
)
from tests.make_checkpoints import edit_json

Header = dict[str, Any]
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


def refused(path: Path, error: type[PaitonError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def split(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return data[8:start], data[start:]


def write(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def edit_header(directory: Path, edit: Callable[[Header], object]) -> None:
    path = directory / "model.safetensors"
    raw, data = split(path)
    header = json.loads(raw)
    edit(header)
    write(path, json.dumps(header).encode(), data)


def test_truncated_at_any_point(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for size in (
        0,
        1,
        7,
        8,
        9,
        header_end // 2,
        header_end - 1,
        header_end,
        header_end + 1,
        len(whole) // 2,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:size])
        refused(tiny, CheckpointFormatError, "model.safetensors is truncated")


def test_a_file_that_shrinks_while_it_is_open(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    with open_checkpoint(tiny) as checkpoint:
        path.write_bytes(path.read_bytes()[:2000])
        tensor = checkpoint.tensor(NORM)
        with pytest.raises(CheckpointFormatError, match=r"model\.safetensors is truncated"):
            tensor.read_rows(0, tensor.rows)


def test_bytes_after_the_last_tensor(tiny: Path) -> None:
    with (tiny / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refused(tiny, CheckpointFormatError, "has bytes that belong to no tensor")


def test_header_larger_than_allowed(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    with path.open("r+b") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(1 << 30)  # sparse
    refused(tiny, CheckpointFormatError, f"header of {MAX_HEADER_BYTES + 1} bytes")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"w": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"w": 1}', "tensor w of .* has no description"),
        (b'{"a\\nb": {}}', r"a tensor named 'a\\nb'"),
    ],
)
def test_header_that_is_no_table(tiny: Path, header: bytes, message: str) -> None:
    write(tiny / "model.safetensors", header, b"")
    refused(tiny, CheckpointFormatError, message)


def test_tensor_listed_twice(tiny: Path) -> None:
    raw, data = split(tiny / "model.safetensors")
    entry = json.dumps(json.loads(raw)[NORM]).encode()
    write(tiny / "model.safetensors", raw.rstrip()[:-1] + b', "' + NORM.encode() + b'": ' + entry + b"}", data)
    refused(tiny, DuplicateTensorError, f"'{NORM}' twice")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", 7, "has dtype 7"),
        ("shape", None, "has shape None"),
        ("shape", [-1, 2], r"has shape \[-1, 2\]"),
        ("shape", [1.5], r"has shape \[1.5\]"),
        ("shape", [True], r"has shape \[True\]"),
        ("shape", [1 << 62, 1 << 62], "which needs"),
        ("shape", [1] * 9, "has shape"),
        ("shape", [127], r"256 bytes for shape \[127\] of BF16, which needs 254"),
        ("dtype", "F32", "which needs 512"),
        ("data_offsets", [0], r"has offsets \[0\]"),
        ("data_offsets", [256, 0], r"has offsets \[256, 0\]"),
        ("data_offsets", ["0", "256"], "has offsets"),
        ("data_offsets", [0, 1 << 64], "has offsets"),
    ],
)
def test_field_of_a_tensor(tiny: Path, field: str, value: object, message: str) -> None:
    edit_header(tiny, lambda header: header[NORM].update({field: value}))
    refused(tiny, CheckpointFormatError, f"tensor {NORM} of .*{message}")


@pytest.mark.parametrize(("shift", "message"), [(-256, "overlaps"), (1 << 40, "leaves a hole")])
def test_offsets_that_overlap_or_leave_the_file(tiny: Path, shift: int, message: str) -> None:
    def move(header: Header) -> None:
        last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
        last["data_offsets"] = [offset + shift for offset in last["data_offsets"]]

    edit_header(tiny, move)
    refused(tiny, CheckpointFormatError, message)


def test_tensors_of_dtypes_that_we_do_not_read_are_skipped(tiny: Path) -> None:
    edit_header(tiny, lambda header: header[NORM].update({"dtype": "I16"}))
    with open_checkpoint(tiny) as checkpoint, pytest.raises(MissingTensorError, match=NORM):
        checkpoint.tensor(NORM)


def test_random_damage_never_escapes_as_another_error(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(header_end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            open_checkpoint(path.parent).close()
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    shutil.copy(first, second)
    refused(sharded, DuplicateTensorError, f"is stored in {first.name} and in {second.name}")


def weight_map(path: Path, renamed: dict[str, str]) -> dict[str, str]:
    """The index with other file names."""
    index: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
    return {name: renamed.get(shard, shard) for name, shard in index.items()}


def test_index_names_an_absent_file(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(sharded, CheckpointFormatError, f"names {shard.name}, which does not exist")


def test_index_names_an_absent_tensor(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors")).name
    edit_json(sharded / INDEX, weight_map=weight_map(sharded, {}) | {"no.such": shard})
    refused(sharded, MissingTensorError, f"'no.such' in {shard}, which lacks it")


def test_index_places_a_tensor_in_the_wrong_shard(sharded: Path) -> None:
    places = weight_map(sharded, {})
    wrong = next(shard for shard in places.values() if shard != places[NORM])
    edit_json(sharded / INDEX, weight_map=places | {NORM: wrong})
    refused(sharded, MissingTensorError, f"'{NORM}' in {wrong}, which lacks it")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", "model.bin", 7])
def test_index_leaves_the_directory(sharded: Path, shard: object) -> None:
    places: dict[str, object] = {**weight_map(sharded, {}), NORM: shard}
    edit_json(sharded / INDEX, weight_map=places)
    refused(sharded, CheckpointFormatError, "expected a safetensors file beside it")


def test_index_without_a_map(sharded: Path) -> None:
    edit_json(sharded / INDEX, weight_map=None)
    refused(sharded, CheckpointFormatError, "has no weight_map")


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    refused(sharded, CheckpointFormatError, f"holds model-00001-of-.* but no {INDEX}")


def test_no_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    refused(tiny, CheckpointNotFoundError, "holds no weights")
    (tiny / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    refused(tiny, CheckpointFormatError, r"holds pickled weights \(pytorch_model.bin\)")


def test_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "absent", CheckpointNotFoundError, "no checkpoint at")
    refused(tmp_path, CheckpointNotFoundError, "holds no config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[]", "holds a JSON list"),
        (b'{"a":1,"a":2}', "'a' twice"),
    ],
)
def test_configuration_that_is_no_object(tiny: Path, content: bytes, message: str) -> None:
    (tiny / "config.json").write_bytes(content)
    refused(tiny, CheckpointFormatError, f"config.json .*{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "has no field hidden_size"),
        ({"hidden_size": "128"}, "has hidden_size '128'"),
        ({"num_hidden_layers": 0}, "has num_hidden_layers 0"),
        ({"num_hidden_layers": 1 << 30}, "has num_hidden_layers 1073741824"),
        ({"num_attention_heads": True}, "has num_attention_heads True"),
        ({"num_key_value_heads": 3}, "4 attention heads for 3 KV heads"),
        ({"rms_norm_eps": float("nan")}, "has rms_norm_eps nan"),
        ({"tie_word_embeddings": "no"}, "has tie_word_embeddings 'no'"),
        ({"rope_parameters": [1]}, r"has rope_parameters \[1\]"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters has no field low_freq_factor"),
        ({"rope_parameters": {"type": "linear"}}, "rope_parameters has no field factor"),
        ({"bos_token_id": 384}, "has bos_token_id 384"),
        ({"quantization_config": "fp8"}, "has quantization_config 'fp8'"),
    ],
)
def test_field_of_the_configuration(tiny: Path, changes: dict[str, object], message: str) -> None:
    edit_json(tiny / "config.json", **changes)
    refused(tiny, CheckpointFormatError, f"config.json.* {message}")


@pytest.mark.parametrize("ids", [-1, 384, [2, "3"], 1.0])
def test_end_token_outside_the_vocabulary(tiny: Path, ids: object) -> None:
    edit_json(tiny / "generation_config.json", eos_token_id=ids)
    refused(tiny, CheckpointFormatError, "generation_config.json has eos_token_id")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["OPTForCausalLM"]}, "names .*OPTForCausalLM"),
        ({"architectures": None}, "names no architecture"),
        ({"attention_bias": True}, "has attention_bias true"),
        ({"mlp_bias": True}, "has mlp_bias true"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'"),
    ],
)
def test_unsupported_architecture(tiny: Path, changes: dict[str, object], message: str) -> None:
    edit_json(tiny / "config.json", **changes)
    refused(tiny, UnsupportedArchitectureError, message)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {"type": "proportional"},
        {"partial_rotary_factor": 0.5},
        {"rope_type": []},
    ],
)
def test_unsupported_rotary_scaling(tiny: Path, rope: dict[str, object]) -> None:
    edit_json(tiny / "config.json", rope_parameters=rope)
    refused(tiny, UnsupportedError, "rope_parameters|rotates a part of each head")


def test_missing_tensor(tiny: Path) -> None:
    with open_checkpoint(tiny) as checkpoint, pytest.raises(MissingTensorError, match=r"no\.such is not in"):
        checkpoint.tensor("no.such")
