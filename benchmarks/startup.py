"""Boot: process start to first token, warm page cache, golden check on; over HTTP beside peers' servers.

`generate` is timed from posix_spawn to the first byte on stdout. Servers are timed from the start of their process to
the first token of a streamed completion, asked for again and again from then on. vLLM, which takes a minute, starts
only as often as asked, with --enforce-eager: without compiling and capturing graphs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import WORK, our_environment, our_program, parser, save, smollm2_bundle
from benchmarks.comparison import OURS, Comparison, Numbers, compare, print_medians, print_table
from benchmarks.peers import add_peer_options, install, releases
from benchmarks.serve_servers import Running, Server, llama, paiton, vllm

PROMPT, PROMPT_TOKENS = "Why?", 32
"""SmolLM2's chat template adds a system message."""

FIRST = "first_token_seconds"
Ledger = list[dict[str, Any]]


def first_token(command: list[str]) -> float:
    """Returns seconds from posix_spawn to the first byte on the child's stdout."""
    reader, writer = os.pipe()
    devnull = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, devnull, 2), (os.POSIX_SPAWN_CLOSE, reader)]
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, our_environment(), file_actions=actions)
    os.close(writer)
    got = os.read(reader, 1)
    seconds = time.perf_counter() - start
    while os.read(reader, 1 << 16):
        pass
    os.close(reader)
    os.close(devnull)
    _, status = os.waitpid(child, 0)
    if not got or status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds


def run_command(bundle: Path, *flags: str) -> list[str]:
    """Returns the command line that answers the prompt."""
    return [*our_program(), "generate", str(bundle), PROMPT, "--chat", *flags]


def ledger_of(bundle: Path, *flags: str) -> Ledger:
    """Returns the stages of one boot, as `generate` tells them."""
    command = run_command(bundle, "--json", "--max-tokens", "4", *flags)
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=our_environment())
    detail = json.loads(shown.stdout)
    if detail["prompt_tokens"] != PROMPT_TOKENS:
        raise SystemExit(f"the prompt has {detail['prompt_tokens']} tokens, not {PROMPT_TOKENS}")
    ledger: Ledger = detail["ledger"]
    return ledger


def median_ledger(ledgers: list[Ledger]) -> Ledger:
    """Returns the stages with the medians of their starts, ends and lengths over several boots."""
    found = []
    for row in ledgers[0]:
        same = [next(other for other in ledger if other["stage"] == row["stage"]) for ledger in ledgers]
        lengths = [other["end"] - other["start"] for other in same]
        middle = {name: statistics.median(other[name] for other in same) for name in ("start", "end")}
        found.append({**row, **middle, "seconds": statistics.median(lengths)})
    return found


def http_start(server: Server, ledgers: list[Ledger] | None = None) -> Numbers:
    """Starts a server, waits for its first token, and ends it; `ledgers` gets the boot's stages, which ours tells."""

    async def answer(running: Running) -> None:
        await running.ready()
        if ledgers is not None:
            ledgers.append((await running.client.get("/boot")).json()["stages"])

    with Running(server.boot_like or server, WORK / "logs" / f"{server.name}.start.log") as running:
        uvloop.run(answer(running))
    return {FIRST: running.boot_seconds}


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=11)
    args.add_argument("--vllm-runs", type=int, default=0, help="starts of vLLM, a minute each")
    args.add_argument("--threads", type=int, default=2, help="of every server")
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    add_peer_options(args)
    options = args.parse_args()
    if options.install_peers:
        install(options.peers, ["llama", *(["vllm"] if options.vllm_runs else [])])
    bundle = options.bundle or smollm2_bundle()
    ledgers: list[Ledger] = []
    http_ledgers: list[Ledger] = []
    threads = ("--threads", str(options.threads))

    def generate() -> Numbers:
        ledgers.append(ledger_of(bundle, *threads))
        return {FIRST: first_token(run_command(bundle, "--max-tokens", "4", *threads))}

    contenders: dict[str, Callable[[], Numbers]] = {
        "generate": generate,
        OURS: lambda: http_start(paiton(bundle, options.threads), http_ledgers),
        "llama.cpp": lambda: http_start(llama(options.peers, options.threads)),
    }
    if options.vllm_runs:
        contenders["vllm"] = lambda: http_start(vllm(options.peers, options.threads, "--enforce-eager"))
    found = compare(contenders, options.runs, at_most={"vllm": options.vllm_runs})
    alone = Comparison({OURS: found.samples.pop("generate")})
    report: dict[str, Any] = {
        "prompt_tokens": PROMPT_TOKENS,
        "threads": options.threads,
        "versions": releases(options.peers),
        "generate": alone.as_json(),
        "ledger": median_ledger(ledgers),
        "http": found.as_json(),
        "http_ledger": median_ledger(http_ledgers),
    }
    save("startup", report)
    rows = [(row["stage"], row["start"], row["end"], row["seconds"]) for row in report["ledger"]]
    print_table(("stage", "start s", "end s", "seconds"), rows)
    print_medians(alone)
    print_medians(found)


if __name__ == "__main__":
    main()
