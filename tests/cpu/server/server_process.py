"""A server as a process, and what an independent client needs: http.client and bare sockets."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

from tests.conftest import python_environment

SECONDS = 60.0
"""After which something that should have happened counts as not happening; the machine may be busy."""

HELD = """
import os, sys, time

GATE, WORD = sys.argv.pop(1), sys.argv.pop(1)

def hook(event, arguments):
    if event == "open" and WORD in str(arguments[0]):
        while not os.path.exists(GATE):
            time.sleep(0.01)

sys.addaudithook(hook)
from paiton_runtime.cli import main
sys.exit(main())
"""
"""Runs the command, but holds whoever opens a path that contains WORD until the file GATE exists."""


@dataclass(frozen=True)
class Answer:
    """What came back: header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of OpenAI's error body, which must have its four fields and nothing else."""
        assert self.headers["content-type"] == "application/json"
        body = self.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)
        error: dict[str, Any] = body["error"]
        return error


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Called by http.client."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """`paiton-run serve` as a process. Its stderr is collected; its address is read from it.

    Args:
        *words: bundle and options; a free port of 127.0.0.1 unless --uds is among them.
        environment: further variables.
        hold: (gate, word), see `HELD`.
    """

    def __init__(
        self, *words: str | Path, environment: Mapping[str, str] | None = None, hold: tuple[Path, str] | None = None
    ) -> None:
        start = ["-m", "paiton_runtime.cli"] if hold is None else ["-c", HELD, str(hold[0]), hold[1]]
        arguments = ["serve", *map(str, words)]
        if not {"--uds", "--port"} & set(arguments):
            arguments += ["--host", "127.0.0.1", "--port", "0"]
        env = {name: value for name, value in python_environment().items() if not name.endswith("_API_KEY")}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *start, *arguments], stderr=subprocess.PIPE, text=True, env={**env, **(environment or {})}
        )
        self._lines: list[str] = []
        self._news = Condition()  # guards the lines
        self._closed = False
        self._reader = Thread(target=self._read)
        self._reader.start()
        self.url = self.wait_for_line("listening on ").removeprefix("listening on ").strip()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    @property
    def stderr(self) -> str:
        """What it said so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for_line(self, word: str) -> str:
        """Returns the first line of stderr with a word in it."""

        def find() -> str | None:
            return next((line for line in self._lines if word in line), None)

        with self._news:
            self._news.wait_for(lambda: find() is not None or self._closed, SECONDS)
            line = find()
            assert line is not None, f"no {word!r} on stderr: {''.join(self._lines)}"
            return line

    def wait_until_ready(self) -> Self:
        """Waits until /health says 200."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                status = self.get("/health").status
            except OSError as error:
                self.process.wait(SECONDS)
                raise AssertionError(f"the server has gone: {self.stderr}") from error
            if status == 200:
                return self
            assert status == 503
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.02)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        """Returns a bare connection."""
        return socket.create_connection(self.address, SECONDS)

    def connection(self, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        """Returns a connection of http.client."""
        if self.url.startswith("unix:"):
            return UnixConnection(self.url.removeprefix("unix:"), SECONDS)
        if context is not None:
            return http.client.HTTPSConnection(*self.address, timeout=SECONDS, context=context)
        return http.client.HTTPConnection(*self.address, timeout=SECONDS)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> Answer:
        """Sends one request, on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = self.connection(context)
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends a GET."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends a POST."""
        return self.request("POST", path, body, headers)

    @contextmanager
    def stream(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Iterator[EventReader]:
        """Sends a POST whose answer is a stream of events, and leaves it when the block ends."""
        connection = self.connection()
        try:
            connection.request("POST", path, _encode(body), {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            try:
                yield EventReader(response)
            finally:
                response.close()
        finally:
            connection.close()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Returns the exit code, with all of stderr read."""
        code = self.process.wait(seconds)
        self._reader.join(SECONDS)
        return code

    def stop(self) -> int:
        """Ends the process, the polite way, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            raise

    def close(self) -> None:
        """Ends the process whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


class EventReader:
    """Server-sent events of a response, one `data:` value at a time."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._response = response

    def __iter__(self) -> Iterator[str]:
        for line in self._response:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").decode().rstrip("\n")
            else:
                assert line == b"\n"

    def read(self) -> bytes:
        """Returns the rest, as it is."""
        return self._response.read()


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Sends one request over a connection that may be used again, and returns the whole answer."""
    kind = {} if body is None else {"content-type": "application/json"}
    connection.request(method, path, _encode(body), {**kind, **(headers or {})})
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def _encode(body: object) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def read_all(connection: socket.socket) -> bytes:
    """Returns what comes until the other side closes, in order or not."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_answer(connection: socket.socket) -> Answer:
    """Reads one answer from a bare connection, and no further."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def open_files(process: int) -> int:
    """Returns how many files a process has open."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))
