"""The arguments of `paiton-run serve`: the names of `vllm serve` where they mean the same."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from paiton_artifacts.command_line import read_text
from paiton_artifacts.errors import UsageError
from paiton_runtime.commands.frozen_flags import add_frozen
from paiton_runtime.server.options import CorsOptions, ServeOptions, TlsOptions

EPILOG = """examples:
  paiton-run serve smollm2.bundle
  paiton-run serve smollm2.bundle --port 0 --api-key s3cret --served-model-name smollm2 default
  paiton-run serve smollm2.bundle --uds /run/paiton.sock --shutdown-timeout 60

The first SIGTERM or SIGINT lets the requests that run end (exit code 0), the second ends them (143 or 130)."""

_KEY_VARIABLES = ("PAITON_API_KEY", "VLLM_API_KEY")

_IGNORED = (
    "--async-scheduling",
    "--disable-frontend-multiprocessing",
    "--disable-log-stats",
    "--disable-uvicorn-access-log",
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-request-id-headers",
    "--enforce-eager",
    "--trust-remote-code",
)
"""Flags of `vllm serve` without a value that ask for what is so anyway, or for what does not exist here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds everything but the options of the boot, which other commands have as well."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="read options from a file: TOML where its name ends in .toml, else `name: value` lines as in vLLM's YAML;"
        " what the command line says counts more",
    )
    _add_network(parser)
    _add_model(parser)
    _add_engine(parser)
    _add_limits(parser)
    _add_log(parser)
    add_frozen(parser)
    for flag in _IGNORED:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--host",
        default="0.0.0.0",  # noqa: S104  (what users of `vllm serve` and of containers expect)
        metavar="ADDRESS",
        help="address to listen on (default: 0.0.0.0, every IPv4 address, as vLLM; :: is every address)",
    )
    group.add_argument("--port", type=_port, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    group.add_argument("--uds", type=Path, metavar="PATH", help="listen on a unix socket instead")
    group.add_argument(
        "--api-key",
        nargs="+",
        metavar="KEY",
        help="keys of which a request must bring one, except about the server's health"
        f" (default: ${' or $'.join(_KEY_VARIABLES)})",
    )
    group.add_argument("--root-path", default="", metavar="PATH", help="prefix that a proxy leaves in the path")
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="serve HTTPS with this certificate chain")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="its key (default: in the certificate's file)")
    group.add_argument("--ssl-ca-certs", type=Path, metavar="FILE", help="who signs the certificates of clients")
    group.add_argument(
        "--ssl-cert-reqs",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="certificates of clients: 0 none, 1 optional, 2 required (default: 0)",
    )
    for name, what in (("origins", "web pages"), ("methods", "HTTP methods"), ("headers", "HTTP headers")):
        default = () if name == "origins" else ("*",)
        group.add_argument(
            f"--allowed-{name}",
            type=_words,
            nargs="+",
            default=(default,),
            metavar="LIST",
            help=f"{what} that other origins may use (CORS), as a JSON list or with commas"
            f" (default: {'all' if default else 'none'})",
        )
    group.add_argument("--allow-credentials", action="store_true", help="other origins may send credentials (CORS)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--served-model-name",
        nargs="+",
        default=(),
        metavar="NAME",
        help="names that requests may use; answers say the first (default: the bundle's)",
    )
    group.add_argument("--chat-template", type=Path, metavar="FILE", help="in place of the bundle's")
    group.add_argument(
        "--tool-call-parser",
        choices=("auto", "hermes", "llama3_json", "none"),
        default="auto",
        help="how the model writes tool calls (default: auto, by its chat template)",
    )
    group.add_argument(
        "--generation-config",
        choices=("auto", "vllm"),
        default="auto",
        help="sampling of requests that leave it open: as the bundle's generation_config says, or as in vLLM without"
        " one (default: auto)",
    )
    group.add_argument("--seed", type=_count, metavar="N", help="of the requests that bring none (default: random)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    for flag, what in (
        ("--max-model-len", "tokens of context"),
        ("--max-num-seqs", "requests that run at once"),
        ("--max-num-batched-tokens", "tokens of one step"),
    ):
        group.add_argument(flag, type=_size, metavar="N", help=f"{what} (default and most: what the bundle holds)")
    group.add_argument(
        "--max-waiting", type=_size, default=1024, metavar="N", help="requests that may wait; then 429 (default: 1024)"
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute the common beginning of prompts once (default: yes)",
    )
    group.add_argument(
        "--step-timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="a step that takes longer ends the process with 1 (default: 60)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits, in seconds where nothing else is said")
    for flag, default, what in (
        ("--shutdown-timeout", 30.0, "for running requests after the first signal; 0 ends them at once"),
        ("--header-timeout", 10.0, "for the headers of a request"),
        ("--body-timeout", 30.0, "for its body"),
        ("--send-timeout", 60.0, "for a client to go on reading"),
    ):
        kind = _seconds_or_none if flag == "--shutdown-timeout" else _seconds
        group.add_argument(flag, type=kind, default=default, metavar="S", help=f"{what} (default: {default:g})")
    group.add_argument("--request-timeout", type=_seconds, metavar="S", help="for a whole answer (default: no limit)")
    group.add_argument(
        "--max-request-bytes", type=_size, default=4 << 20, metavar="N", help="size of a body (default: 4194304)"
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("log, on stderr")
    group.add_argument(
        "--enable-log-requests",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a line for each finished request (default: yes)",
    )
    group.add_argument("--disable-log-requests", dest="enable_log_requests", action="store_false", help="none")
    group.add_argument("--log-format", choices=("text", "json"), default="text", help="of the lines (default: text)")
    group.add_argument(
        "--otlp-traces-endpoint", metavar="URL", help="send a span of each request there (needs the extra `otel`)"
    )


def serve_options(args: argparse.Namespace) -> ServeOptions:
    """Returns the options of the server.

    Raises:
        UsageError: a file cannot be read, or options contradict each other.
    """
    keys = args.api_key or [value for name in _KEY_VARIABLES if (value := os.environ.get(name))][:1]
    if "" in keys:
        raise UsageError("an API key is empty", hint="leave --api-key away to let everybody in")
    return ServeOptions(
        host=args.host,
        port=args.port,
        uds=args.uds,
        tls=_tls(args),
        cors=CorsOptions(
            _flat(args.allowed_origins),
            _flat(args.allowed_methods),
            _flat(args.allowed_headers),
            args.allow_credentials,
        ),
        served_model_names=tuple(args.served_model_name),
        api_keys=tuple(keys),
        root_path=_root_path(args.root_path),
        chat_template=None if args.chat_template is None else read_text(args.chat_template, "--chat-template"),
        generation_config=args.generation_config,
        tool_call_parser=args.tool_call_parser,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_waiting=args.max_waiting,
        enable_prefix_caching=args.enable_prefix_caching,
        seed=args.seed,
        shutdown_timeout=args.shutdown_timeout,
        header_timeout=args.header_timeout,
        body_timeout=args.body_timeout,
        send_timeout=args.send_timeout,
        request_timeout=args.request_timeout,
        step_timeout=args.step_timeout,
        max_request_bytes=args.max_request_bytes,
        log_requests=args.enable_log_requests,
        log_format=args.log_format,
        otlp_traces_endpoint=args.otlp_traces_endpoint,
    )


def _flat(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Joins lists: one in JSON, as in vLLM, or a word for each, as in a file of options."""
    return tuple(word for words in lists for word in words)


def _tls(args: argparse.Namespace) -> TlsOptions | None:
    if args.ssl_certfile is None:
        if args.ssl_keyfile is not None or args.ssl_ca_certs is not None or args.ssl_cert_reqs:
            raise UsageError("--ssl-* options without a certificate", hint="add --ssl-certfile")
        return None
    if args.ssl_cert_reqs and args.ssl_ca_certs is None:
        raise UsageError("certificates of clients cannot be checked", hint="add --ssl-ca-certs")
    return TlsOptions(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs, args.ssl_cert_reqs)


def _root_path(text: str) -> str:
    root = text.rstrip("/")
    if root and not root.startswith("/"):
        raise UsageError(f"--root-path {text} does not begin with a slash", hint=f"--root-path /{root}")
    return root


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port within 0 .. 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number within 0 .. 2^64 - 1")
    return int(text)


def _size(text: str) -> int:
    """Parses a count of at least one; 4k is 4,000 and 4K is 4,096, as in vLLM (also m, M, g, G)."""
    factors = {"k": 1000, "m": 1000**2, "g": 1000**3, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, factor = (text[:-1], factors[text[-1]]) if text[-1:] in factors else (text, 1)
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(number) * factor


def _seconds(text: str) -> float:
    seconds = _seconds_or_none(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _seconds_or_none(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _words(text: str) -> tuple[str, ...]:
    """Parses a list: JSON as in vLLM, or words with commas."""
    try:
        value = json.loads(text) if text.startswith("[") else [word.strip() for word in text.split(",") if word.strip()]
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of words")
    return tuple(value)
