"""Log-probabilities in the two forms of OpenAI's interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from paiton_runtime.engine.params import TokenLogprobs
from paiton_runtime.server.openai.output import Delta
from paiton_runtime.text import TextCodec

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have, as in OpenAI's own answers."""


def chat_logprobs(codec: TextCodec, deltas: Iterable[Delta], top: int) -> dict[str, Any]:
    """Returns the `logprobs` of a chat's choice.

    Args:
        codec: of the tokens.
        deltas: whose tokens to report.
        top: of how many of the best tokens at each position.
    """
    content = [
        {
            **_chat_token(codec, token, report.logprob),
            "top_logprobs": [_chat_token(codec, other, logprob) for other, logprob in report.top[:top]],
        }
        for delta in deltas
        for token, report in zip(delta.tokens, delta.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def _chat_token(codec: TextCodec, token: int, logprob: float) -> dict[str, Any]:
    spelled = codec.token_bytes(token)
    return {"token": _name(spelled, ""), "logprob": max(logprob, LOWEST), "bytes": list(spelled)}


def completion_logprobs(codec: TextCodec, deltas: Iterable[Delta], top: int, offset: int) -> dict[str, Any]:
    """Returns the `logprobs` of a completion's choice.

    Args:
        codec: of the tokens.
        deltas: whose tokens to report.
        top: of how many of the best tokens at each position, besides the one that was taken.
        offset: of the answer within the text, in characters.
    """
    tokens: list[str] = []
    token_logprobs: list[float] = []
    best: list[dict[str, float]] = []
    offsets: list[int] = []
    for delta in deltas:
        for token, report, at in zip(delta.tokens, delta.logprobs, delta.offsets, strict=True):
            name = _name(codec.token_bytes(token), "bytes:")
            tokens.append(name)
            token_logprobs.append(max(report.logprob, LOWEST))
            others = {
                _name(codec.token_bytes(other), "bytes:"): max(value, LOWEST) for other, value in report.top[:top]
            }
            best.append({**others, name: token_logprobs[-1]})
            offsets.append(offset + at)
    return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": best, "text_offset": offsets}


def echoed_logprobs(
    codec: TextCodec, prompt: Sequence[int], rated: Sequence[TokenLogprobs], top: int, offsets: Sequence[int]
) -> dict[str, Any]:
    """Returns the `logprobs` of a prompt in a completion's choice; its first token has none.

    Args:
        codec: of the tokens.
        prompt: its token ids.
        rated: of each but the first.
        top: of how many of the best tokens at each position, besides the prompt's own.
        offsets: of each token within the text, in characters.
    """
    rest = completion_logprobs(codec, [Delta("", prompt[1:], rated, offsets[1:])], top, 0)
    first = {"tokens": _name(codec.token_bytes(prompt[0]), "bytes:"), "text_offset": offsets[0]}
    return {name: [first.get(name), *values] for name, values in rest.items()}


def prompt_logprobs(
    codec: TextCodec, prompt: Sequence[int], rated: Sequence[TokenLogprobs], top: int
) -> list[dict[str, Any] | None]:
    """Returns vLLM's field of this name: for each token a map from token id to its report; the first one has none."""
    shown: list[dict[str, Any] | None] = [None]
    for token, report in zip(prompt[1:], rated, strict=True):
        ranked = [(token, report.logprob, report.rank)]
        ranked += [(other, value, i + 1) for i, (other, value) in enumerate(report.top[:top]) if other != token]
        shown.append(
            {
                str(other): {
                    "logprob": max(value, LOWEST),
                    "rank": rank,
                    "decoded_token": _name(codec.token_bytes(other), "bytes:"),
                }
                for other, value, rank in ranked
            }
        )
    return shown


def _name(spelled: bytes, prefix: str) -> str:
    """Returns a token as text; one that is a part of a character as its bytes, as OpenAI's interface shows them."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in spelled)
