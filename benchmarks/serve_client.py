"""The client of the serving benchmarks: HTTP/1.1 and server-sent events on bare sockets, with little of its own time.

While a request runs, bytes are only stored with the time of their arrival; they are parsed when it is over. A request
has a connection of its own, and its time begins before it connects.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

END_OF_CHUNKS = b"\r\n0\r\n\r\n"


class ClientError(Exception):
    """The server did not answer as HTTP or as OpenAI's interface has it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply and when its parts came. Times are of `time.perf_counter()`.

    Attributes:
        status: of HTTP.
        began: the client began to connect.
        body: without the framing of chunks.
        arrivals: (end, time) for each read of the socket: body[:end] was there at that time.
    """

    status: int
    began: float
    body: bytes
    arrivals: tuple[tuple[int, float], ...]

    def json(self) -> Any:  # noqa: ANN401 (whatever the server says)
        """Returns the body parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Completion:
    """A streamed completion.

    Attributes:
        began: the client began to connect.
        token_times: arrivals of the events that carried text; a server may put several tokens into one.
        ended: arrival of the last byte.
        text: all of it.
        logprobs: every log-probability in the stream, in order, where the request asked for them.
        prompt_tokens: as the server counted.
        completion_tokens: likewise.
        cached_tokens: of the prompt, found in the prefix cache, where the server says so.
    """

    began: float
    token_times: tuple[float, ...]
    ended: float
    text: str
    logprobs: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def first(self) -> float:
        """Seconds to the first token (TTFT)."""
        return self.token_times[0] - self.began

    @property
    def whole(self) -> float:
        """Seconds to the end (E2EL)."""
        return self.ended - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens (ITL)."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass
class _Exchange(asyncio.Protocol):
    """One request on one connection."""

    request: bytes
    over: asyncio.Future[None]
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        cast("asyncio.WriteTransport", transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        """Stores what came."""
        self.reads.append((time.perf_counter(), data))
        if data.endswith(END_OF_CHUNKS) and not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed, or the connection broke."""
        if not self.over.done():
            if exc is not None:
                self.over.set_exception(exc)
            else:
                self.over.set_result(None)


@dataclass(frozen=True, slots=True)
class Client:
    """Talks to one server.

    Attributes:
        port: on 127.0.0.1.
        model: its name there.
        timeout: seconds that a request may take.
    """

    port: int
    model: str
    timeout: float = 300.0

    async def get(self, path: str) -> Reply:
        """Returns the reply to GET."""
        return await self._exchange(f"GET {path}", b"")

    async def post(self, path: str, body: bytes) -> Reply:
        """Returns the reply to POST of JSON."""
        return await self._exchange(f"POST {path}", body)

    def body(self, prompt: str, tokens: int, **fields: Any) -> bytes:  # noqa: ANN401 (fields of JSON)
        """Returns a greedy request for exactly so many tokens, streamed."""
        whole = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        return json.dumps(whole).encode()

    async def complete(self, prompt: str, tokens: int, **fields: Any) -> Completion:  # noqa: ANN401 (fields of JSON)
        """Returns a completion of exactly so many tokens.

        Raises:
            ClientError: the server refused, failed, or gave another number of tokens.
        """
        reply = await self.post("/v1/completions", self.body(prompt, tokens, **fields))
        completion = parse_completion(reply)
        if completion.completion_tokens != tokens:
            raise ClientError(f"{completion.completion_tokens} tokens came, not {tokens}")
        return completion

    async def _exchange(self, line: str, body: bytes) -> Reply:
        """Sends one request and returns the reply."""
        loop = asyncio.get_running_loop()
        head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        exchange = _Exchange((head + "\r\n").encode() + body, loop.create_future())
        began = time.perf_counter()
        async with asyncio.timeout(self.timeout):
            transport, _ = await loop.create_connection(lambda: exchange, "127.0.0.1", self.port)
            try:
                await exchange.over
            finally:
                transport.abort()
        return parse_reply(began, exchange.reads)


def parse_reply(began: float, reads: list[tuple[float, bytes]]) -> Reply:
    """Returns the reply that `reads` hold, without its framing.

    Raises:
        ClientError: it is not HTTP, or breaks off.
    """
    raw = b"".join(data for _, data in reads)
    head, blank, _ = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not blank or not lines[0].startswith("HTTP/1."):
        raise ClientError(f"no HTTP reply: {raw[:200]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    ends, total = [], 0
    for _, data in reads:
        total += len(data)
        ends.append(total)
    start = len(head) + len(blank)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        pieces = list(_chunks(raw, start))
    else:
        pieces = [(max(begin, start), stop) for begin, stop in zip([0, *ends], ends, strict=False) if stop > start]
    arrivals, size = [], 0
    for begin, stop in pieces:
        size += stop - begin
        arrivals.append((size, reads[bisect.bisect_left(ends, stop)][0]))
    body = b"".join(raw[begin:stop] for begin, stop in pieces)
    return Reply(int(lines[0].split()[1]), began, body, tuple(arrivals))


def _chunks(raw: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yields where the data of each chunk begins and ends within `raw`."""
    while True:
        end = raw.find(b"\r\n", position)
        if end < 0:
            raise ClientError("the reply ends within its chunks")
        size = int(raw[position:end].split(b";")[0], 16)
        if size == 0:
            return
        yield end + 2, end + 2 + size
        position = end + 2 + size + 2


def parse_completion(reply: Reply) -> Completion:
    """Returns the completion that a stream of events holds.

    Raises:
        ClientError: the server answered with an error, or within the stream.
    """
    if reply.status != 200:
        raise ClientError(f"{reply.status}: {reply.body[:300]!r}")
    texts, times, logprobs = [], [], []
    usage: dict[str, Any] = {}
    position = arrival = 0
    while (end := reply.body.find(b"\n\n", position)) >= 0:
        event, position = reply.body[position:end].strip(), end + 2
        while arrival + 1 < len(reply.arrivals) and reply.arrivals[arrival][0] < position:
            arrival += 1
        data = event.removeprefix(b"data:").strip()
        if not event.startswith(b"data:") or data == b"[DONE]":
            continue
        message = json.loads(data)
        if "error" in message:
            raise ClientError(f"in the stream: {message['error']}")
        usage = message.get("usage") or usage
        for choice in message.get("choices", ()):
            logprobs += _logprobs(choice.get("logprobs"))
            if choice.get("text"):
                texts.append(choice["text"])
                times.append(reply.arrivals[arrival][1])
    if not times or not usage:
        raise ClientError(f"a stream without text or usage: {reply.body[-300:]!r}")
    return Completion(
        began=reply.began,
        token_times=tuple(times),
        ended=reply.arrivals[-1][1],
        text="".join(texts),
        logprobs=tuple(logprobs),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )


def _logprobs(value: Any) -> list[float]:  # noqa: ANN401 (JSON)
    """Returns the log-probabilities of the tokens that came, in either of the two forms that servers use."""
    if not value:
        return []
    if "token_logprobs" in value:
        return list(value["token_logprobs"])
    return [entry["logprob"] for entry in value.get("content", ())]
