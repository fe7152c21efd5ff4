"""Build memory: peak RssAnon + RssShmem over all processes of a build, on a synthetic checkpoint of more than 6 GB.

Tensors are at most 500 MB, so the bound is 2 x the largest tensor + 500 MB. File pages do not count: they belong to the
page cache and are given back under pressure.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, WORK, parser, save

MIB = 1 << 20
ALLOWANCE = 500_000_000
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 15, 3584, 14336, 28, 4, 128, 65536
"""A Llama of 3.2 billion parameters, 6.4 GB in bf16; its largest tensors are embedding and head (470 MB each)."""


def write_checkpoint(folder: Path, layers: int = LAYERS) -> int:
    """Writes the checkpoint tensor by tensor, so that this takes no memory either; returns its bytes."""
    from tests.make_checkpoints import tiny_llama  # noqa: PLC0415

    shutil.rmtree(folder, ignore_errors=True)
    tiny_llama(folder, layers=1)  # for its tokenizer and configuration
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "num_hidden_layers": layers,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    return _write_safetensors(folder / "model.safetensors", _shapes(layers))


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            prefix + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(8 * MIB).astype(np.float32) * 0.02).view(np.uint32) >> 16
    noise = block.astype(np.uint16).tobytes()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for shape in shapes.values():
            remaining = 2 * int(np.prod(shape))
            if len(shape) == 1:
                file.write(np.full(shape, 0x3F80, np.uint16).tobytes())
                continue
            while remaining:
                remaining -= file.write(noise[:remaining])
    return path.stat().st_size


def anonymous_bytes(root: int) -> int:
    """Returns RssAnon + RssShmem of a process and all its descendants."""
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        total += sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
    return total


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--interval", type=float, default=0.02, help="seconds between samples")
    args.add_argument("--keep", action="store_true", help="keep the checkpoint and the bundle")
    options = args.parse_args()
    folder, output = WORK / "synthetic", WORK / "synthetic.bundle"
    size = write_checkpoint(folder)
    command = [sys.executable, "-m", "paiton_aot.cli", str(folder), "-o", str(output), "--force", "--json", "-q"]
    peak, samples = 0, 0
    with (WORK / "build_memory.out").open("w+b") as stdout:
        child = subprocess.Popen(command, stdout=stdout, cwd=ROOT)
        while child.poll() is None:
            peak, samples = max(peak, anonymous_bytes(child.pid)), samples + 1
            time.sleep(options.interval)
        stdout.seek(0)
        built = json.load(stdout)
    largest = max(2 * int(np.prod(shape)) for shape in _shapes(LAYERS).values())
    limit = 2 * largest + ALLOWANCE
    report = {"checkpoint_bytes": size, "largest_tensor_bytes": largest, "limit_bytes": limit, "samples": samples}
    del built["bundle"]  # a path of this machine
    save("build_memory", {**report, "peak_bytes": peak, "peak_over_limit": peak / limit, "build": built})
    if not options.keep:
        shutil.rmtree(folder)
        shutil.rmtree(output)


if __name__ == "__main__":
    main()
