"""Tokens per second of our engine, llama.cpp and transformers, without HTTP: each in a process of its own, once.

Ours runs steps of the booted model, greedy sampling included, and nothing above it: as llama-bench and
llama-batched-bench call llama_decode, and as a plain loop calls transformers. All contenders get prompts of the same
lengths, have their logits computed for the last position of each request only, and warm up before the clock starts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import ROOT, our_environment
from benchmarks.comparison import Numbers
from benchmarks.peers import PeerError, clean_environment, llama_model, llama_program
from benchmarks.serve_scenarios import TEXT

if TYPE_CHECKING:
    from paiton_runtime.engine.params import Update  # processes of other contenders do without


@dataclass(frozen=True, slots=True)
class Decode:
    """A batch that decodes: as many requests, each with so many tokens in and out."""

    batch: int
    tokens_in: int
    tokens_out: int

    @property
    def name(self) -> str:
        """In reports."""
        return f"batch_{self.batch}"


@dataclass(frozen=True, slots=True)
class Work:
    """What a process measures: batches that decode, and lengths of prompts."""

    threads: int
    decodes: tuple[Decode, ...] = ()
    prompts: tuple[int, ...] = ()

    def as_text(self) -> str:
        """Returns it for a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Work:
        """Returns what `as_text` wrote."""
        raw = json.loads(text)
        return cls(raw["threads"], tuple(Decode(**decode) for decode in raw["decodes"]), tuple(raw["prompts"]))


def prompt_name(tokens: int) -> str:
    """Returns how reports name a prompt's rate."""
    return f"prompt_{tokens}"


def paiton(bundle: Path, work: Work) -> Numbers:
    """Returns our rates in tokens per second."""
    return _child("ours", bundle, work, our_environment())


def paiton_engine(bundle: Path, work: Work) -> Numbers:
    """Returns our rates of decoding through the scheduler, as the server runs it."""
    return _child("engine", bundle, work, our_environment())


def transformers(model: Path, work: Work) -> Numbers:
    """Returns the rates of transformers in bf16."""
    return _child("transformers_bf16", model, work, {**os.environ, "OMP_NUM_THREADS": str(work.threads)})


