"""Serving over HTTP, beside llama.cpp's server and vLLM's CPU build: one client, servers in turn over several runs.

A run starts each server once, every time in another order, and runs every scenario there. The table has means over
runs, as is usual for it; everything else medians. A scenario that other work on the machine disturbed is run again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import serve_scenarios
from benchmarks.common import WORK, parser, save, smollm2_bundle, smollm2_hf
from benchmarks.peers import PeerError, add_peer_options, install, vllm_program
from benchmarks.serve_client import Client
from benchmarks.serve_report import Samples, means, medians, print_means, ratios, targets
from benchmarks.serve_scenarios import QUICK, Numbers, Prompts, Sizes
from benchmarks.serve_servers import Running, Server, llama, paiton, vllm
from benchmarks.serve_watch import CPUS, Watch, scrape, wait_until_quiet

SCENARIOS: dict[str, Callable[[Client, Prompts, Sizes, str], Awaitable[Numbers]]] = {
    "load": serve_scenarios.load,
    "arrivals": serve_scenarios.arrivals,
    "prefix": serve_scenarios.prefix,
    "invariance": serve_scenarios.invariance,
}
ATTEMPTS = 3


class Bench:
    """Runs scenarios on servers and keeps what they measured.

    Args:
        options: of the command line.
        prompts: for all scenarios.
    """

    def __init__(self, options: argparse.Namespace, prompts: Prompts) -> None:
        self.options = options
        self.prompts = prompts
        self.sizes = QUICK if options.quick else Sizes()
        self.samples: Samples = {}

    async def visit(self, server: Server, number: int) -> None:
        """Starts a server and runs all scenarios there."""
        await self._quiet()
        with Running(server, WORK / "logs" / f"{server.name}.log") as running:
            await running.ready()
            if server.boot_like is None:
                self._add(server.name, "start", {"first_token_seconds": running.boot_seconds})
            await serve_scenarios.closed_loop(running.client, [("Warm up.", 8)] * 8, 4)
            for name in self.options.scenarios:
                if name in SCENARIOS and not (name == "invariance" and number):
                    self._add(server.name, name, await self._measure(running, name, number))

    async def starts(self, server: Server) -> None:
        """Starts a server some times, for nothing but its first token."""
        for _ in range(self.options.starts):
            await self._quiet()
            with Running(server.boot_like or server, WORK / "logs" / f"{server.name}.start.log") as running:
                await running.ready()
            self._add(server.name, "start", {"first_token_seconds": running.boot_seconds})

    async def _measure(self, running: Running, name: str, number: int) -> Numbers:
        """Returns one run of a scenario: the least disturbed of as many as it takes, `ATTEMPTS` at most."""
        group = running.process.pid
        best: Numbers = {}
        for attempt in range(ATTEMPTS):
            await self._quiet(group)
            before = await scrape(running.client)
            with Watch(group) as watch:
                numbers = await SCENARIOS[name](running.client, self.prompts, self.sizes, f"{name} {number} {attempt}")
            numbers |= watch.shares | step_times(before, await scrape(running.client))
            if "output_tokens_per_second" in numbers:  # what a disturbance changes least
                numbers["output_tokens_per_cpu_second"] = numbers["output_tokens_per_second"] / (
                    watch.shares["server_cpu"] * CPUS
                )
            print(json.dumps({"server": running.server.name, "scenario": name, **numbers}), flush=True)
            if not best or numbers["others_cpu"] < best["others_cpu"]:
                best = numbers
            if best["others_cpu"] < self.options.disturbance:
                break
        return best

    async def _quiet(self, group: int = 0) -> None:
        """Waits for other work on the machine to end, for a while; what `group` does is no other work."""
        await wait_until_quiet(group, self.options.disturbance, self.options.patience)

    def _add(self, server: str, scenario: str, numbers: Numbers) -> None:
        """Keeps a measurement."""
        self.samples.setdefault(server, {}).setdefault(scenario, []).append(numbers)


def step_times(before: dict[str, float], after: dict[str, float]) -> Numbers:
    """Returns what /metrics tell of the steps between two scrapes; nothing where the server has no such metrics."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    steps = grown("paiton_step_gap_seconds_count")
    if not steps:
        return {}
    gap, busy = grown("paiton_step_gap_seconds_sum"), grown("paiton_step_seconds_sum")
    return {
        "steps": steps,
        "step_mean": busy / steps,
        "step_gap_mean": gap / steps,
        "step_gap_share": gap / (gap + busy),
    }


