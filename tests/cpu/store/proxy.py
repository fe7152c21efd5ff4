"""An HTTP proxy that damages what passes through it, as a test asks, and remembers what did."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "reset", "truncate", "corrupt", "slow", "lose-answer"]


@dataclass
class Fault:
    """What happens to some requests.

    Attributes:
        kind: answer with a status; break the connection; end the body half-way, flip a bit in it, or send it slowly;
            pass the request on but not the answer.
        path: part of the paths that it happens to.
        method: of the requests.
        times: how often; after that it is over.
        status: of the answer, for that kind.
        headers: likewise.
        body: likewise.
        delay: seconds between 64 KiB of a slow body.
    """

    kind: Kind
    path: str = "/blobs/"
    method: str = "GET"
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"no"
    delay: float = 0.05


@dataclass(frozen=True)
class Passed:
    """A request that came, and the bytes of the bodies in both directions."""

    method: str
    path: str
    sent: int
    received: int
    at: float


class Proxy:
    """Listens on a free port of the loopback interface and passes everything on to another.

    Args:
        port: of the server behind.
        drop: headers of requests that do not get through.
    """

    def __init__(self, port: int, drop: tuple[str, ...] = ()) -> None:
        self.upstream = port
        self.drop = drop
        self.faults: list[Fault] = []
        self.passed: list[Passed] = []
        self.on_request: Callable[[str, str], object] = lambda _method, _path: None
        self.lock = threading.Lock()
        self.active = 0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def requests(self, path: str, method: str = "GET") -> list[Passed]:
        """Returns the requests of a method whose path contains something, once all that have begun are over."""
        self._settle()
        return self.so_far(path, method)

    def so_far(self, path: str, method: str = "GET") -> list[Passed]:
        """Returns those of `requests` that are over by now."""
        return [one for one in self.passed if path in one.path and one.method == method]

    def forget(self) -> None:
        """Forgets what has passed, once the last request before this has."""
        self._settle()
        self.passed.clear()

    def _settle(self) -> None:
        end = time.monotonic() + 5  # a client that has given up may leave a slow answer behind
        while self.active and time.monotonic() < end:
            time.sleep(0.001)

    def take(self, method: str, path: str) -> Fault | None:
        """Returns what is to happen to a request."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running(port: int, drop: tuple[str, ...] = ()) -> Iterator[Proxy]:
    """Yields a proxy to a port, and ends it."""
    proxy = Proxy(port, drop)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that give up are what this is for."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    owner: Proxy

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def handle_any(self) -> None:
        proxy = self.owner
        with proxy.lock:
            proxy.active += 1
        try:
            self._handle(proxy)
        finally:
            with proxy.lock:
                proxy.active -= 1

    def _handle(self, proxy: Proxy) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        proxy.on_request(self.command, path)
        fault = proxy.take(self.command, path)
        kind = fault.kind if fault else None
        received = 0
        if fault and kind == "status":
            received = self._answer(fault.status, fault.headers, fault.body)
        elif kind == "reset":
            self._break()
        else:
            received = self._forward(body, fault)
        proxy.passed.append(Passed(self.command, path, len(body), received, time.monotonic()))

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815  (names of the standard library)

    def _forward(self, body: bytes, fault: Fault | None) -> int:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in self.owner.drop}
            try:
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                self._break()
                return 0
        finally:
            upstream.close()
        if fault and fault.kind == "lose-answer":
            self._break()
            return 0
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
        }
        length = int(answer.headers.get("Content-Length") or len(data))
        return self._answer(answer.status, kept, data, fault, length)

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None, length: int | None = None
    ) -> int:
        if self.command == "HEAD":
            data = b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        kind = fault.kind if fault else None
        if kind == "corrupt" and len(data) > 100:
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        if kind == "truncate":
            data = data[: len(data) // 2]
        step = 64 << 10 if kind == "slow" else len(data) or 1
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            self.wfile.flush()
            if fault and kind == "slow":
                time.sleep(fault.delay)
        self.wfile.flush()
        if kind == "truncate":
            self._break()
        return len(data)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
