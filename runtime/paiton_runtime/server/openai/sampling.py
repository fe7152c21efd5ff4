"""From a request's fields to how its tokens are drawn, and to the grammar that they follow."""

from __future__ import annotations

import json
from typing import TypeVar

from paiton_artifacts.errors import UsageError
from paiton_runtime.engine.params import SamplingParams
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.grammar import Grammar, json_text
from paiton_runtime.server.openai.requests import GenerationRequest
from paiton_runtime.server.openai.serving import Serving

_MOST_DIGITS = 10
_N = TypeVar("_N", int, float)

ANY_OBJECT = '{"type":"object"}'


def sampling_params(
    serving: Serving,
    body: GenerationRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> tuple[SamplingParams, ...]:
    """Returns how the tokens of each of the `n` answers are drawn; they differ by their seeds only.

    What the request leaves open is as the model's makers recommend, where the bundle knows, as in vLLM.

    Raises:
        ApiError: 400: a token does not exist, or values contradict each other.
    """
    seed = serving.seed if body.seed is None else body.seed
    bias = [(_token(name), number) for name, number in (body.logit_bias or {}).items()]
    advised = serving.sampling_defaults
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            temperature=_first(body.temperature, advised.temperature, 1.0),
            top_k=max(0, _first(body.top_k, advised.top_k, 0)),
            top_p=_first(body.top_p, advised.top_p, 1.0),
            min_p=_first(body.min_p, advised.min_p, 0.0),
            repetition_penalty=_first(body.repetition_penalty, advised.repetition_penalty, 1.0),
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            seed=None if seed is None else (seed + i) % 2**64,
            logit_bias=tuple(bias),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=body.ignore_eos,
        )
        for i in range(body.n)
    ]
    try:
        params[0].check(serving.vocab_size)
    except UsageError as error:
        raise ApiError(400, error.message, code="invalid_value") from error
    return tuple(params)


def _first(given: _N | None, advised: _N | None, default: _N) -> _N:
    """Returns the first that there is."""
    return given if given is not None else default if advised is None else advised


def _token(name: str) -> int:
    if not (name.isdecimal() and len(name) <= _MOST_DIGITS):
        text = f"logit_bias has the name {name[:100]!r}, which is no token id"
        raise ApiError(400, text, param="logit_bias", code="invalid_value")
    return int(name)


def check_prompt_logprobs(body: GenerationRequest) -> None:
    """Raises ApiError 400 where a stream is to show them: as in vLLM, only whole answers do."""
    if body.stream and body.prompt_logprobs is not None:
        text = "prompt_logprobs are part of whole answers only: leave stream away, or use echo and logprobs"
        raise ApiError(400, text, param="prompt_logprobs", code="unsupported_parameter")


def wanted_grammar(body: GenerationRequest) -> Grammar | None:
    """Returns the grammar that the answer must follow, if the request has one.

    Raises:
        ApiError: 400: it has several, or one that cannot be fulfilled.
    """
    found = [*_of_response_format(body), *_of_structured_outputs(body), *_of_guided_fields(body)]
    if len(found) > 1:
        names = " and ".join(grammar.param for grammar in found)
        raise ApiError(400, f"{names} exclude each other", param=found[1].param, code="invalid_value")
    if found and body.min_tokens:
        text = f"min_tokens and {found[0].param} exclude each other: the grammar says where the answer ends"
        raise ApiError(400, text, param="min_tokens", code="invalid_value")
    return found[0] if found else None


def _of_response_format(body: GenerationRequest) -> list[Grammar]:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Grammar("json", ANY_OBJECT, "response_format")]
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        where = "response_format.json_schema" + ("" if wanted.json_schema is None else ".schema")
        raise ApiError(400, f"{where} is missing", param=where, code="missing_required_parameter")
    return [Grammar("json", json_text(wanted.json_schema.schema), "response_format")]


def _of_structured_outputs(body: GenerationRequest) -> list[Grammar]:
    wanted = body.structured_outputs
    if wanted is None:
        return []
    found = _grammars("structured_outputs.", wanted.json, wanted.regex, wanted.choice, wanted.grammar)
    return [*found, Grammar("json", ANY_OBJECT, "structured_outputs.json_object")] if wanted.json_object else found


def _of_guided_fields(body: GenerationRequest) -> list[Grammar]:
    return _grammars("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _grammars(
    prefix: str,
    schema: dict[str, object] | str | None,
    regex: str | None,
    choice: tuple[str, ...] | None,
    grammar: str | None,
) -> list[Grammar]:
    sources = {
        "json": None if schema is None else json_text(schema),
        "regex": regex,
        "choice": None if choice is None else json.dumps(choice, ensure_ascii=False),
        "grammar": grammar,
    }
    return [Grammar(kind, source, prefix + kind) for kind, source in sources.items() if source is not None]
