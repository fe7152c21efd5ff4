"""The command `paiton-build tune`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import lower
from paiton_aot.options import LM_HEADS, PRECISIONS, WEIGHTS, BuildOptions
from paiton_aot.progress import Progress
from paiton_aot.sources.locate import located
from paiton_aot.targets.gpu.build import gpu_shape
from paiton_aot.targets.gpu.plans import draft_chains, tuning_requests
from paiton_aot.tune import TuneResult, tune
from paiton_aot.tune_bench import Protocol, opened, profile_of
from paiton_artifacts.command_line import CommandParser
from paiton_artifacts.errors import UsageError
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, TARGETS, Target, profile_named, target_named
from paiton_kernels.gpu.families import FAMILIES
from paiton_kernels.gpu.spec import Step
from paiton_kernels.gpu.tuning import Request, record_table

_SHAPES_HINT = "a list of objects: family, constants, tokens, requests, and context if it matters"

_EPILOG = """examples:
  paiton-build tune ./Llama-3.1-8B --target cuda:sm_90 -o h200.json
  paiton-build tune ./Llama-3.1-8B --target hip:gfx942 --static -o mi300x.json    without a device
  paiton-build tune ./Llama-3.1-405B-FP8-KV --target hip:gfx942 --tp 8 --act fp8 --kv fp8 --static -o mi300x.json
  paiton-build tune --shapes shapes.json --target hip:gfx942 --profile mi300x -o mi300x.json
  paiton-build ./Llama-3.1-8B --target cuda:sm_90 --tuning-table h200.json -o llama.bundle

A file of shapes is a JSON list of objects:
  {"family": "norm", "constants": {"HIDDEN": 4096, ...}, "tokens": 64, "requests": 32, "context": 4096}"""


def tune_command(argv: Sequence[str]) -> int:
    """Runs `paiton-build tune` with the words after `tune`, and returns its exit code.

    Raises:
        PaitonError: see `paiton_aot.tune.tune` and `paiton_aot.tune_bench.opened`.
    """
    args = _parser().parse_args(argv)
    if (args.model is None) == (args.shapes is None):
        raise UsageError("tune takes either a model or --shapes", hint="paiton-build tune --help")
    if args.repeats < 1 or args.warm_up < 0 or args.candidates < 0:
        raise UsageError("--repeats must be at least 1, --warm-up and --candidates at least 0")
    target = target_named(args.target)
    if args.profile is not None:
        profile_named(args.profile)  # a wrong name needs no device to be found
    options = _options(args)
    if args.shapes:
        requests = read_requests(args.shapes)
    else:
        with located(args.model, Progress(not args.quiet)) as model:
            requests = model_requests(model.path, options)
    if args.static:
        return _rank(args, target, requests, options.cache_dir)
    with opened(target, args.device) as bench:
        profile = profile_of(bench.device, args.profile)
        with Progress(not args.quiet).bar(f"tune {profile.name}", len(requests), "kernel") as advance:
            result = tune(
                requests,
                bench,
                target,
                profile,
                args.output,
                options.cache_dir,
                Protocol(warm_up=args.warm_up, repeats=args.repeats),
                args.candidates,
                resume=args.resume,
                advance=advance,
            )
    if not args.quiet:
        sys.stderr.write(summary(result, args.output))
    return 0


def _rank(args: argparse.Namespace, target: Target, requests: Sequence[Request], cache_dir: Path) -> int:
    """Writes what static ranking chooses, for which no device is needed."""
    profile = profile_named(args.profile or DEFAULT_PROFILES[target.name])
    if profile.target != target.name:
        raise UsageError(f"--profile {profile.name} is a device of {profile.target}, not of {target.name}")
    with Progress(not args.quiet).bar(f"rank {profile.name}", len(requests), "kernel") as advance:
        table = record_table(args.output, requests, target, profile, cache_dir, args.candidates, advance)
    if not args.quiet:
        sys.stderr.write(f"{args.output}: {len(table.entries)} entries\n")
    return 0


def model_requests(model: Path, options: BuildOptions) -> list[Request]:
    """Returns what the plans of a model need, from its headers alone, or from its outline."""
    with open_checkpoint(model, outline=True) as checkpoint:
        lowered = lower(checkpoint, options)
    return tuning_requests(draft_chains(lowered.program, lowered.tensors, gpu_shape(lowered, options)))


def read_requests(path: Path) -> list[Request]:
    """Returns the requests that a JSON file lists.

    Raises:
        UsageError: the file is unreadable or says something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"shapes {path} cannot be read: {error}", hint=_SHAPES_HINT) from error
    if not isinstance(document, list) or not document:
        raise UsageError(f"shapes {path} lists nothing", hint=_SHAPES_HINT)
    return [_request(item, f"shapes {path}, entry {index}") for index, item in enumerate(document)]


