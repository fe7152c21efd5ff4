"""config.json and index of amd/Llama-3.1-405B-Instruct-FP8-KV, for planning it without its 408 GB of weights.

`python -m benchmarks outline DIR`, then `paiton-build plan DIR --target hip:gfx942 --tp 8 --act fp8 --kv fp8`. Written
from the public architecture of Llama 3.1 405B and the static FP8 format with KV scales (one scale for each quantised
weight, its input, and each layer's cache; the output head is bf16), not fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

from benchmarks.common import parser
from benchmarks.headers import LLAMA_3_1_8B, tensors_of

LLAMA_3_1_405B_FP8: dict[str, object] = {
    **LLAMA_3_1_8B,
    "_name_or_path": "Llama-3.1-405B-Instruct-FP8-KV",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "quantization_config": {
        "activation_scheme": "static",
        "ignored_layers": ["lm_head"],
        "kv_cache_scheme": "static",
        "quant_method": "fp8",
    },
}
"""The public configuration of Llama-3.1-405B, quantised."""

SHARD_BYTES = 5 * 10**9
"""What a file of a checkpoint holds at most, as transformers writes it."""


def quantized_tensors(config: dict[str, object]) -> Iterator[tuple[str, list[int], str]]:
    """Yields name, shape and safetensors dtype of every tensor of a Llama in static FP8."""
    for name, shape in tensors_of(config):
        if not name.endswith("_proj.weight"):
            yield name, shape, "BF16"
            continue
        yield name, shape, "F8_E4M3"
        yield f"{name}_scale", [], "F32"
        module = name.removesuffix(".weight")
        yield f"{module}.input_scale", [], "F32"
        if module.endswith("v_proj"):
            yield f"{module.removesuffix('.v_proj')}.kv_scale", [], "F32"


def write_outline(folder: Path, config: dict[str, object]) -> Path:
    """Writes config.json and model.safetensors.index.json, and no weights; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    width = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
    shards: list[int] = []
    place: dict[str, int] = {}
    for name, shape, dtype in quantized_tensors(config):
        size = width[dtype] * prod(shape)
        if not shards or shards[-1] + size > SHARD_BYTES:
            shards.append(0)
        shards[-1] += size
        place[name] = len(shards)
    weight_map = {name: f"model-{shard:05}-of-{len(shards):05}.safetensors" for name, shard in sorted(place.items())}
    index = {"metadata": {"total_size": sum(shards)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    """Writes the two files."""
    args = parser(__doc__ or "")
    args.add_argument("folder", type=Path, help="to write to")
    print(write_outline(args.parse_args().folder, LLAMA_3_1_405B_FP8))


if __name__ == "__main__":
    main()
