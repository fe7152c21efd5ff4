"""Sends one answer over ASGI: whole, or as a stream of events."""

from __future__ import annotations

from contextlib import aclosing

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import DONE, EVENT_STREAM, EventStream, Headers, HttpRequest, Response, Send, event

LINGER_BYTES = 64 << 20
LINGER_SECONDS = 5.0
"""How much of a body that nobody wants is still read, and how long, so that its sender gets to read the answer."""

_SMALL = 64 << 10
_SMALL_SECONDS = 0.25
"""A body of this size, if it arrives this soon, is read before the answer: the connection can then go on."""


class Reply:
    """The answer to one request.

    Attributes:
        status: what was sent; 0 before that.
        ended: how it ended, where that was not by the handler's will.
    """

    def __init__(self, request: HttpRequest, send: Send, headers: Headers) -> None:
        self._request = request
        self._send = send
        self._headers = headers
        self._streaming = False
        self._finished = False
        self.status = 0
        self.ended = ""

    async def whole(self, response: Response) -> None:
        """Sends an answer of known length."""
        request = self._request
        if not request.received and request.declared_length <= _SMALL:
            await request.discard(_SMALL, _SMALL_SECONDS)
        headers = response.headers
        if response.status not in {204, 304}:
            headers = (("content-length", str(len(response.body))), *headers)
        linger = not request.received
        await self._start(response.status, (*headers, ("connection", "close")) if linger else headers)
        await self._send({"type": "http.response.body", "body": response.body, "more_body": linger})
        if linger:
            await request.discard(LINGER_BYTES, LINGER_SECONDS)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._finished = True

    async def stream(self, stream: EventStream) -> None:
        """Sends events as they come."""
        async with aclosing(stream.events) as events:
            async for piece in events:
                if not self._streaming:
                    self._streaming = True
                    # The last one asks nginx not to collect what shall arrive at once.
                    kind = (("content-type", EVENT_STREAM), ("cache-control", "no-cache"), ("x-accel-buffering", "no"))
                    await self._start(200, (*kind, *stream.headers))
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if not self._streaming:
            await self._start(200, (("content-type", EVENT_STREAM), *stream.headers))
        await self._finish()

    async def fail(self, error: ApiError) -> None:
        """Sends an error: as the answer, or as an event where a stream has begun; nothing after an answer's end."""
        if not self.status:
            await self.whole(Response.error(error))
        elif self._streaming and not self._finished:
            self.ended = self.ended or error.message
            await self._send({"type": "http.response.body", "body": event(error.body()) + DONE, "more_body": True})
            await self._finish()

    async def _start(self, status: int, headers: Headers) -> None:
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*headers, *self._headers)]
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _finish(self) -> None:
        self._finished = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
