"""Constrained output: JSON schemas, regular expressions, choices and grammars, compiled by llguidance.

Everything here that takes long runs in a thread of its own. What a client may cost is bounded: the length of a source,
the number of compilations that wait, and llguidance's own limits, which end a grammar that grows too large while it
runs; then the request fails and the others do not notice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from paiton_artifacts.errors import PaitonError, UsageError
from paiton_artifacts.record import dataclass
from paiton_runtime.server.errors import ApiError
from paiton_runtime.text import TextCodec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SOURCE = 65_536
MAX_REGEX = 8_192
"""Characters of a grammar's source, and of a regular expression, whose masks take longer; the compilation of the worst
takes about a tenth of a second."""

MAX_MASK_SECONDS = 0.1
"""Processor time that the first mask may take; the usual one takes a thousandth of a second. The others wait for it."""

MAX_KEPT = 64
"""Compiled grammars that are kept for the next request, the latest ones."""

MAX_WAITING = 32
"""Compilations that may wait."""

WHITESPACE = {"whitespace_pattern": r"[ \t]{0,4}(\r?\n[ \t]{0,40})?"}
"""What may stand between two tokens of JSON, as llguidance's option: a line's end and an indentation. Without a bound,
a small model that has begun to write blank lines does so until its answer is cut off."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like.

    Attributes:
        kind: "json" (a schema), "regex", "choice" (a JSON array of texts), "grammar" (Lark or GBNF), or "lark".
        source: in the language of the kind.
        param: the field of the request that asked for it.
    """

    kind: str
    source: str
    param: str


class Grammars:
    """Compiles grammars for one tokenizer.

    Args:
        codec: whose tokens the output is made of.
        vocab_size: logits of the model, which may be more than the tokenizer has tokens.
        eos_token_ids: tokens that may follow a complete output.
    """

    def __init__(self, codec: TextCodec, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._codec = codec
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="paiton-grammar")
        self._waiting = 0
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()

    async def compile(self, grammar: Grammar) -> Callable[[], GrammarConstraint]:
        """Returns a function that makes a constraint for each answer.

        Raises:
            ApiError: 400: the grammar is none, or too large; 429: too many wait to be compiled.
        """
        allowed = MAX_REGEX if grammar.kind == "regex" else MAX_SOURCE
        if len(grammar.source) > allowed:
            text = f"{grammar.param} has {len(grammar.source)} characters; {allowed} are allowed"
            raise ApiError(400, text, param=grammar.param, code="invalid_grammar")
        matcher = self._kept.get((grammar.kind, grammar.source))
        if matcher is None:
            matcher = await self._compile_in_thread(grammar)
            self._kept[grammar.kind, grammar.source] = matcher
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end((grammar.kind, grammar.source))
        mask_bytes = 4 * -(-self._vocab_size // 32)
        return lambda: GrammarConstraint(matcher.deep_copy(), mask_bytes)

    async def _compile_in_thread(self, grammar: Grammar) -> LLMatcher:
        if self._waiting >= MAX_WAITING:
            raise ApiError(429, "too many grammars wait to be compiled", headers=(("retry-after", "1"),))
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, grammar)
        except UsageError as error:
            text = f"{grammar.param}: {error.message}"
            raise ApiError(400, text, param=grammar.param, code="invalid_grammar") from error
        finally:
            self._waiting -= 1

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits  # noqa: PLC0415  (57 ms, for constrained output only)

        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._codec, self._vocab_size, self._eos)
        limits = LLParserLimits(
            initial_lexer_fuel=300_000,
            step_lexer_fuel=50_000,
            step_max_items=20_000,
            max_lexer_states=50_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        try:
            source = to_llguidance(grammar)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not a {grammar.kind} grammar: {error}") from error
        matcher: LLMatcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        _raise_error(matcher)
        # The first mask is the dearest, and what is wrong with a lexer shows only now.
        began = time.thread_time()
        matcher.compute_bitmask()
        _raise_error(matcher)
        if time.thread_time() - began > MAX_MASK_SECONDS:
            raise UsageError("the grammar is too complex")
        return matcher


class GrammarConstraint:
    """A grammar on one answer's way through it; see `Constraint`."""

    def __init__(self, matcher: LLMatcher, mask_bytes: int) -> None:
        self._matcher = matcher
        self._mask_bytes = mask_bytes

    def mask(self) -> bytes:
        """Returns which tokens may come next.

        Raises:
            UsageError: the grammar has grown too complex.
        """
        mask = self._matcher.compute_bitmask()
        _raise_error(self._matcher)
        return mask[: self._mask_bytes]

    def advance(self, token: int) -> None:
        """Takes a token.

        Raises:
            PaitonError: the mask did not allow it.
        """
        if not self._matcher.consume_token(token):
            raise PaitonError(f"token {token} does not follow the grammar: {self._matcher.get_error()}")


def _raise_error(matcher: LLMatcher) -> None:
    if error := matcher.get_error():
        raise UsageError(f"the grammar is not accepted: {error.strip()[:1000]}")


def make_tokenizer(codec: TextCodec, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """Returns llguidance's view of a tokenizer.

    It is made in two steps, because each holds the interpreter's lock: with 49,000 tokens 0.07 s and 0.12 s, in place
    of 0.26 s for the usual way through the tokenizer's file.
    """
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415  (57 ms, for constrained output only)

    plain = LLTokenizer(
        TokenizerWrapper(_Vocabulary(codec, vocab_size, eos_token_ids)),
        n_vocab=vocab_size,
        eos_token=list(eos_token_ids),
        slices=[],
    )
    return plain.with_slices(LLTokenizer.general_slices())


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, codec: TextCodec, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._codec = codec
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = [codec.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(codec.special_ids)

    def __call__(self, text: str) -> list[int]:
        return self._codec.encode(text, add_special_tokens=False)


def to_llguidance(grammar: Grammar) -> str:
    """Returns a grammar in llguidance's own form.

    Raises:
        ValueError: it is none.
    """
    from llguidance import LLMatcher, grammar_from  # noqa: PLC0415  (57 ms, for constrained output only)

    if grammar.kind == "json":
        return str(LLMatcher.grammar_from_json_schema(json.dumps(with_whitespace(json.loads(grammar.source)))))
    if grammar.kind == "choice":
        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(lark_text, json.loads(grammar.source)))))
    if grammar.kind == "grammar":
        return str(grammar_from("grammar", grammar.source))
    return str(grammar_from("regex" if grammar.kind == "regex" else "lark", grammar.source))


def lark_text(text: str) -> str:
    """Returns a text as a literal of llguidance's Lark dialect, which reads JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def with_whitespace(schema: Any) -> Any:  # noqa: ANN401  (JSON)
    """Returns a schema that bounds whitespace, unless it says itself what llguidance is to do."""
    return {"x-guidance": WHITESPACE, **schema} if isinstance(schema, dict) else schema


def json_text(schema: Any) -> str:  # noqa: ANN401  (JSON)
    """Returns a schema as text, the same for equal ones, order of properties included."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
