"""What the rows of logits of a step are for: a request's next token, or the rating of a token of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_runtime.batch import Chunk
from paiton_runtime.engine.request import Request
from paiton_runtime.engine.scheduler import Proposal


def needs_history(proposal: Proposal, request: Request) -> bool:
    """Returns whether the device's counts of a request's tokens are not there yet, or were those of rated rows."""
    rated = request.params.prompt_logprobs is not None and request.scheduled == request.prompt_tokens - 1
    return not request.unscored and (rated or request in proposal.joined)


def rows_of(proposal: Proposal, chunks: Sequence[Chunk]) -> tuple[dict[int, Request], dict[int, tuple[Request, int]]]:
    """Returns whose rows of logits a step has: those that are sampled, and those that rate a prompt's tokens."""
    sampled: dict[int, Request] = {}
    rated: dict[int, tuple[Request, int]] = {}
    row = 0
    for (request, _), chunk in zip(proposal.chunks, chunks, strict=True):
        if chunk.targets is None:
            sampled |= {row: request} if chunk.rows else {}
        else:
            rated |= {row + i: (request, chunk.start + i) for i in range(chunk.rows)}
        row += chunk.rows
    return sampled, rated