def vllm_bench(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """Returns what `vllm bench serve` reports of so many requests to our server."""
    program = vllm_program(options.peers)
    result = WORK / "logs" / "vllm-bench.json"
    with Running(paiton(bundle, options.threads), WORK / "logs" / "paiton.vllm-bench.log") as running:
        asyncio.run(running.ready())
        command = [str(program), "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"]
        command += ["--base-url", f"http://127.0.0.1:{running.client.port}", "--model", running.client.model]
        command += ["--tokenizer", str(smollm2_hf()), "--dataset-name", "random", "--random-input-len", "128"]
        command += ["--random-output-len", "32", "--ignore-eos", "--max-concurrency", "32"]
        command += ["--num-prompts", str(options.vllm_bench), "--save-result"]
        command += ["--result-dir", str(result.parent), "--result-filename", result.name]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        subprocess.run(command, check=True, env=environment)
    report: dict[str, Any] = json.loads(result.read_text())
    failed = options.vllm_bench - report["completed"]
    wanted = (
        "duration",
        "request_throughput",
        "output_throughput",
        "mean_ttft_ms",
        "p99_ttft_ms",
        "mean_itl_ms",
        "p99_itl_ms",
    )
    return {
        "requests": options.vllm_bench,
        "failed": failed,
        **{name: report[name] for name in wanted if name in report},
    }


def servers(options: argparse.Namespace, bundle: Path) -> tuple[list[Server], dict[str, str]]:
    """Returns the servers that were asked for, and why some of them are absent."""
    makers: dict[str, Callable[[], Server]] = {
        "paiton": lambda: paiton(bundle, options.threads),
        "llama": lambda: llama(options.peers, options.threads),
        "vllm": lambda: vllm(options.peers, options.threads),
    }
    found, absent = [], {}
    for name in options.servers:
        try:
            found.append(makers[name]())
        except PeerError as error:
            absent[name] = str(error)
    return found, absent


async def run(options: argparse.Namespace, bundle: Path, contenders: list[Server]) -> Bench:
    """Makes all runs."""
    bench = Bench(options, Prompts(bundle / "tokenizer" / "tokenizer.json"))
    for number in range(options.runs):
        shift = number % len(contenders)
        for server in contenders[shift:] + contenders[:shift]:
            if set(options.scenarios) & set(SCENARIOS):
                await bench.visit(server, number)
            if "start" in options.scenarios and server.name != "vllm":
                await bench.starts(server)
    return bench


def arguments() -> argparse.Namespace:
    """Returns the command line's options."""
    args = parser(__doc__ or "")
    args.add_argument("--servers", nargs="+", default=["paiton", "llama", "vllm"], choices=["paiton", "llama", "vllm"])
    args.add_argument("--scenarios", nargs="+", default=["start", *SCENARIOS], choices=["start", *SCENARIOS])
    args.add_argument("--runs", type=int, default=10, help="three of `--scenarios load` take ten minutes")
    args.add_argument(
        "--starts", type=int, default=3, help="additional starts a run; vLLM's take minutes, so it has none"
    )
    args.add_argument("--threads", type=int, default=2, help="of every server")
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    add_peer_options(args)
    args.add_argument(
        "--vllm-bench", type=int, default=0, metavar="REQUESTS", help="run only `vllm bench serve`, on ours"
    )
    args.add_argument("--disturbance", type=float, default=0.05, help="share of the processors that others may use")
    args.add_argument("--patience", type=float, default=60.0, help="seconds to wait for that before a scenario")
    args.add_argument("--quick", action="store_true", help="a few short requests, to see that everything works")
    options = args.parse_args()
    if options.quick:
        options.runs, options.starts, options.patience, options.disturbance = 1, 1, 0.0, 1.0
    return options


def main() -> None:
    """Measures and reports."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives its benchmark
    if options.install_peers:
        install(options.peers, [name for name in options.servers if name != "paiton"])
    bundle = options.bundle or smollm2_bundle()
    if options.vllm_bench:
        save("serve_vllm_bench", vllm_bench(options, bundle))
        return
    contenders, absent = servers(options, bundle)
    bench = uvloop.run(run(options, bundle, contenders))
    what = {server.name: server.what for server in contenders}
    middle = medians(bench.samples)
    report = {"threads": options.threads, "runs": options.runs, "servers": what, "absent": absent}
    report |= {"targets": targets(middle), "means": means(bench.samples), "medians": middle, "ratios": ratios(middle)}
    report["samples"] = bench.samples
    if options.quick:
        print(json.dumps(report, indent=2))
    else:
        save("serve", report)
    print_means(bench.samples, absent)


if __name__ == "__main__":
    main()
