"""A client's connection: uvicorn's HTTP protocol with the bounds that it leaves out.

uvicorn waits for ever for the rest of a request's headers, however long they grow, and for a client to read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState as Connections

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import Response
from paiton_runtime.server.options import ServeOptions

MAX_HEADER_BYTES = 64 << 10
"""Request line and headers together."""

MAX_AHEAD = 64
"""Requests that a client may send on one connection before it has the first answer."""


class Config(uvicorn.Config):
    """uvicorn's configuration, and the seconds that a client may take."""

    def __init__(self, app: Any, options: ServeOptions, **settings: Any) -> None:  # noqa: ANN401  (uvicorn's own types)
        super().__init__(app, http=Connection, **settings)
        self.header_timeout = options.header_timeout
        self.send_timeout = options.send_timeout


class Connection(HttpToolsProtocol):
    """One connection, for any number of requests."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timeout = config.header_timeout
        self._send_timeout = config.send_timeout
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._cycles: deque[RequestResponseCycle] = deque()  # not answered yet, oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """The first request's time begins here: a client that connects and says nothing is cut as well."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timers, and tells the request that is being answered.

        uvicorn tells the latest one, which is another where a client sends requests without waiting for answers.
        """
        self._headers_arrived()
        self._sent()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came, and bounds headers in time and size."""
        # Any byte between two requests ends the idle time that uvicorn bounds, so it has to begin the headers' time.
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()
        super().data_received(data)
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(ApiError(431, f"the request's headers exceed {MAX_HEADER_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """Called by the parser.

        Raises:
            ValueError: too many requests wait; the parser makes an error of its own of it, which is a 400.
        """
        self._headers_arrived()
        if len(self._cycles) >= MAX_AHEAD:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_response_complete(self) -> None:
        """A client that does not read the end of its answer must not keep the connection either."""
        if self._cycles:
            self._cycles.popleft()
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.pause_writing_timer()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an error body like any other."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def pause_writing(self) -> None:
        """The client reads more slowly than we write: it has `send_timeout` to catch up."""
        super().pause_writing()
        self.pause_writing_timer()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._sent()

    def pause_writing_timer(self) -> None:
        """Starts the time after which a client that does not read is cut."""
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self._send_timeout, self._stalled)

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self._header_timeout, self._late)

    def _headers_arrived(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _late(self) -> None:
        self._refuse(ApiError(408, f"the request's headers did not arrive within {self._header_timeout:g} s"))

    def _sent(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _stalled(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size():
            self._abandon()
            self.transport.abort()

    def _abandon(self) -> bool:
        """Tells requests that are not answered yet that their client is gone; returns whether an answer has begun.

        Those that wait behind another are not begun any more.
        """
        self.pipeline.clear()
        begun = any(cycle.response_started for cycle in self._cycles)
        while self._cycles:
            cycle = self._cycles.popleft()
            cycle.disconnected = True
            cycle.message_event.set()
        return begun

    def _refuse(self, error: ApiError) -> None:
        """Answers what is no request, unless in the middle of an answer to one before it, and closes."""
        self._headers_arrived()
        if self.transport.is_closing():
            return
        if self._abandon():
            self.transport.abort()
            return
        response = Response.error(error)
        lines = [STATUS_LINE[error.status], b"content-type: application/json\r\nconnection: close\r\n"]
        lines += [b"content-length: %d\r\n\r\n" % len(response.body), response.body]
        self.transport.write(b"".join(lines))
        self.transport.close()
