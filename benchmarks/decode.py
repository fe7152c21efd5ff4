"""Decode: one stream, 128 tokens in and 128 out, beside transformers in bf16 with its KV cache and as many threads.

Each side runs in a process of its own, alternately, so that noise falls on both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import ROOT, parser, save, smollm2_bundle, smollm2_hf, summary

TOKENS_IN = 128
TOKENS_OUT = 128
TEXT = ROOT / "tests" / "data" / "alice.txt"


def ours(bundle: Path, threads: int) -> dict[str, float]:
    """Returns tokens per second of prefill and decode as `paiton-run generate` reports them."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[:TOKENS_IN]
    command = [sys.executable, "-m", "paiton_runtime.cli", "generate", str(bundle), tokenizer.decode(ids), "--json"]
    command += ["--max-tokens", str(TOKENS_OUT), "--ignore-eos", "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    result = json.loads(done.stdout)
    if len(result["token_ids"]) != TOKENS_OUT:
        raise SystemExit(f"{len(result['token_ids'])} tokens came out, not {TOKENS_OUT}")
    return {"prefill": result["prefill_tokens_per_second"], "decode": result["decode_tokens_per_second"]}


def transformers_once(model_dir: str, threads: int) -> None:
    """Runs in the peer's process: prints its tokens per second."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    ids = tokenizer(TEXT.read_text(), add_special_tokens=False, return_tensors="pt").input_ids[:, :TOKENS_IN]
    with torch.inference_mode():
        model(ids[:, :8])  # first use builds oneDNN's kernels
        start = time.perf_counter()
        out = model(ids, use_cache=True)
        prefill = time.perf_counter() - start
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(TOKENS_OUT - 1):
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        decode = time.perf_counter() - start
    print(json.dumps({"prefill": TOKENS_IN / prefill, "decode": (TOKENS_OUT - 1) / decode}))


def peer(model_dir: Path, threads: int) -> dict[str, float]:
    """Returns transformers' tokens per second, from a process of its own."""
    code = f"from benchmarks.decode import transformers_once as t; t({str(model_dir)!r}, {threads})"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, env=environment)
    speeds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return speeds


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--lm-head", default="bf16")
    options = args.parse_args()
    bundle, model_dir = smollm2_bundle("--lm-head", options.lm_head), smollm2_hf()
    runs = [(ours(bundle, options.threads), peer(model_dir, options.threads)) for _ in range(options.runs)]
    report = {
        f"{what}_tokens_per_second": {
            "paiton": summary([mine[what] for mine, _ in runs]),
            "transformers_bf16": summary([theirs[what] for _, theirs in runs]),
            "ratio": summary([mine[what] / theirs[what] for mine, theirs in runs]),
        }
        for what in ("decode", "prefill")
    }
    save("decode", {"threads": options.threads, "lm_head": options.lm_head, **report})


if __name__ == "__main__":
    main()
