"""A request and the two kinds of answers: what handlers see of HTTP, and nothing of ASGI.

A handler is `async def handler(request: HttpRequest) -> Response | EventStream`. It raises `ApiError` or any error of
`paiton_artifacts.errors`; `app.py` turns both into OpenAI's error bodies. It is cancelled when the client has gone.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

from paiton_artifacts.record import dataclass, field
from paiton_runtime.server.errors import ApiError

Message = dict[str, Any]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
"""The types of ASGI 3, https://asgi.readthedocs.io/en/latest/specs/www.html."""

Headers = tuple[tuple[str, str], ...]

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

DONE = b"data: [DONE]\n\n"
"""What ends an event stream of OpenAI's interface."""

_ID_LENGTH = 128
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


class ClientGoneError(Exception):
    """The client closed the connection; nobody is there to be answered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request's body may take: bytes, and seconds from its headers to its end."""

    max_bytes: int = 4 << 20
    seconds: float = 30.0


class HttpRequest:
    """One request.

    Attributes:
        method: upper case; a HEAD of a GET route arrives as GET.
        path: decoded, without the root path.
        tail: what a route that ends in "*" left open, else "".
        query: as sent, without the question mark.
        headers: by lower-case name; those that came several times are joined with ", ".
        client: "address:port", or "" on a unix socket.
        request_id: the client's X-Request-Id where it is sane, else random. Clients choose it: it may repeat.
    """

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.tail = ""
        self.query: str = scope["query_string"].decode("latin-1")
        self.headers = _headers(scope["headers"])
        client = scope.get("client")
        self.client = f"{client[0]}:{client[1]}" if client else ""
        self.request_id = _request_id(self.headers.get("x-request-id", ""))
        self._receive = receive
        self._limits = limits
        self._body: bytes | None = None
        self._ended = asyncio.Event()  # the body has been received, or the client has gone
        self._gone = False
        if "transfer-encoding" not in self.headers and self.declared_length == 0:
            self._body = b""
            self._ended.set()

    @property
    def declared_length(self) -> int:
        """Content-Length, 0 without one; the HTTP parser has checked that it is a number."""
        return int(self.headers.get("content-length", "0"))

    @property
    def received(self) -> bool:
        """Whether all of the body has been taken off the connection."""
        return self._ended.is_set()

    async def body(self) -> bytes:
        """Returns the whole body, however often it is asked for.

        Raises:
            ApiError: 413 when it is too large, 408 when it does not arrive in time.
            ClientGoneError: the client left before its end.
        """
        if self._body is None:
            if self.declared_length > self._limits.max_bytes:
                self._refuse_size()
            parts: list[bytes] = []
            size = 0
            try:
                async with asyncio.timeout(self._limits.seconds):
                    while not self.received:
                        parts.append(await self._next_part())
                        size += len(parts[-1])
                        if size > self._limits.max_bytes:
                            self._refuse_size()
            except TimeoutError:
                text = f"the request's body did not arrive within {self._limits.seconds:g} s"
                raise ApiError(408, text, code="request_timeout") from None
            self._body = b"".join(parts)
        return self._body

    async def json(self) -> Any:  # noqa: ANN401  (whatever the client sent; validation is the handler's)
        """Returns the body as JSON.

        Raises:
            ApiError: 400 when it is not JSON in UTF-8, 415 when it is declared as something else; and as `body`.
            ClientGoneError: the client left before its end.
        """
        kind = self.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
            raise ApiError(415, f"Content-Type {kind!r} is not supported; send {JSON}")
        body = await self.body()
        try:
            return json.loads(body.decode(), parse_constant=_refuse_constant)
        except RecursionError:
            raise ApiError(400, "the request's body is nested too deeply") from None
        except ValueError as error:  # of the decoding, the syntax, or a number of too many digits
            raise ApiError(400, f"the request's body is not valid JSON: {error}") from None

    async def disconnected(self) -> None:
        """Completes when the client has gone; it can be noticed only once the body has been received."""
        await self._ended.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"

    async def discard(self, max_bytes: int, seconds: float) -> None:
        """Takes the rest of the body off the connection, within bounds.

        A client that is still sending would never read its answer if the connection were closed upon unread data.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self.received and max_bytes > 0:
                    max_bytes -= len(await self._next_part())
        except (TimeoutError, ClientGoneError):
            return

    async def _next_part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
            self._ended.set()
            raise ClientGoneError
        if not message.get("more_body", False):
            self._ended.set()
        return bytes(message.get("body", b""))

    def _refuse_size(self) -> NoReturn:
        limit = self._limits.max_bytes
        raise ApiError(413, f"the request's body exceeds {limit} bytes", code="request_too_large")


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Content-Length and the request's id are added."""

    status: int = 200
    headers: Headers = ()
    body: bytes = b""

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Headers = ()) -> Response:
        """Returns an answer that holds `value` as JSON."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        return cls(status, (("content-type", JSON), *headers), body)

    @classmethod
    def error(cls, error: ApiError) -> Response:
        """Returns an error as OpenAI's clients expect it."""
        return cls.json(error.body(), error.status, error.headers)


@dataclass(frozen=True, slots=True)
class EventStream:
    """A stream of server-sent events.

    The headers leave with the first piece: an error that `events` raises before it still has a status of its own; one
    that comes later is sent as an event with OpenAI's error body, and `DONE`.

    Args:
        events: pieces of the stream, each one or several complete events. It is closed in any case, and cancelled at
            once when the client goes.
    """

    events: AsyncGenerator[bytes, None]
    headers: Headers = field(default=())


Handler = Callable[[HttpRequest], Awaitable[Response | EventStream]]


def event(value: object) -> bytes:
    """Returns one server-sent event that holds `value` as JSON."""
    return b"data: %b\n\n" % json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def new_request_id() -> str:
    """Returns 128 random bits as text."""
    return os.urandom(16).hex()


def _request_id(asked: str) -> str:
    """The client's id goes into logs and headers, so only what cannot do harm there is taken."""
    return asked if 0 < len(asked) <= _ID_LENGTH and _ID_CHARACTERS.issuperset(asked) else new_request_id()


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _refuse_constant(word: str) -> NoReturn:
    """`json` would take NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{word} is not a JSON value")
