"""Soak: minutes of mixed load on our server, with clients that leave, break off or send nonsense.

Memory, KV blocks, open files and threads must be at the end what they were after a first, shorter load; no request may
hang, and the server must answer as it did at first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import WORK, parser, save, smollm2_bundle
from benchmarks.serve_client import Client, ClientError
from benchmarks.serve_scenarios import Prompts, seeded
from benchmarks.serve_servers import MODEL, Running, paiton
from benchmarks.serve_watch import memory_bytes, open_things, scrape

PROBE = "The Hatter opened his eyes very wide on hearing this, but all he said was"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
MEBIBYTE = 1 << 20
MORE = {"kv_usage": 0, "requests_running": 0, "requests_waiting": 0, "files": 0, "threads": 8}
"""By how much numbers may exceed what they were before. Pools start their threads, a few, when they are needed."""


class Soak:
    """Load from many clients at once.

    Args:
        client: of the server.
        texts: to make prompts of.
        seed: of the load.
        patience: seconds until a request counts as stuck.

    Attributes:
        counts: what happened, by kind and outcome.
        failures: what must not happen, in words.
    """

    def __init__(self, client: Client, texts: list[str], seed: int, patience: float) -> None:
        self.client = client
        self.patience = patience
        self.texts = texts
        self.draw = seeded(str(seed))
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.kinds: tuple[tuple[int, Callable[[], Awaitable[str]]], ...] = (
            (40, self._stream),
            (15, self._whole),
            (25, self._leave),
            (5, self._break_off),
            (15, self._nonsense),
        )

    async def load(self, seconds: float, clients: int) -> None:
        """Keeps so many clients busy for so long, then waits for the last of them."""
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._one_client(end))

    async def _one_client(self, end: float) -> None:
        weights, actions = zip(*self.kinds, strict=True)
        while time.perf_counter() < end:
            (action,) = self.draw.choices(actions, weights)
            name = action.__name__.strip("_")
            try:
                async with asyncio.timeout(self.patience):
                    outcome = await action()
            except TimeoutError:
                outcome = "stuck"
                self.failures.append(f"{name}: stuck for {self.patience:g} s")
            except (ClientError, OSError) as error:
                outcome = "failed"
                self.failures.append(f"{name}: {error!r}"[:500])
            self.counts[f"{name}: {outcome}"] += 1

    def _fields(self) -> dict[str, Any]:
        """Returns sampling of all kinds."""
        choices: tuple[dict[str, Any], ...] = (
            {"temperature": 0},
            {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": self.draw.randrange(2**32)},
            {"temperature": 1.2, "min_p": 0.05, "logprobs": 3},
            {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
            {"temperature": 0, "logit_bias": {"100": -100, "200": 5}, "priority": self.draw.randrange(3)},
        )
        return self.draw.choice(choices)

    def _request(self) -> tuple[str, int]:
        """Returns a prompt, some of them seen before, and how much to generate."""
        text = self.draw.choice(self.texts)
        return text[: self.draw.randrange(20, len(text))], self.draw.choice((1, 4, 16, 32, 64, 128))

    async def _stream(self) -> str:
        text, tokens = self._request()
        await self.client.complete(text, tokens, **self._fields())
        return "completed"

    async def _whole(self) -> str:
        text, tokens = self._request()
        fields: dict[str, Any] = {"model": MODEL, "max_tokens": tokens, **self._fields()}
        fields |= self.draw.choice(({}, {"n": 2}, {"stop": ["the", "."]}))
        if self.draw.random() < 0.5:
            reply = await self.client.post("/v1/completions", json.dumps({**fields, "prompt": text}).encode())
        else:
            fields = {name: value for name, value in fields.items() if name != "logprobs"}
            if self.draw.random() < 0.3:
                fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
            fields["messages"] = [{"role": "user", "content": text}]
            reply = await self.client.post("/v1/chat/completions", json.dumps(fields).encode())
        if reply.status != 200:
            raise ClientError(f"{reply.status}: {reply.body[:300]!r}")
        return "completed"

    async def _leave(self) -> str:
        """Closes the connection after some reads, before the answer is whole."""
        text, _ = self._request()
        body = self.client.body(text, 256, **self._fields())
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        await self._send_and_leave(head.encode() + body, self.draw.choice((0, 1, 2, 10, 30)))
        return "left"

    async def _break_off(self) -> str:
        """Closes the connection within the request."""
        body = self.client.body(*self._request())
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        whole = head + body
        await self._send_and_leave(whole[: self.draw.randrange(1, len(whole))], 0)
        return "left"

    async def _send_and_leave(self, request: bytes, reads: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.client.port)
        try:
            writer.write(request)
            await writer.drain()
            for _ in range(reads):
                if not await reader.read(1 << 16):
                    break
            await asyncio.sleep(self.draw.choice((0.0, 0.0, 0.05)))
        finally:
            writer.transport.abort()

    async def _nonsense(self) -> str:
        """Sends what must be refused."""
        bodies: tuple[bytes, ...] = (
            b"{",
            b"[]",
            b"\xff\xfe",
            self.client.body("x", 4, temperature="hot"),
            self.client.body("x", 4, model="another"),
            self.client.body("x", -1),
            self.client.body("word " * 20_000, 4),
            self.client.body("x", 4, top_p=0),
            self.client.body("x", 4, response_format={"type": "json_schema", "json_schema": {"schema": {"type": 7}}}),
            b'{"prompt": "' + b"a" * (10 * MEBIBYTE) + b'"}',
        )
        body = self.draw.choices(bodies, [8] * (len(bodies) - 1) + [1])[0]
        try:
            reply = await self.client.post("/v1/completions", body)
        except OSError:  # a server may close while a body that is too large is on its way
            if len(body) > MEBIBYTE:
                return "refused"
            raise
        if not 400 <= reply.status < 500 or "error" not in reply.json():
            raise ClientError(f"{reply.status} for {body[:100]!r}: {reply.body[:200]!r}")
        return "refused"


async def state(running: Running) -> dict[str, float]:
    """Returns what must come back to where it was."""
    group = running.process.pid
    metrics = await scrape(running.client)
    return {
        **memory_bytes(group),
        **open_things(group),
        "kv_usage": metrics["vllm:kv_cache_usage_perc"],
        "requests_running": metrics["vllm:num_requests_running"],
        "requests_waiting": metrics["vllm:num_requests_waiting"],
        "preemptions": metrics["vllm:num_preemptions_total"],
    }


async def settled(running: Running) -> dict[str, float]:
    """Returns the state of the idle server: once nothing runs, or after ten seconds."""
    for _ in range(20):
        await asyncio.sleep(0.5)
        now = await state(running)
        if not now["requests_running"] and not now["requests_waiting"]:
            break
    await asyncio.sleep(2.0)
    return await state(running)


async def watch(running: Running, seconds: float, samples: list[dict[str, float]]) -> None:
    """Appends the state every so many seconds, until it is cancelled."""
    start = time.perf_counter()
    while True:
        await asyncio.sleep(seconds)
        samples.append({"seconds": round(time.perf_counter() - start, 1), **await state(running)})


def verdict(before: dict[str, float], after: dict[str, float], allowance: float) -> list[str]:
    """Returns what did not come back."""
    found = [
        f"{name} was {before[name]:g} and is {after[name]:g}"
        for name, more in MORE.items()
        if after[name] > before[name] + more
    ]
    growth = (after["rss"] - before["rss"]) / MEBIBYTE
    if growth > allowance:
        found.append(f"memory grew by {growth:.1f} MiB")
    return found


async def run(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """Runs all of it and returns the report."""
    # A small KV cache: all of it is in use before memory is first looked at, and requests lose their blocks.
    server = paiton(bundle, options.threads, "--kv-tokens", str(options.kv_tokens), "--disable-log-requests")
    texts = Prompts(bundle / "tokenizer" / "tokenizer.json").make(400, 60, "soak")
    samples: list[dict[str, float]] = []
    with Running(server, WORK / "logs" / "soak.log") as running:
        await running.ready()
        answer = await running.client.complete(PROBE, 32)
        soak = Soak(running.client, texts, options.seed, options.patience)
        await soak.load(options.settle * 60, options.clients)
        before = await settled(running)
        watcher = asyncio.create_task(watch(running, max(options.minutes * 60 / 100, 1.0), samples))
        await soak.load(options.minutes * 60, options.clients)
        watcher.cancel()
        after = await settled(running)
        again = await running.client.complete(PROBE, 32)
    wrong = soak.failures[:50] + verdict(before, after, options.allowance)
    if again.text != answer.text:
        wrong.append("the answer to the same greedy request changed")
    return {
        "verdict": "failed" if wrong else "passed",
        "wrong": wrong,
        "minutes": options.minutes,
        "clients": options.clients,
        "requests": dict(sorted(soak.counts.items())),
        "before": before,
        "after": after,
        "samples": samples,
    }


def main() -> None:
    """Measures and reports; exits with 1 where something is wrong."""
    args = parser(__doc__ or "")
    args.add_argument("--minutes", type=float, default=30.0)
    args.add_argument("--settle", type=float, default=2.0, help="minutes of load before memory is first looked at")
    args.add_argument("--clients", type=int, default=24)
    args.add_argument("--patience", type=float, default=180.0, help="seconds until a request counts as stuck")
    args.add_argument("--threads", type=int, default=2, help="of the server")
    args.add_argument("--kv-tokens", type=int, default=4096, help="tokens in the server's KV cache")
    args.add_argument("--allowance", type=float, default=8.0, help="MiB that memory may have grown")
    args.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the load")
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    options = args.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives its benchmark
    report = uvloop.run(run(options, options.bundle or smollm2_bundle()))
    save("soak", {"seed": options.seed, **report})
    print(
        f"soak {report['verdict']}: {sum(report['requests'].values())} requests, {report['wrong'] or 'nothing wrong'}"
    )
    if report["wrong"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
