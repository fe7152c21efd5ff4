"""What the serving benchmark asks of every server, in the same words and order. Each scenario returns plain numbers."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.serve_client import Client, Completion

TEXT = ROOT / "tests" / "data" / "alice.txt"
Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: requests, and tokens of each."""

    concurrency: int = 32
    requests: int = 96
    prompt: int = 128
    output: tuple[int, int] = (64, 192)
    arrivals: int = 30
    arrivals_per_second: float = 1.0
    arrivals_output: int = 64
    long_prompt: int = 1500
    long_prompts: int = 5
    invariance: int = 32
    invariance_output: int = 64


QUICK = Sizes(4, 8, 32, (6, 10), 3, 10.0, 4, 200, 1, 4, 6)


def seeded(seed: str) -> random.Random:
    """Returns random numbers that are the same for every server."""
    return random.Random(seed)  # noqa: S311 (nothing here is secret)


class Prompts:
    """Makes prompts of real text with a given number of tokens, none of which begins like another.

    Args:
        tokenizer: the model's tokenizer.json.
    """

    def __init__(self, tokenizer: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 (not needed for --help)

        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.sentences = TEXT.read_text().replace("\n", " ").split(". ")

    def make(self, tokens: int, count: int, seed: str) -> list[str]:
        """Returns `count` prompts of `tokens` tokens; the same ones for the same seed."""
        draw = seeded(f"{seed} {tokens}")
        return [self._one(tokens, draw) for _ in range(count)]

    def _one(self, tokens: int, draw: random.Random) -> str:
        """Returns one: a page number, then sentences in random order, cut so that its tokens are `tokens`."""
        while True:
            parts = [f"Page {draw.randrange(10**9)}"]
            while sum(map(len, parts)) < 6 * tokens + 100:
                parts += draw.sample(self.sentences, len(self.sentences))
            ids = self.tokenizer.encode(". ".join(parts), add_special_tokens=False).ids[:tokens]
            text: str = self.tokenizer.decode(ids)
            if len(self.tokenizer.encode(text, add_special_tokens=False).ids) == tokens:
                return text


async def closed_loop(
    client: Client, work: Sequence[tuple[str, int]], concurrency: int, **fields: object
) -> list[Completion]:
    """Returns the completions of (prompt, tokens), in order, so many at a time: the end of one makes room."""
    completions: list[Completion | None] = [None] * len(work)

    async def worker(mine: Iterator[tuple[int, tuple[str, int]]]) -> None:
        for index, (prompt, tokens) in mine:
            completions[index] = await client.complete(prompt, tokens, **fields)

    shared = iter(enumerate(work))
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker(shared))
    return [completion for completion in completions if completion is not None]


def draw_work(prompts: Prompts, sizes: Sizes, seed: str) -> list[tuple[str, int]]:
    """Returns (prompt, tokens to generate) of a load; lengths differ, so that streams do not march in step."""
    draw = seeded(seed)
    return [(prompt, draw.randint(*sizes.output)) for prompt in prompts.make(sizes.prompt, sizes.requests, seed)]


async def load(client: Client, prompts: Prompts, sizes: Sizes, seed: str) -> Numbers:
    """Returns throughput and latencies at `sizes.concurrency` streams.

    `ttft_cold` is of the requests that found the server idle, all at once; `ttft_steady` of those that joined others.
    """
    work = draw_work(prompts, sizes, seed)
    start = time.perf_counter()
    completions = await closed_loop(client, work, sizes.concurrency)
    seconds = max(completion.ended for completion in completions) - start
    generated = sum(completion.completion_tokens for completion in completions)
    gaps = [gap for completion in completions for gap in completion.gaps]
    cold, steady = completions[: sizes.concurrency], completions[sizes.concurrency :]
    return {
        "requests_per_second": len(completions) / seconds,
        "output_tokens_per_second": generated / seconds,
        "total_tokens_per_second": (generated + sum(c.prompt_tokens for c in completions)) / seconds,
        **distribution("ttft_cold", [completion.first for completion in cold]),
        **distribution("ttft_steady", [completion.first for completion in steady]),
        **distribution("e2el", [completion.whole for completion in completions]),
        **distribution("itl", gaps),
        "tokens_per_event": generated / sum(len(completion.token_times) for completion in completions),
    }


