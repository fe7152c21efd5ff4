"""HTTP for registries: connections that are kept open, redirects, deadlines; statuses as errors that `retry` reads.

obstore speaks to object stores alone, and the standard library's `urllib.request` opens a connection per request.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import ssl
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from paiton_artifacts.errors import StoreError

PLAIN_VARIABLE = "PAITON_REGISTRY_PLAIN_HTTP"
"""Hosts, with ports, separated by commas, that are spoken to without TLS."""

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0
"""The longest silence of a server: one that commits an upload hashes it first."""

MAX_REDIRECTS = 5
MAX_IDLE = 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Body = bytes | Iterable[bytes] | None


class TransferError(Exception):
    """A request failed in a way that may pass: no connection, a broken one, or a status; `retry` reads the text.

    Attributes:
        retry_after: seconds that the server wants to be left alone, where it said so.
    """

    retry_after: float | None = None


class Answer:
    """What a server sent: status, headers, and a body that is read once.

    Attributes:
        status: of the answer.
        headers: of the answer; names in any case.
        url: that answered, after redirects.
    """

    def __init__(self, response: http.client.HTTPResponse, url: str, done: _Lease) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self._response = response
        self._lease = done

    def read(self, limit: int) -> bytes:
        """Returns the body, of which there may be at most `limit` bytes.

        Raises:
            TransferError: the connection broke.
            StoreError: it is larger.
        """
        data = b"".join(self.stream(min(limit + 1, 1 << 16), limit + 1))
        if len(data) > limit:
            raise StoreError(f"{self.url}: an answer of more than {limit} bytes", hint="is this a registry?")
        return data

    def stream(self, step: int, limit: int | None = None) -> Iterator[bytes]:
        """Yields the body in pieces of about `step` bytes, up to about `limit` in all.

        Raises:
            TransferError: the connection broke.
        """
        done = 0
        try:
            while limit is None or done < limit:
                try:
                    piece = self._response.read(step)
                except (OSError, http.client.HTTPException) as error:
                    raise TransferError(f"reading {self.url}: {_reason(error)}") from error
                if not piece:
                    if self._response.length:
                        raise TransferError(f"reading {self.url}: {self._response.length} bytes are missing")
                    break
                done += len(piece)
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Gives the connection back, if the body was read to its end, else closes it."""
        self._lease.end(reusable=self._response.isclosed() and not self._response.will_close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Lease:
    """A connection in use, and where it goes afterwards."""

    pool: _Pool
    origin: tuple[str, str]
    connection: http.client.HTTPConnection
    half_sent: bool = False
    ended: bool = False

    def end(self, *, reusable: bool) -> None:
        if self.ended:
            return
        self.ended = True
        if reusable and not self.half_sent:
            self.pool.keep(self.origin, self.connection)
        else:
            self.connection.close()


class _Pool:
    """Idle connections by scheme and host."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def take(self, origin: tuple[str, str]) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(origin)
            return idle.pop() if idle else None

    def keep(self, origin: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < MAX_IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()


class Transport:
    """Sends requests to one registry, and to where it redirects; for many threads at once.

    Args:
        host: of the registry, with its port if it has one.
    """

    def __init__(self, host: str) -> None:
        self.plain = speaks_plainly(host)
        self.base = f"{'http' if self.plain else 'https'}://{host}"
        self._pool = _Pool()
        self._tls: ssl.SSLContext | None = None
        weakref.finalize(self, self._pool.close)

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body = None) -> Answer:
        """Sends a request, and follows redirects of those that only read.

        Args:
            method: of the request.
            url: whole, or a path of the registry.
            headers: `Authorization` goes to the host of `url` alone; `Content-Length` is needed with an iterable body.
            body: read as it is sent.

        Raises:
            TransferError: no connection, or it broke.
            StoreError: the server redirects in circles, or from https to http.
        """
        url = urljoin(self.base, url)
        sent = dict(headers)
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._send_once(method, url, sent, body)
            if answer.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return answer
            with answer:
                target = urljoin(url, answer.headers.get("Location", ""))
                answer.read(1 << 16)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                # Where blobs lie is often another service, with a signature of its own in the URL.
                sent.pop("Authorization", None)
            url = target
        raise StoreError(f"{self.base}: {method} is redirected more than {MAX_REDIRECTS} times", hint="check the URL")

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> Answer:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not self.plain):
            raise StoreError(
                f"{self.base} redirects to {parts.scheme}://{parts.netloc}",
                hint=f"set {PLAIN_VARIABLE} if this registry is to be spoken to without TLS",
            )
        origin = (parts.scheme, parts.netloc)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        kept = self._pool.take(origin)
        if kept is not None and (body is None or isinstance(body, bytes)):
            try:
                return self._exchange(kept, origin, method, target, headers, body, url)
            except TransferError:
                pass  # closed by the server while it was idle, most likely
        elif kept is not None:
            kept.close()  # nothing that is streamed can be sent twice
        return self._exchange(self._connect(parts), origin, method, target, headers, body, url)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        origin: tuple[str, str],
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        url: str,
    ) -> Answer:
        lease = _Lease(self._pool, origin, connection)
        try:
            try:
                connection.request(method, target, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses a body answers before it has read all of it.
                if body is None or connection.sock is None:
                    raise
                lease.half_sent = True
            return Answer(connection.getresponse(), url, lease)
        except (OSError, http.client.HTTPException) as error:
            lease.end(reusable=False)
            raise TransferError(f"{method} {url.partition('?')[0]}: {_reason(error)}") from error
        except BaseException:
            lease.end(reusable=False)  # the body could not be read to its end
            raise

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        try:
            if parts.scheme == "http":
                connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
            else:
                connection = self._connect_securely(host, port)
            connection.connect()
        except OSError as error:
            raise TransferError(f"connecting to {parts.netloc}: {_reason(error)}") from error
        connection.sock.settimeout(ANSWER_SECONDS)
        return connection

    def _connect_securely(self, host: str, port: int | None) -> http.client.HTTPSConnection:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        proxy = None if proxy_bypass(host) else getproxies().get("https")
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._tls)
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        connection = http.client.HTTPSConnection(
            via.hostname or "", via.port, timeout=CONNECT_SECONDS, context=self._tls
        )
        connection.set_tunnel(host, port)
        return connection


def speaks_plainly(host: str) -> bool:
    """Says whether a registry is spoken to without TLS: one on this machine, or one that the environment names."""
    if host in (part.strip() for part in os.environ.get(PLAIN_VARIABLE, "").split(",")):
        return True
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
