"""One answer as it grows: tokens from the engine become text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_artifacts.record import dataclass
from paiton_runtime.engine.params import TokenLogprobs, Update
from paiton_runtime.server.openai.stop import StopText
from paiton_runtime.text import TextCodec


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How an answer's text is made of its tokens.

    Attributes:
        stops: texts that end it.
        include_stop: what ended it (one of these, or a stop token) appears in it.
        skip_special_tokens: special tokens do not appear in it.
        min_tokens: no stop text counts within this many tokens.
        prompt_only: an answer has no tokens of its own; the one that is generated is thrown away.
    """

    stops: Sequence[str] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    prompt_only: bool = False


@dataclass(slots=True)  # not frozen: that would take a microsecond of each token
class Delta:
    """What an update added to an answer.

    Attributes:
        text: that became certain; maybe none, as a character or a stop string may be incomplete.
        tokens: all of them.
        logprobs: one for each token, or none at all.
        offsets: of each token in the answer's text, where log-probabilities are there, in characters.
        reason: why it ended, as OpenAI calls it ("stop" or "length"); None while it goes on.
        ended_by: the stop text or stop token.
    """

    text: str
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprobs] = ()
    offsets: Sequence[int] = ()
    reason: str | None = None
    ended_by: str | int | None = None


class Output:
    """Turns updates of one request into deltas.

    Args:
        codec: of the tokens.
        options: how text is made of them.
        after: tokens that the text continues.

    Attributes:
        tokens: so far, the one that ended it included.
        cached_tokens: of the prompt, found in the prefix cache.
        prompt_logprobs: of the prompt's tokens but the first, where they were asked for; there with the first token.
        finished: whether the last delta had a reason; updates that still come are not looked at.
    """

    def __init__(self, codec: TextCodec, options: TextOptions, after: Sequence[int] = ()) -> None:
        self._stream = codec.stream(skip_special_tokens=options.skip_special_tokens, after=after)
        self._stop = StopText(options.stops, include=options.include_stop)
        self._options = options
        self._length = 0  # characters that the tokens so far stand for
        self._simple = not (options.stops or options.min_tokens or options.prompt_only)
        self.tokens = 0
        self.cached_tokens = 0
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self.finished = False

    def push(self, update: Update) -> Delta:
        """Takes an update that is neither an abort nor an error."""
        self.cached_tokens = update.cached_tokens or self.cached_tokens
        self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs
        if self._simple and update.finish_reason is None and not update.logprobs:
            self.tokens += len(update.tokens)
            return Delta("".join(map(self._stream.push, update.tokens)), update.tokens)
        if self._options.prompt_only:
            self.finished = True
            return Delta("", (), reason="length")
        pieces: list[str] = []
        offsets: list[int] = []
        taken = 0
        for token in update.tokens:
            taken += 1
            self.tokens += 1
            offsets.append(self._length)
            pieces.append(self._take(token, ends=token == update.ended_by and taken == len(update.tokens)))
            if self._stop.found is not None:
                break
        reason = update.finish_reason
        ended_by: str | int | None = update.ended_by
        if reason is not None and self._stop.found is None:
            pieces.extend((self._stop.push(self._stream.finish()), self._stop.flush()))
        if self._stop.found is not None:
            reason, ended_by = "stop", self._stop.found
        self.finished = reason is not None
        logprobs = update.logprobs[:taken]
        return Delta("".join(pieces), update.tokens[:taken], logprobs, offsets if logprobs else (), reason, ended_by)

    def _take(self, token: int, *, ends: bool) -> str:
        if ends and not self._options.include_stop:
            return ""
        piece = self._stream.push(token)
        self._length += len(piece)
        return piece if self.tokens <= self._options.min_tokens else self._stop.push(piece)
