"""Serving over HTTP, beside llama.cpp's server and vLLM's CPU build: one client, one run, servers in turn over rounds.

A round starts each server once, at the first of them in another order, and runs every scenario there. Reported are
medians over rounds. A scenario that other work on the machine disturbed is run again.
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
from benchmarks.serve_client import Client
from benchmarks.serve_report import Samples, medians, print_table, ratios, targets
from benchmarks.serve_scenarios import QUICK, Numbers, Prompts, Sizes
from benchmarks.serve_servers import PEERS, Running, Server, install, llama, paiton, vllm, vllm_program
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


def servers(options: argparse.Namespace, bundle: Path) -> list[Server]:
    """Returns the servers that were asked for."""
    makers: dict[str, Callable[[], Server]] = {
        "paiton": lambda: paiton(bundle, options.threads),
        "llama": lambda: llama(options.peers, options.threads),
        "vllm": lambda: vllm(options.peers, options.threads),
    }
    return [makers[name]() for name in options.servers]


async def run(options: argparse.Namespace, bundle: Path) -> Bench:
    """Runs all rounds."""
    bench = Bench(options, Prompts(bundle / "tokenizer" / "tokenizer.json"))
    contenders = servers(options, bundle)
    for number in range(options.rounds):
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
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument(
        "--starts", type=int, default=3, help="additional starts a round; vLLM's take minutes, so it has none"
    )
    args.add_argument("--threads", type=int, default=2, help="of every server")
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    args.add_argument(
        "--peers", type=Path, default=PEERS, help="virtual environments `llama` and `vllm`; PAITON_BENCH_PEERS"
    )
    args.add_argument("--install", action="store_true", help="make those virtual environments first")
    args.add_argument(
        "--vllm-bench", type=int, default=0, metavar="REQUESTS", help="run only `vllm bench serve`, on ours"
    )
    args.add_argument("--disturbance", type=float, default=0.05, help="share of the processors that others may use")
    args.add_argument("--patience", type=float, default=60.0, help="seconds to wait for that before a scenario")
    args.add_argument("--quick", action="store_true", help="a few short requests, to see that everything works")
    options = args.parse_args()
    if options.quick:
        options.rounds, options.starts, options.patience, options.disturbance = 1, 1, 0.0, 1.0
    return options


def main() -> None:
    """Measures and reports."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives its benchmark
    if options.install:
        install(options.peers, [name for name in options.servers if name != "paiton"])
    bundle = options.bundle or smollm2_bundle()
    if options.vllm_bench:
        save("serve_vllm_bench", vllm_bench(options, bundle))
        return
    bench = uvloop.run(run(options, bundle))
    what = {server.name: server.what for server in servers(options, bundle)}
    middle = medians(bench.samples)
    report = {"threads": options.threads, "rounds": options.rounds, "servers": what, "targets": targets(middle)}
    report |= {"medians": middle, "ratios": ratios(middle), "samples": bench.samples}
    if options.quick:
        print(json.dumps(report, indent=2))
    else:
        save("serve", report)
    print_table(middle)


if __name__ == "__main__":
    main()