def _child(contender: str, model: Path, work: Work, environment: dict[str, str]) -> Numbers:
    command = [sys.executable, "-m", "benchmarks.throughput", contender, str(model), work.as_text()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def llama(directory: Path, work: Work) -> Numbers:
    """Returns llama.cpp's rates, as its own benchmarks tell them.

    Raises:
        PeerError: it is not installed, or fails.
    """
    common = ["-m", str(llama_model(directory)), "-t", str(work.threads)]
    numbers: Numbers = {}
    for decode in work.decodes:
        context = decode.batch * (decode.tokens_in + decode.tokens_out)
        sizes = ["-npp", decode.tokens_in, "-ntg", decode.tokens_out, "-npl", decode.batch, "-c", context]
        command = [str(llama_program(directory, "llama-batched-bench")), *common, *map(str, sizes)]
        lines = _output([*command, "--output-format", "jsonl"]).splitlines()
        (result,) = (json.loads(line) for line in lines if line.startswith("{"))
        numbers[decode.name] = float(result["speed_tg"])
    if work.prompts:
        lengths = ",".join(map(str, work.prompts))
        command = [str(llama_program(directory, "llama-bench")), *common, "-p", lengths, "-n", "0", "-r", "1"]
        for test in json.loads(_output([*command, "-o", "json"])):
            numbers[prompt_name(test["n_prompt"])] = float(test["avg_ts"])
    return numbers


def _output(command: Sequence[str]) -> str:
    """Returns what a peer's program writes to stdout."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise PeerError(f"{Path(command[0]).name} failed with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout


def measure_ours(bundle: str, work: Work) -> Numbers:
    """Measures in this process."""
    from paiton_runtime.boot import BootOptions, boot  # noqa: PLC0415  (the other contender does without)
    from paiton_runtime.model import Chunk, Model  # noqa: PLC0415

    def prefill(model: Model, ids: Sequence[int], blocks: Sequence[int]) -> int:
        """Runs a prompt in the largest steps that there are; returns the token after it."""
        size = model.memory.max_tokens
        for start in range(0, len(ids) - size, size):
            model.step([Chunk(ids[start : start + size], start, blocks, "none")])
        rest = (len(ids) - 1) // size * size
        return model.step([Chunk(ids[rest:], rest, blocks)]).sampled[0]

    def decoded(model: Model, decode: Decode) -> float:
        width = -(-(decode.tokens_in + decode.tokens_out) // model.memory.kv_block_tokens)
        tables = [range(request * width, (request + 1) * width) for request in range(decode.batch)]
        last = [prefill(model, ids[: decode.tokens_in], table) for table in tables]
        start = time.perf_counter()
        for position in range(decode.tokens_in, decode.tokens_in + decode.tokens_out):
            chunks = [Chunk((token,), position, table) for token, table in zip(last, tables, strict=True)]
            last = model.step(chunks).sampled
        return decode.batch * decode.tokens_out / (time.perf_counter() - start)

    def prefilled(model: Model, tokens: int) -> float:
        table = range(-(-tokens // model.memory.kv_block_tokens))
        prefill(model, ids[:tokens], table)
        start = time.perf_counter()
        prefill(model, ids[:tokens], table)
        return tokens / (time.perf_counter() - start)

    ids = _token_ids(f"{bundle}/tokenizer/tokenizer.json", work)
    with boot(Path(bundle), BootOptions(threads=work.threads)) as model:
        numbers = {decode.name: decoded(model, decode) for decode in work.decodes}
        return numbers | {prompt_name(tokens): prefilled(model, tokens) for tokens in work.prompts}


def measure_engine(bundle: str, work: Work) -> Numbers:
    """Measures in this process: tokens that come while all requests of a batch decode."""
    from paiton_runtime.boot import BootOptions, boot  # noqa: PLC0415  (the other contender does without)
    from paiton_runtime.engine.engine import Engine  # noqa: PLC0415
    from paiton_runtime.engine.params import SamplingParams  # noqa: PLC0415

    def decoded(engine: Engine, decode: Decode) -> float:
        times: list[list[float]] = [[] for _ in range(decode.batch)]
        ended = threading.Semaphore(0)

        def deliver(update: Update, mine: list[float]) -> None:
            mine.extend([time.perf_counter()] * len(update.tokens))
            if update.finish_reason is not None:
                ended.release()

        params = SamplingParams(max_tokens=decode.tokens_out, temperature=0.0, ignore_eos=True)
        for number, mine in enumerate(times):
            take = functools.partial(deliver, mine=mine)
            engine.submit(ids[: decode.tokens_in], params, take, request_id=f"{decode.name} {number}")
        for _ in times:
            ended.acquire()
        start, end = max(mine[0] for mine in times), min(mine[-1] for mine in times)
        return sum(start < moment <= end for mine in times for moment in mine) / (end - start)

    ids = _token_ids(f"{bundle}/tokenizer/tokenizer.json", work)
    with boot(Path(bundle), BootOptions(threads=work.threads)) as model:
        engine = Engine(model)
        try:
            return {decode.name: decoded(engine, decode) for decode in work.decodes}
        finally:
            engine.stop()


def measure_transformers(folder: str, work: Work) -> Numbers:
    """Measures in this process."""
    import torch  # noqa: PLC0415  (heavy, and the other contender does without)
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.set_num_threads(work.threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor([_token_ids(f"{folder}/tokenizer.json", work)])

    def decoded(decode: Decode) -> float:
        prompts = ids[:, : decode.tokens_in].expand(decode.batch, -1)
        out = model(prompts, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(decode.tokens_out):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return decode.batch * decode.tokens_out / (time.perf_counter() - start)

    def prefilled(tokens: int) -> float:
        model(ids[:, :tokens], use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        model(ids[:, :tokens], use_cache=True, logits_to_keep=1)
        return tokens / (time.perf_counter() - start)

    with torch.inference_mode():
        model(ids[:, :8])  # first use builds oneDNN's kernels
        numbers = {decode.name: decoded(decode) for decode in work.decodes}
        return numbers | {prompt_name(tokens): prefilled(tokens) for tokens in work.prompts}


def _token_ids(tokenizer: str, work: Work) -> list[int]:
    """Returns tokens of real text, as many as the longest prompt."""
    from tokenizers import Tokenizer  # noqa: PLC0415  (the parent process does without)

    longest = max([*work.prompts, *(decode.tokens_in for decode in work.decodes)])
    ids: list[int] = Tokenizer.from_file(tokenizer).encode(TEXT.read_text(), add_special_tokens=False).ids
    if len(ids) < longest:
        raise SystemExit(f"{TEXT.name} has {len(ids)} tokens, fewer than {longest}")
    return ids[:longest]


def main() -> None:
    """Measures one contender and prints its rates."""
    contender, model, work = sys.argv[1:]
    contenders = {"ours": measure_ours, "engine": measure_engine, "transformers_bf16": measure_transformers}
    measure = contenders[contender]
    print(json.dumps(measure(model, Work.from_text(work))))


if __name__ == "__main__":
    main()
