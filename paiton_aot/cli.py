"""`paiton-build`: the command line of the build."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from paiton_aot import __version__
from paiton_aot.options import CPU, LM_HEADS, PRECISIONS, WEIGHTS, BuildOptions
from paiton_artifacts.command_line import CommandParser, run
from paiton_artifacts.errors import UnsupportedTargetError, UsageError
from paiton_kernels.gpu.devices import PROFILES, TARGETS, profile_named

MAX_BATCHED_TOKENS = 1 << 16
MODEL_HELP = "Hugging Face directory or GGUF file, its URL (s3://bucket/llama), or ORG/NAME[@REVISION] on the hub"

_EPILOG = """examples:
  paiton-build SmolLM2-135M-Instruct.gguf -o smollm2.bundle
  paiton-build ./Llama-3.1-8B -o llama.bundle --tp 2 --lm-head int8
  paiton-build ./Llama-3.1-8B -o llama.bundle --target hip:gfx942 --target cuda:sm_90
  paiton-build HuggingFaceTB/SmolLM2-135M-Instruct@main -o smollm2.bundle      from the Hugging Face hub
  paiton-build s3://bucket/checkpoints/Llama-3.1-8B -o llama.bundle            read by ranges, from where it is
  paiton-build plan ./Llama-3.1-8B            sizes and kernels, without reading weights
  paiton-build plan ./Llama-3.1-405B --target hip:gfx942 --tp 8 --predict      config.json and index are enough
  paiton-build tune ./Llama-3.1-8B --target cuda:sm_90 -o h200.json    measures kernels on this machine's GPU
  paiton-build verify smollm2.bundle          every digest, every golden
  paiton-build eval smollm2.bundle --text wiki.txt --checkpoint SmolLM2-135M-Instruct.gguf
  paiton-build sign smollm2.bundle --key key.pem
  paiton-build push smollm2.bundle s3://bucket/models/smollm2:v1