def _request(item: Any, where: str) -> Request:  # noqa: ANN401 (parsed JSON)
    fields = {"family", "constants", "tokens", "requests"}
    if not isinstance(item, dict) or not fields <= item.keys() <= fields | {"context"}:
        raise UsageError(f"{where} does not have the fields {', '.join(sorted(fields))}", hint=_SHAPES_HINT)
    spec = FAMILIES.get(item["family"]) if isinstance(item["family"], str) else None
    if spec is None:
        raise UsageError(f"{where}: kernel {item['family']!r} is unknown", hint=f"one of {', '.join(FAMILIES)}")
    constants = item["constants"]
    if not isinstance(constants, dict) or spec.full(constants).keys() != set(spec.constants):
        raise UsageError(f"{where}: kernel {spec.family} has the constants {', '.join(spec.constants)}")
    sizes = {name: item[name] for name in ("tokens", "requests", "context") if name in item}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{where}: {name} is {value!r}, not a number above 0")
    return Request(spec, tuple(spec.full(constants).items()), Step(**sizes))


def summary(result: TuneResult, output: Path) -> str:
    """Returns what was measured, for the terminal."""
    lines = [f"{'kernel':48} {'bucket':>10} {'us':>10}  configurations"]
    for made in result.measured:
        name = f"{made.request.spec.family} {made.request.shape}"
        skipped = f", {len(made.skipped)} refused" if made.skipped else ""
        lines.append(f"{name:48} {made.bucket:>10} {made.entry.microseconds:10.1f}  {made.measured}{skipped}")
    if result.unmeasured:
        lines.append(f"left to static ranking: {', '.join(sorted(result.unmeasured))}")
    lines.append(f"{output}: {len(result.table.entries)} entries")
    return "\n".join(lines) + "\n"


def _options(args: argparse.Namespace) -> BuildOptions:
    names = ("tp", "weights", "lm_head", "act", "kv", "max_model_len", "max_num_seqs", "max_num_batched_tokens")
    given = {name: getattr(args, name) for name in names}
    return BuildOptions(targets=(args.target,), **({"cache_dir": args.cache_dir} if args.cache_dir else {}), **given)


def _parser() -> argparse.ArgumentParser:
    defaults = Protocol()
    parser = CommandParser(
        prog="paiton-build tune",
        usage="paiton-build tune [MODEL | --shapes FILE] --target TARGET -o TABLE [options]",
        description="Measures kernel configurations on a device of this machine, for use with --tuning-table.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="Hugging Face directory or GGUF file, its URL, or ORG/NAME"
    )
    parser.add_argument(
        "--shapes", type=Path, metavar="FILE", help="kernels to measure, as JSON, in place of a model's"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="TABLE", required=True, help="table to write or to add to")
    parser.add_argument("--target", metavar="TARGET", required=True, help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--profile", metavar="DEVICE", help="what the device is called (default: found by its size)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="which device of this machine (default: 0)")
    parser.add_argument(
        "--static", action="store_true", help="measure nothing: rank what the compiler makes of the configurations"
    )
    parser.add_argument("--resume", action="store_true", help="keep the entries that the table has already")
    parser.add_argument(
        "--candidates", type=int, default=0, metavar="N", help="configurations to try (default: 0, all)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=defaults.warm_up, metavar="N", help="runs before those that count"
    )
    parser.add_argument(
        "--repeats", type=int, default=defaults.repeats, metavar="N", help="runs, of which the median counts"
    )
    parser.add_argument("--cache-dir", type=Path, help="where compiled kernels are kept (default: ~/.cache/paiton)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no summary")
    shape = parser.add_argument_group("what the bundle will hold, as for the build")
    shape.add_argument("-tp", "--tp", type=int, default=1, help="tensor-parallel ranks, one of which is tuned for")
    shape.add_argument("--weights", choices=WEIGHTS)
    shape.add_argument("--lm-head", choices=LM_HEADS)
    shape.add_argument("--act", choices=PRECISIONS, default="bf16")
    shape.add_argument("--kv", choices=PRECISIONS, default="bf16")
    shape.add_argument("--max-model-len", type=int, metavar="N")
    shape.add_argument("--max-num-seqs", type=int, default=32, metavar="N")
    shape.add_argument("--max-num-batched-tokens", type=int, metavar="N")
    return parser
