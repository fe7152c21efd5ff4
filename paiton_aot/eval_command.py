"""`paiton-build eval`: perplexity of a bundle on a text, and its divergence from the source checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from paiton_aot.eval_measure import Measured, measure, windows
from paiton_aot.progress import Progress
from paiton_artifacts.command_line import CommandParser, read_text
from paiton_artifacts.errors import QualityError, UsageError
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.ledger import Ledger
from paiton_runtime.text import TextCodec

DEFAULT_TOKENS = 4096
DEFAULT_WINDOW = 512

_EPILOG = """examples:
  paiton-build eval smollm2.bundle --text wiki.txt
  paiton-build eval smollm2.bundle --text wiki.txt --checkpoint SmolLM2-135M-Instruct.gguf --max-kl 0.02
  paiton-build eval smollm2.bundle --text wiki.txt --checkpoint HuggingFaceTB/SmolLM2-135M-Instruct@main

exit codes: 0 done, 2 usage, 3 unsupported, 4 the bundle is worse than --max-perplexity or --max-kl allow, or damaged"""


def eval_command(argv: Sequence[str]) -> int:
    """Runs the command with the arguments that follow its name."""
    args = _parser().parse_args(argv)
    text = read_text(args.text, "--text")
    bundle = open_bundle(args.bundle)
    codec = TextCodec(bundle)
    ids = codec.encode(text, add_special_tokens=False)[: args.tokens]
    window = _window(args.window, bundle, len(codec.prefix))
    if len(ids) + len(codec.prefix) < 2:
        raise UsageError(f"{args.text} has {len(ids)} tokens, too few to rate one", hint="give a longer text")
    source = None
    if args.checkpoint is not None:
        from paiton_aot.eval_source import open_source  # noqa: PLC0415  (torch: seconds, and not always there)

        source = open_source(args.checkpoint, Progress(enabled=True))
    started = time.perf_counter()
    options = BootOptions(target=args.target, kv_tokens=window, golden_check=False)
    with boot_bundle(bundle, options, Ledger()) as model:
        measured = measure(model, windows(ids, codec.prefix, window), source)
        where = {"target": model.memory.target, "level": model.level}
    facts = {"bundle": str(args.bundle), "text": str(args.text), "tokens": len(ids), "window": window, **where}
    result = {**facts, **measured.as_json(), "seconds": round(time.perf_counter() - started, 3)}
    print(json.dumps(result, indent=2) if args.json else _shown(result))  # noqa: T201  (a command prints)
    _judge(measured, args.max_perplexity, args.max_kl)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="paiton-build eval",
        description="Rates a text with a bundle: perplexity, and with --checkpoint the divergence from its source.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that paiton-build made")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text to rate")
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="what the bundle was built from: transformers computes it in float32 (needs the extra `dev`)",
    )
    parser.add_argument(
        "--tokens",
        type=_count,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"of the text's beginning, at most (default: {DEFAULT_TOKENS})",
    )
    parser.add_argument(
        "--window",
        type=_count,
        metavar="N",
        help=f"tokens that are rated together, each given those before it (default: {DEFAULT_WINDOW})",
    )
    parser.add_argument("--target", help="what to run on (default: as paiton-run chooses)")
    parser.add_argument("--max-perplexity", type=float, metavar="X", help="exit with 4 where it is higher")
    parser.add_argument(
        "--max-kl", type=float, metavar="X", help="exit with 4 where the mean KL divergence is higher, in nats"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _window(wanted: int | None, bundle: Bundle, prefix: int) -> int:
    context = bundle.manifest.model.max_model_len
    window = min(DEFAULT_WINDOW, context) if wanted is None else wanted
    least = max(2, prefix + 1)  # one token to begin with, one to rate
    if not least <= window <= context:
        raise UsageError(f"--window {window} is not within {least} .. {context}", hint="the model's context ends there")
    return window


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _shown(result: dict[str, object]) -> str:
    """Returns the result for people."""
    lines = [f"{result['rated_tokens']} tokens rated in windows of {result['window']} on {result['target']}"]
    lines.append(f"perplexity       {result['perplexity']:10.4f}")
    source, kl = result.get("source"), result.get("kl_divergence")
    if isinstance(source, dict) and isinstance(kl, dict):
        lines.append(f"of the source    {source['perplexity']:10.4f}   ratio {result['perplexity_ratio']:.5f}")
        lines.append(f"KL divergence    {kl['mean']:10.6f}   median {kl['median']:.6f}, 99 % {kl['p99']:.6f} (nats)")
        lines.append(f"same top token   {result['same_top_token']:10.2%}")
    return "\n".join(lines)


def _judge(measured: Measured, max_perplexity: float | None, max_kl: float | None) -> None:
    """Raises QualityError where a limit is exceeded; NaN exceeds any."""
    found = measured.as_json()
    ppl, kl = found["perplexity"], found.get("kl_divergence")
    if max_perplexity is not None and not (isinstance(ppl, float) and ppl <= max_perplexity):
        raise QualityError(
            f"the perplexity is {ppl:.4f}, above {max_perplexity:g}", hint="keep more bits of the weights"
        )
    if max_kl is not None:
        if not isinstance(kl, dict):
            raise UsageError("--max-kl needs something to compare with", hint="add --checkpoint MODEL")
        if not kl["mean"] <= max_kl:
            raise QualityError(
                f"the mean KL divergence is {kl['mean']:.6f}, above {max_kl:g}", hint="keep more bits of the weights"
            )


if __name__ == "__main__":
    sys.exit(eval_command(sys.argv[1:]))