exit codes: 0 done, 1 internal error, 2 usage, 3 unsupported, 4 verification failed, 5 store, 6 bad checkpoint,
7 out of disk, memory or a working compiler, 75 another build did not end, 130/143 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run("paiton-build", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    word = argv[0] if argv else ""
    if word == "verify":
        from paiton_runtime.cli import main as run_main  # noqa: PLC0415

        return run_main(argv)
    if word in ("push", "ls", "diff", "gc"):
        from paiton_aot.store_commands import run_command  # noqa: PLC0415  (a build does without)

        return run_command(word, argv[1:])
    if word == "sign":
        sign = _with_extra("build", lambda: importlib.import_module("paiton_aot.sign_command"))
        return int(sign.sign_command(argv[1:]))
    if word == "eval":
        evaluation = _with_extra("build", lambda: importlib.import_module("paiton_aot.eval_command"))
        return int(evaluation.eval_command(argv[1:]))
    if word == "tune":
        tune = _with_extra("gpu", lambda: importlib.import_module("paiton_aot.tune_command"))
        return int(tune.tune_command(argv[1:]))
    args = _parser().parse_args(argv[1:] if word == "plan" else argv)
    planning = args.plan_only or word == "plan"
    _check_output(args, planning=planning)
    options = _options(args)
    progress = _with_extra("build", lambda: importlib.import_module("paiton_aot.progress")).Progress(
        not args.quiet, events=args.progress == "json"
    )
    locate = _with_extra("build", lambda: importlib.import_module("paiton_aot.sources.locate"))
    with locate.located(args.model, progress) as model:
        args.model = model.path
        options = replace(options, origin=model.origin, hub_model=model.hub_model, commit=model.commit)
        return _act(args, options, progress, planning=planning)


def _act(args: argparse.Namespace, options: BuildOptions, progress: Any, *, planning: bool) -> int:  # noqa: ANN401 (needs an extra)
    """Plans, checks or builds a model that is at a path."""
    if args.cache is not None and not planning:
        return _cached(args, options, progress)
    report = _with_extra("build", lambda: importlib.import_module("paiton_aot.report"))
    build = importlib.import_module("paiton_aot.build")
    if options.targets:
        _with_extra("gpu", lambda: importlib.import_module("paiton_aot.targets.gpu.build"))
    if planning:
        rate = None if args.storage_gbps is None else args.storage_gbps * 1e9
        plan = report.plan(args.model, options, progress, predict=args.predict, storage_rate=rate)
        if args.cache is not None and plan.key is not None:
            command, request = _cache_request(args, options)
            plan = replace(plan, cache=command.look_up(request, plan.key, progress))
        print(json.dumps(plan.as_json(), indent=2) if args.json else plan.as_text())
        return 0
    if args.check:
        check = importlib.import_module("paiton_aot.check").check_reproduction(
            args.model, args.output, options, progress
        )
        if args.json:
            print(json.dumps(check.as_json(), indent=2))
        progress.event("checked", check.summary(), **check.as_json())
        return 0
    result = build.build(args.model, args.output, options, force=args.force, progress=progress)
    if args.json:
        print(json.dumps(report.built(result), indent=2))
    if not args.quiet and args.progress != "json":
        print(report.summary(result), file=sys.stderr)
    return 0


def _cached(args: argparse.Namespace, options: BuildOptions, progress: Any) -> int:  # noqa: ANN401 (needs an extra)
    """Builds through a cache."""
    command, request = _cache_request(args, options)
    outcome = command.cached_build(request, progress)
    if args.json:
        print(json.dumps(outcome.as_json(), indent=2))
    if not args.quiet and args.progress != "json":
        print(outcome.summary(), file=sys.stderr)
    return 0


def _cache_request(args: argparse.Namespace, options: BuildOptions) -> tuple[Any, Any]:
    """Returns the module `cache.command`, which needs an extra, and what it is to do."""
    from paiton_artifacts.trust.keys import load_trusted_keys  # noqa: PLC0415  (a build without a cache does without)
    from paiton_artifacts.trust.policy import Policy  # noqa: PLC0415

    command = _with_extra("build", lambda: importlib.import_module("paiton_aot.cache.command"))
    trusted = load_trusted_keys(args.trusted_key or ())
    # Without a key to go by, whoever may write to the cache is trusted.
    policy = Policy(trusted, require_signature=bool(trusted), allow_untrusted=not trusted)
    return command, command.Request(args.model, args.output, options, args.cache, args.force, args.lock_timeout, policy)


def _check_output(args: argparse.Namespace, *, planning: bool) -> None:
    """Refuses combinations of output, cache and check that have no meaning."""
    if args.check and (planning or args.cache is not None or args.output is None):
        raise UsageError(
            "--check compares with the bundle at -o, without a cache", hint="paiton-build MODEL -o BUNDLE --check"
        )
    if args.output is None and args.cache is None and not planning:
        raise UsageError("no output was named", hint="add -o BUNDLE")
    if args.trusted_key and args.cache is None:
        raise UsageError("--trusted-key is for what comes out of a --cache", hint="add --cache URL")
    if (args.predict or args.storage_gbps is not None) and not planning:
        raise UsageError("--predict and --storage-gbps go with a plan", hint="paiton-build plan MODEL --predict")
    if args.storage_gbps is not None and not (args.predict and 0 < args.storage_gbps < math.inf):
        raise UsageError(
            f"--storage-gbps {args.storage_gbps:g} goes with --predict and is above 0",
            hint="--predict --storage-gbps 25",
        )
    if args.lock_timeout < 0:
        raise UsageError(f"--lock-timeout {args.lock_timeout:g} is negative", hint="use 0 not to wait at all")


def _with_extra(extra: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Returns a module whose packages come with an extra.

    Raises:
        UsageError: they are not installed.
    """
    try:
        return load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("paiton_"):
            raise
        hint = f"pip install 'paiton-aot[{'build' if extra == 'build' else 'build,gpu'}]'"
        raise UsageError(f"paiton-build needs the Python package {error.name} for this", hint=hint) from error


def _options(args: argparse.Namespace) -> BuildOptions:
    targets = tuple(dict.fromkeys(target for target in args.target or () if target != CPU))
    for target in targets:
        if target not in TARGETS:
            known = ", ".join([CPU, *TARGETS])
            raise UnsupportedTargetError(f"--target {target} is unknown", hint=f"one of {known}")
    for name in args.profile or ():
        profile_named(name)
    for flag, value in (("--tp", args.tp), ("--max-num-seqs", args.max_num_seqs)):
        if not 1 <= value <= 1024:
            raise UsageError(f"{flag} {value} is out of range", hint="use 1 to 1024")
    tokens = args.max_num_batched_tokens
    if tokens is not None and not (1 <= tokens <= MAX_BATCHED_TOKENS and tokens.bit_count() == 1):
        raise UsageError(
            f"--max-num-batched-tokens {tokens} is no power of two", hint=f"use 1, 2, 4 ... {MAX_BATCHED_TOKENS}"
        )
    if args.candidates < 0:
        raise UsageError(f"--candidates {args.candidates} is negative", hint="use 0 for all")
    defaults = BuildOptions()
    return BuildOptions(
        targets=targets,
        profiles=tuple(args.profile or ()),
        tuning_tables=tuple(args.tuning_table or ()),
        candidates=args.candidates,
        tp=args.tp,
        weights=args.weights,
        lm_head=args.lm_head,
        act=args.act,
        kv=args.kv,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        name=args.name,
        cache_dir=args.cache_dir or defaults.cache_dir,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="paiton-build",
        usage="paiton-build [plan] MODEL -o BUNDLE [options]\n"
        "       paiton-build tune MODEL --target TARGET -o TABLE\n"
        "       paiton-build verify BUNDLE\n"
        "       paiton-build eval BUNDLE --text FILE\n"
        "       paiton-build sign BUNDLE --key FILE",
        description="Turns a checkpoint into a bundle that paiton-run boots without compiling or profiling anything.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="directory to create")
    parser.add_argument("--force", action="store_true", help="replace an existing output once the new one is complete")
    parser.add_argument("--plan-only", action="store_true", help="print sizes and kernels without reading weights")
    parser.add_argument(
        "--check", action="store_true", help="build again, with no caches, and compare every byte with the bundle at -o"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    parser.add_argument(
        "--progress",
        choices=("auto", "json"),
        default="auto",
        help="on stderr: bars on a terminal and lines elsewhere, or one JSON object a line (default: auto)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no summary")
    parser.add_argument("--name", help="model name to record (default: the checkpoint's)")
    parser.add_argument("--cache-dir", type=Path, help="where compiled kernels are kept (default: ~/.cache/paiton)")
    parser.add_argument("--version", action="version", version=f"paiton-build {__version__}")
    _add_shape(parser)
    _add_cache(parser)
    _add_tuning(parser)
    _add_prediction(parser)
    return parser


def _add_shape(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_argument_group("what the bundle holds")
    shape.add_argument(
        "--target", action="append", metavar="TARGET", help=f"besides cpu: one of {', '.join(TARGETS)}; repeatable"
    )
    shape.add_argument(
        "--profile",
        action="append",
        metavar="DEVICE",
        help=f"devices to plan for: {', '.join(PROFILES)}; repeatable (default: the usual one of each target)",
    )
    shape.add_argument("-tp", "--tp", type=int, default=1, help="tensor-parallel ranks (default: 1)")
    shape.add_argument("--weights", choices=WEIGHTS, help="storage of linear layers (default: fp8)")
    shape.add_argument(
        "--lm-head", choices=LM_HEADS, help="storage of the output head (default: the checkpoint's, else bf16)"
    )
    shape.add_argument("--act", choices=PRECISIONS, default="bf16", help="activations entering linear layers")
    shape.add_argument("--kv", choices=PRECISIONS, default="bf16", help="KV cache")
    shape.add_argument("--max-model-len", type=int, metavar="N", help="tokens of context (default: the model's)")
    shape.add_argument("--max-num-seqs", type=int, default=32, metavar="N", help="sequences in one step (default: 32)")
    shape.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens in one step, a power of two (default: 512 on the cpu, 2048 on GPUs)",
    )


def _add_cache(parser: argparse.ArgumentParser) -> None:
    cache = parser.add_argument_group("build cache")
    cache.add_argument(
        "--cache", metavar="DIR|URL", help="take the bundle from here if it was built before, else keep it here"
    )
    cache.add_argument(
        "--lock-timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long to wait for another build of the same thing (default: 3600)",
    )
    cache.add_argument(
        "--trusted-key",
        action="append",
        type=Path,
        metavar="FILE",
        help="take from a URL only what this public key (PEM) signed; repeatable (default: trust the cache)",
    )


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    predicting = parser.add_argument_group("predictions, with a plan")
    predicting.add_argument(
        "--predict", action="store_true", help="predict steps, latencies and a boot on each GPU target's devices"
    )
    predicting.add_argument(
        "--storage-gbps",
        type=float,
        metavar="GB/s",
        help="gigabytes per second at which a machine's storage delivers weights (default: the published runs', 6.3)",
    )


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    tuning = parser.add_argument_group("how GPU kernels are tuned")
    tuning.add_argument(
        "--tuning-table", action="append", type=Path, metavar="FILE", help="written by `paiton-build tune`; repeatable"
    )
    tuning.add_argument(
        "--candidates",
        type=int,
        default=0,
        metavar="N",
        help="configurations to compile and rank for a kernel that no table knows (default: 0, all)",
    )


if __name__ == "__main__":
    sys.exit(main())
