"""Manifests whose digests are right and whose contents are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paiton_artifacts.errors import BoundsError, ManifestError, PaitonError, UnsupportedVersionError
from paiton_artifacts.layout import RUNTIME_ABI
from paiton_artifacts.reader import open_bundle
from tests.cpu.artifacts.forge import DELETE, Edit, edit_manifest

FILE = {"path": "more", "size": 1, "sha256": "0" * 64}
CODE: dict[str, Any] = {"target": "cpu", "level": "l", "file": FILE, "kernels": None, "symbols": [], "compiler": "c"}
LARGE_CODE = [{**CODE, "level": f"l{n}", "file": {**FILE, "path": f"code/{n}", "size": 64 << 20}} for n in range(5)]
IO = {"name": "more", "dtype": "f32", "count": 1, "offset": 128}
CHUNK = {"offset": 2 << 20, "size": 1, "sha256": "0" * 64}
PATHS = [
    "/etc/passwd",
    "../secret",
    "blobs/../../x",
    "blobs\\x",
    "",
    ".",
    "a//b",
    "a/",
    ".git/x",
    "-rf",
    "a/b/c/d/e",
    "é",
]

TYPES: dict[str, tuple[Edit, str]] = {
    "missing field": ({("model", "layers"): DELETE}, "model.layers is missing"),
    "wrong type": ({("model", "layers"): "3"}, "model.layers is a string, not an integer"),
    "boolean for integer": ({("tp",): True}, "tp is a bool, not an integer"),
    "integer for boolean": ({("tokenizer", "add_bos"): 1}, "tokenizer.add_bos is an integer, not a boolean"),
    "integer for float": ({("goldens", 0, "tolerance"): 1}, "goldens.0..tolerance is an integer, not a float"),
    "null": ({("blobs",): None}, "blobs is null, not a list"),
    "map for list": ({("tensors",): {}}, "tensors is a map, not a list"),
    "list for map": ({("model", "rope"): []}, "model.rope is a list, not a map"),
    "list for string": ({("generator",): [[[[[[[[1]]]]]]]]}, "generator is a list, not a string"),
    "negative offset": ({("tensors", 1, "offset"): -256}, r"tensors\[1\].offset is -256, outside 0"),
    "huge offset": ({("tensors", 1, "offset"): (1 << 64) - 1}, r"tensors\[1\].offset is 18446744073709551615, outside"),
    "negative shape": ({("tensors", 1, "shape", 0): -1}, r"tensors\[1\].shape\[0\] is -1, outside 1"),
    "three dimensions": ({("tensors", 1, "shape"): [1, 1, 1]}, r"shape has 3 items, outside 1 .. 2"),
    "NaN": ({("goldens", 0, "tolerance"): float("nan")}, "tolerance is nan"),
    "infinity": ({("goldens", 0, "steps", 0, "top", 0, "logit"): float("inf")}, "logit is inf, outside"),
    "unknown dtype": ({("tensors", 0, "dtype"): "f64"}, "dtype is 'f64', not one of 'f32', 'bf16'"),
    "unknown layout": ({("tensors", 0, "layout"): "swizzled"}, "layout is 'swizzled', not one of 'row-major'"),
    "short digest": ({("blobs", 0, "chunks", 0, "sha256"): "abc"}, "sha256 is 'abc', not a SHA-256"),
    "escape sequence": ({("model", "name"): "\x1b[2J"}, "model.name is .*unprintable"),
    "long name": ({("tensors", 0, "name"): "n" * 256}, "name has 256 characters, more than 255"),
    "symbol that is none": ({("code_objects", 0, "symbols", 0): "a;b"}, r"symbols\[0\] is 'a;b', not a C identifier"),
    "too many symbols": ({("code_objects", 0, "symbols"): ["a"] * 5000}, "symbols has 5000 items, outside 0 .. 4096"),
    "huge code object": ({("code_objects", 0, "file", "size"): 1 << 40}, "file.size is 1099511627776, outside"),
    "huge plan": ({("plans", 0, "file", "size"): 1 << 30}, "file.size is 1073741824, outside"),
    "empty chunk": ({("blobs", 0, "chunks", 0, "size"): 0}, "size is 0, outside 1"),
}
PATHS_REFUSED: dict[str, tuple[Edit, str]] = {
    f"path {path!r} of {position[0]}": ({position: path}, f"{position[-1]} is .*not a relative path")
    for path in PATHS
    for position in (("blobs", 0, "path"), ("tokenizer", "file", "path"))
}
CONTRADICTIONS: dict[str, tuple[Edit, str]] = {
    "missing blob": ({("blobs", 1): DELETE}, r"tp is 2, but the blobs are of ranks \[0\]"),
    "two blobs of a rank": ({("blobs", 1, "rank"): 0}, r"blobs are of ranks \[0, 0\]"),
    "no blobs": ({("blobs",): []}, "tp is 2, but the blobs"),
    "blobs of two sizes": ({("blobs", 1, "size"): 4 << 20}, "has 4194304 bytes, that of rank 0 2097152"),
    "unpadded blobs": ({("blobs", 0, "size"): 999, ("blobs", 1, "size"): 999}, "999 bytes, not a multiple of 2 MiB"),
    "chunk gap": ({("blobs", 0, "chunks", 0, "offset"): 1}, "'blobs/rank-0.bin': chunk 0 starts at byte 1, not 0"),
    "chunks too short": ({("blobs", 0, "chunks", 0, "size"): 4096}, "the chunks cover 4096 of 2097152 bytes"),
    "no chunks": ({("blobs", 0, "chunks"): []}, "the chunks cover 0 of"),
    "chunk past the end": ({("blobs", 0, "chunks", "append"): CHUNK}, "the chunks cover 2097153 of"),
    "same path twice": ({("blobs", 1, "path"): "blobs/rank-0.bin"}, "two files are 'blobs/rank-0.bin'"),
    "path of the manifest": ({("tokenizer", "file", "path"): "manifest.msgpack"}, "two files are 'manifest.msgpack'"),
    "file inside a file": ({("tokenizer", "file", "path"): "blobs/rank-0.bin/x/y"}, "lies inside the file"),
    "duplicate tensor": ({("tensors", 5, "name"): "lm_head.scale"}, "two tensors are 'lm_head.scale'"),
    "overlapping tensors": (
        {("tensors", 1, "offset"): 256},
        "'layers.0.linear.weight' starts at byte 256, before the end",
    ),
    "unsorted tensors": (
        {("tensors", 0, "offset"): 8192},
        "'layers.0.linear.weight' starts at byte 512, before the end",
    ),
    "misaligned tensor": ({("tensors", 5, "offset"): 4100}, "'norm.weight' starts at byte 4100, not a multiple of 256"),
    "lying size": ({("tensors", 0, "size"): 10}, "shape .10, 12. and dtype bf16 cannot have row stride 32 and size 10"),
    "row stride too small": ({("tensors", 0, "row_stride"): 16}, "cannot have row stride 16"),
    "row stride misaligned": ({("tensors", 0, "row_stride"): 24, ("tensors", 0, "size"): 240}, "row stride 24"),
    "vector with a stride": ({("tensors", 5, "row_stride"): 16}, "'norm.weight' .* cannot have row stride 16"),
    "scale that is absent": ({("tensors", 1, "scale"): "nothing"}, "has the scale 'nothing', which does not exist"),
    "scale of another dtype": ({("tensors", 1, "scale"): "norm.weight"}, "cannot have 'norm.weight', bf16"),
    "scale of another shape": ({("tensors", 1, "scale"): "lm_head.scale"}, "cannot have 'lm_head.scale', f32"),
    "scale without a kind": ({("tensors", 1, "scale_kind"): "none"}, "as its scale of kind 'none'"),
    "kind without a scale": ({("tensors", 0, "scale_kind"): "row"}, "has scale kind 'row' but no scale"),
    "blocks of a row": ({("tensors", 1, "scale_block"): [2, 16]}, "scale kind 'row' and scale block .2, 16."),
    "blocks of one dimension": ({("tensors", 6, "scale_block"): [2]}, "scale kind 'block' and scale block .2."),
    "blocks without a size": ({("tensors", 6, "scale_block"): []}, "as its scale of kind 'block'"),
    "blocks of another size": (
        {("tensors", 6, "scale_block"): [2, 8]},
        r"of shape .3, 2., as its scale of kind 'block'",
    ),
    "blocks of nothing": ({("tensors", 6, "scale_block"): [0, 16]}, "scale_block"),
    "parts of one rank": ({("tensors", 0, "parts", 0, "source_row"): [0]}, "for each of 2 ranks"),
    "unequal weights": ({("memory", 0, "weights_bytes"): 1}, "has 1 bytes of weights, the blobs 2097152"),
    "narrow logits": ({("memory", 0, "logits_stride"): 9}, "rows of 9 logits for a vocabulary of 10"),
    "misaligned logits": ({("memory", 0, "logits_offset"): 1}, "logits at byte 1, not a multiple of 4"),
    "overlapping io": ({("memory", 0, "io", 1, "offset"): 8}, "io field 'token_ids' starts at byte 8, misaligned or"),
    "misaligned io": ({("memory", 0, "io", 2, "offset"): 68}, "io field 'seed' starts at byte 68, misaligned"),
    "duplicate io": ({("memory", 0, "io", "append"): {**IO, "name": "seed"}}, "are 'seed'"),
    "code without memory": ({("code_objects", 0, "target"): "gpu"}, "target 'gpu'.*no memory plan"),
    "plan without memory": ({("plans", 0, "target"): "gpu"}, "target 'gpu'.*no memory plan"),
    "duplicate level": ({("code_objects", 1, "level"): "generic"}, r"two code objects are \('cpu', 'generic'\)"),
    "unsorted symbols": ({("code_objects", 0, "symbols"): ["b", "a"]}, "symbols out of order or twice"),
    "duplicate symbol": ({("code_objects", 0, "symbols"): ["a", "a"]}, "symbols out of order or twice"),
    "plan beyond the memory": ({("plans", 0, "tokens"): 9}, "of 9 tokens and 2 requests exceeds"),
    "golden token": ({("goldens", 0, "prompt"): [10]}, "golden 0 has the token 10, outside the vocabulary of 10"),
    "golden longer than context": ({("goldens", 0, "prompt"): [1] * 40}, "has 41 tokens, more than the context of 32"),
    "bos token": ({("model", "bos_token_id"): 10}, "bos_token_id 10 is outside the vocabulary of 10"),
    "much code": ({("code_objects",): LARGE_CODE}, "code objects and plans take 33554"),
}
BOUNDS: dict[str, tuple[Edit, str]] = {
    "tensor outside the blob": ({("tensors", 5, "offset"): 2 << 20}, "'norm.weight' ends at byte 2097166 of a blob of"),
    "part below the tensor": ({("tensors", 0, "parts", 0, "rows"): 11}, "part 0 covers rows to 11 and 12 columns"),
    "part beside the tensor": ({("tensors", 0, "parts", 0, "cols"): 13}, "part 0 covers rows to 10 and 13 columns"),
    "logits outside comm": ({("memory", 0, "logits_stride"): 1 << 20}, "logits' extent in comm ends at byte"),
    "io outside its region": ({("memory", 0, "io", 2, "count"): 1 << 40}, "io field 'seed' ends at byte"),
}


def refused(victim: Path, edit: Edit, error: type[PaitonError], words: str, code: int = 4) -> None:
    """Asserts how opening the edited bundle fails."""
    edit_manifest(victim, edit)
    with pytest.raises(PaitonError, match=words) as caught:
        open_bundle(victim)
    assert type(caught.value) is error
    assert caught.value.exit_code == code
    assert caught.value.message.startswith(f"{victim / 'manifest.msgpack'}: ")
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 500
    assert caught.value.hint


@pytest.mark.parametrize("name", [*TYPES, *PATHS_REFUSED, *CONTRADICTIONS])
def test_manifest_error(victim: Path, name: str) -> None:
    edit, words = {**TYPES, **PATHS_REFUSED, **CONTRADICTIONS}[name]
    refused(victim, edit, ManifestError, words)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_error(victim: Path, name: str) -> None:
    edit, words = BOUNDS[name]
    refused(victim, edit, BoundsError, words)


@pytest.mark.parametrize("abi", [0, RUNTIME_ABI - 1, RUNTIME_ABI + 1])
def test_another_runtime_abi(victim: Path, abi: int) -> None:
    edit: dict[tuple[str | int, ...], Any] = {("runtime_abi",): abi, ("model",): "whatever that version has here"}
    refused(victim, edit, UnsupportedVersionError, f"runtime ABI {abi}, this runtime has {RUNTIME_ABI}", code=3)