async def arrivals(client: Client, prompts: Prompts, sizes: Sizes, seed: str) -> Numbers:
    """Returns latencies of requests that arrive independently of each other (a Poisson process)."""
    draw = seeded(seed)
    moment, times = 0.0, []
    for _ in range(sizes.arrivals):
        moment += draw.expovariate(sizes.arrivals_per_second)
        times.append(moment)
    texts = prompts.make(sizes.prompt, sizes.arrivals, seed)
    start = time.perf_counter()

    async def one(when: float, text: str) -> Completion:
        await asyncio.sleep(start + when - time.perf_counter())
        return await client.complete(text, sizes.arrivals_output)

    completions = await asyncio.gather(*(one(when, text) for when, text in zip(times, texts, strict=True)))
    return {
        **distribution("ttft", [completion.first for completion in completions]),
        **distribution("itl", [gap for completion in completions for gap in completion.gaps]),
        **distribution("e2el", [completion.whole for completion in completions]),
    }


async def prefix(client: Client, prompts: Prompts, sizes: Sizes, seed: str) -> Numbers:
    """Returns times to the first token of long prompts at first and again, one request at a time."""
    cold, again, cached = [], [], []
    for text in prompts.make(sizes.long_prompt, sizes.long_prompts, seed):
        cold.append((await client.complete(text, 2)).first)
        repeated = await client.complete(text, 2)
        again.append(repeated.first)
        cached.append(repeated.cached_tokens)
    ratio = statistics.median(second / first for first, second in zip(cold, again, strict=True))
    return {
        **distribution("ttft_cold", cold),
        **distribution("ttft_repeated", again),
        "repeated_over_cold": ratio,
        "cached_tokens": statistics.mean(cached),
    }


async def invariance(client: Client, prompts: Prompts, sizes: Sizes, seed: str) -> Numbers:
    """Returns how many greedy requests answer otherwise under load than alone: in their text, or in a bit of a logprob.

    Under load they run among each other and among as many requests that sample.
    """
    texts = prompts.make(sizes.prompt, sizes.invariance, seed)
    work = [(text, sizes.invariance_output) for text in texts]
    alone = await closed_loop(client, work, 1, logprobs=1)
    others = [(text, sizes.invariance_output) for text in prompts.make(sizes.prompt, sizes.invariance, seed + "others")]
    half = max(sizes.concurrency // 2, 1)
    loaded, _ = await asyncio.gather(
        closed_loop(client, work, half, logprobs=1),
        closed_loop(client, others, half, temperature=1.0, top_p=0.9),
    )
    pairs = list(zip(alone, loaded, strict=True))
    if not all(completion.logprobs for completion in alone):
        raise SystemExit("the server sent no logprobs")
    return {
        "requests": len(pairs),
        "texts_that_differ": sum(a.text != b.text for a, b in pairs),
        "logprobs_that_differ": sum(a.logprobs != b.logprobs for a, b in pairs),
    }


PERCENTILES = (0, 5, 10, 25, 50, 75, 90, 95, 99, 100)


def distribution(name: str, samples: Sequence[float]) -> Numbers:
    """Returns the mean of seconds, and percentiles of them."""
    ordered = sorted(samples) or [float("nan")]

    def percentile(share: int) -> float:
        at = share / 100 * (len(ordered) - 1)
        low = int(at)
        return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

    return {f"{name}_mean": statistics.fmean(ordered)} | {f"{name}_p{p}": percentile(p) for p in PERCENTILES}
