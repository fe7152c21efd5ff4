"""`paiton-run`: the command line of the runtime. Data goes to stdout; the ledger, remarks and errors to stderr."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from paiton_artifacts.command_line import CommandParser, run
from paiton_runtime.budget import DEFAULT_UTILIZATION
from paiton_runtime.commands.store_arguments import BUNDLE_HELP, add_cache, add_pull, bundle_argument, resolve_argument
from paiton_runtime.commands.trust_arguments import add_trust

SERVE = "serve"

_EPILOG = """examples:
  paiton-run generate smollm2.bundle "The capital of France is" --max-tokens 16
  echo "Why is the sky blue?" | paiton-run generate smollm2.bundle - --chat --temperature 0.7
  paiton-run chat smollm2.bundle
  paiton-run serve smollm2.bundle --port 8000
  paiton-run verify smollm2.bundle
  paiton-run serve s3://bucket/models/smollm2:v1 --trusted-key public.pem

exit codes: 0 done, 1 internal error, 2 usage, 3 unsupported, 4 verification failed, 5 store,
7 out of memory or disk, 75 another process did not end, 130/143 interrupted"""

_DEVICE_HELP = "GPU of each rank, counted among the visible ones"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run("paiton-run", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    args = _parse(argv)
    if args.command in ("inspect", "verify"):  # the others boot while it arrives
        resolve_argument(args)
    command = importlib.import_module(f"paiton_runtime.commands.{args.command}")
    code: int = command.run(args)
    sys.stdout.flush()  # here, so that a reader who has gone is noticed
    return code


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parses the arguments; PROMPT may also follow options, which argparse does not see in an optional positional."""
    if argv and argv[0] == SERVE:
        from paiton_runtime.commands.config_file import expand  # noqa: PLC0415  (of this command only)

        argv = [SERVE, *expand(argv[1:], ("--enable-prefix-caching", "--enable-log-requests"))]
    parser = _parser(argv)
    args, rest = parser.parse_known_args(argv)
    if rest[:1] == ["--"]:
        words = rest[1:]
    else:
        words = [word for word in rest if word == "-" or not word.startswith("-")]
        if len(words) < len(rest):
            words = []  # an unknown option
    if len(words) == 1 and getattr(args, "prompt", words) is None:
        args.prompt = words[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="paiton-run",
        description="Boots a bundle that paiton-build made, without compiling or profiling anything.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    generate = commands.add_parser("generate", help="continue a prompt", allow_abbrev=False)
    _add_bundle(generate)
    generate.add_argument("prompt", nargs="?", metavar="PROMPT", help="text, or - for standard input")
    generate.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the prompt from a UTF-8 file")
    generate.add_argument("--chat", action="store_true", help="wrap the prompt into the model's chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end, instead of streaming")
    _add_sampling(generate)
    _add_boot(generate)
    chat = commands.add_parser("chat", help="talk to the model, one line at a time", allow_abbrev=False)
    _add_bundle(chat)
    chat.add_argument("--system", metavar="TEXT", help="system message to begin with")
    _add_sampling(chat)
    _add_boot(chat)
    serve = commands.add_parser(
        SERVE,
        help="answer requests over HTTP, as OpenAI's API does",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if argv[:1] == [SERVE]:  # whose many arguments nobody else shall pay for
        from paiton_runtime.commands.serve_arguments import add_arguments  # noqa: PLC0415

        _add_bundle(serve)
        add_arguments(serve)
        _add_boot(serve)
    inspect = commands.add_parser("inspect", help="print what a bundle holds", allow_abbrev=False)
    _add_bundle(inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.add_argument("--tensors", action="store_true", help="list the tensors")
    inspect.add_argument("--plan", metavar="NAME", help="list the launches of a plan, such as forward-t1-r1")
    inspect.add_argument("--target", metavar="TARGET", help="whose plan (default: the first that has it)")
    inspect.add_argument("--profile", metavar="DEVICE", help="whose plan (default: the first that has it)")
    verify = commands.add_parser("verify", help="check every digest and every golden", allow_abbrev=False)
    _add_bundle(verify)
    _add_verify(verify)
    pull = commands.add_parser("pull", help="fetch a bundle from a store", allow_abbrev=False)
    add_pull(pull)
    add_trust(pull)
    cache = commands.add_parser("cache", help="list, shrink or check the bundles on this machine", allow_abbrev=False)
    add_cache(cache)
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=bundle_argument, metavar="BUNDLE", help=BUNDLE_HELP)
    add_trust(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="check goldens on this target, such as hip:gfx942 or cpu (default: all that this machine runs)",
    )
    parser.add_argument("--device", type=_ordinals, metavar="N[,N]", help=_DEVICE_HELP)
    parser.add_argument(
        "--check-capture",
        action="store_true",
        help="on GPUs: also compare what the driver captures of every plan with the graph that is made of it",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of the process (default: processors)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="tokens to generate (default: 256, or what the context leaves)",
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus, in (0, 1]")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="largest logits to draw from, 0 for all")
    group.add_argument("--seed", type=int, metavar="N", help="of the draws (default: a new one each time)")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end of sequence")


def _add_boot(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("boot")
    group.add_argument(
        "--target", metavar="TARGET", help="such as hip:gfx942 (default: a GPU that bundle and machine have, else cpu)"
    )
    group.add_argument("--device", type=_ordinals, metavar="N[,N]", help=_DEVICE_HELP)
    group.add_argument(
        "--executor",
        choices=("auto", "graph", "launch", "serial"),
        default="auto",
        help="on GPUs: replay graphs, launch kernel by kernel, or wait for each as well, which tells where one crashes"
        " (default: graphs unless the driver's are known bad)",
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=_share,
        default=DEFAULT_UTILIZATION,
        metavar="F",
        help=f"share of a GPU's memory that this process may use (default: {DEFAULT_UTILIZATION})",
    )
    group.add_argument(
        "--verify-weights",
        action="store_true",
        help="check the weights' digests, on GPUs on their way to the device (--require-signature implies it)",
    )
    group.add_argument(
        "--threads", type=_positive, metavar="N", help="threads, shared by the ranks (default: one per processor)"
    )
    group.add_argument("--cpu-level", metavar="LEVEL", help="instruction-set level (default: the best that runs here)")
    group.add_argument(
        "--kv-tokens",
        type=_positive,
        metavar="N",
        help="tokens in the KV cache (default: all requests at full context, within half of the free memory)",
    )
    group.add_argument("--pin", action="store_true", help="bind threads to processors")
    group.add_argument("--no-golden-check", action="store_true", help="do not reproduce recorded logits first")


def _positive(text: str) -> int:
    """Parses a count of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _ordinals(text: str) -> tuple[int, ...]:
    """Parses numbers of devices."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different device numbers, such as 0,1")
    return tuple(map(int, parts))


def _share(text: str) -> float:
    """Parses a share above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
