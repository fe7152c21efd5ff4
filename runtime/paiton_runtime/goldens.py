"""The golden check: the booted model reproduces logits that the builder recorded, judged teacher-forced."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_artifacts.errors import GoldenMismatchError, OutOfMemoryError
from paiton_artifacts.schema import Golden, GoldenStep
from paiton_runtime.model import Chunk, Model, StepResult

_HINT = "the bundle is damaged or this machine computes wrongly; run `paiton-run verify` on it"


def check_golden(model: Model, golden: Golden, name: str) -> int:
    """Runs a golden's prompt and feeds it the recorded tokens; returns the number of steps.

    Every recorded logit must be met within the golden's tolerance. The largest logit must be of the recorded token,
    unless the reference's own two largest lie within the tolerance: two correct orders of a sum may then differ.
    Ranks that exchange tokens instead of logits must agree on the token that the logits say.
    Uses KV blocks from 0 on, whatever they hold.

    Args:
        model: a model that serves no request yet.
        golden: prompt and steps.
        name: names the golden in messages.

    Raises:
        GoldenMismatchError: a logit or token differs; names golden, step, token and values.
        OutOfMemoryError: the KV cache is smaller than the golden.
    """
    length = len(golden.prompt) + len(golden.steps)
    blocks = range(-(-length // model.memory.kv_block_tokens))
    if len(blocks) > model.kv_blocks:
        capacity = model.kv_blocks * model.memory.kv_block_tokens
        raise OutOfMemoryError(
            f"{name} needs {length} tokens of KV cache, which holds {capacity}", hint=f"--kv-tokens {length} or more"
        )
    steps = 0
    start = 0
    pending: Sequence[int] = golden.prompt
    for index, step in enumerate(golden.steps):
        where = f"{name}, step {index}"
        result = feed(model, pending, start, blocks)
        _compare(result, step, golden.tolerance, where)
        agreed = model.exchange_tokens(len(result.sampled))
        if agreed not in (None, result.sampled):
            raise GoldenMismatchError(f"{where}: ranks agree on {agreed}, logits say {result.sampled}", hint=_HINT)
        steps += -(-len(pending) // model.memory.max_tokens)
        start += len(pending)
        pending = (step.token,)
    return steps


def feed(model: Model, tokens: Sequence[int], start: int, blocks: Sequence[int]) -> StepResult:
    """Runs tokens of one request in as many steps as they need; returns the last, which has logits after the last.

    Args:
        model: that they run on.
        tokens: at least one.
        start: position of the first.
        blocks: of the request.
    """
    size = model.memory.max_tokens
    last = (len(tokens) - 1) // size * size
    for at in range(0, last, size):
        model.step([Chunk(tokens[at : at + size], start + at, blocks, logits="none")])
    return model.step([Chunk(tokens[last:], start + last, blocks)])


def _compare(result: StepResult, step: GoldenStep, tolerance: float, where: str) -> None:
    logits = result.logits(0)
    for expected in step.top:
        value = logits[expected.token]
        if not abs(value - expected.logit) <= tolerance:  # NaN is no match
            raise GoldenMismatchError(
                f"{where}: logit of token {expected.token} is {value:.6g}, recorded is {expected.logit:.6g} "
                f"(tolerance {tolerance:.3g})",
                hint=_HINT,
            )
    best = step.top[0]
    margin = best.logit - step.top[1].logit if len(step.top) > 1 else float("inf")
    if result.sampled[0] != best.token and margin > tolerance:
        raise GoldenMismatchError(
            f"{where}: token {result.sampled[0]} wins, recorded is {best.token} (margin {margin:.3g})", hint=_HINT
        )
