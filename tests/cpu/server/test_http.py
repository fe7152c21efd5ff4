"""Routes, errors, keys, origins and ids, seen by http.client; and what a handler may do, seen by a hand-made ASGI."""

from __future__ import annotations

import asyncio
import io
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton_artifacts.errors import PromptTooLongError, QueueFullError, VerificationError
from paiton_runtime.server.app import App
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import EventStream, HttpRequest, Response, event
from paiton_runtime.server.options import ServeOptions
from paiton_runtime.server.request_log import RequestLog
from paiton_runtime.server.state import BootLedger, ServerState
from tests.conftest import ROOT
from tests.cpu.server.server_process import Server, exchange, read_answer

KEYS = ("first-key", "second-key")
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def guarded(tiny_bundle: Path) -> Iterator[Server]:
    """A server with keys, an allowed origin and a root path."""
    words = ("--api-key", *KEYS, "--allowed-origins", f'["{ORIGIN}"]', "--root-path", "/models/tiny")
    process = Server(tiny_bundle, *words, "--log-format", "json")
    try:
        yield process.wait_until_ready()
    finally:
        process.close()


def test_health_ping_version_and_load(server: Server) -> None:
    for path in ("/health", "/ping"):
        answer = server.get(path)
        assert (answer.status, answer.body) == (200, b"")
    assert server.post("/ping", b"").status == 200
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert server.get("/version").json() == {"version": version}
    assert server.get("/load").json() == {"server_load": 0}


def test_unknown_paths_and_wrong_methods(server: Server) -> None:
    missing = server.get("/v1/nothing")
    assert (missing.status, missing.error["type"], missing.error["code"]) == (404, "not_found_error", "unknown_path")
    assert "/v1/nothing" in missing.error["message"]
    wrong = server.request("DELETE", "/v1/models")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert wrong.error["type"] == "invalid_request_error"
    assert server.get("/v1/completions").headers["allow"] == "POST, OPTIONS"
    assert server.request("OPTIONS", "/v1/completions").headers["allow"] == "POST, OPTIONS"
    assert server.request("OPTIONS", "/nothing").status == 404


def test_head_answers_like_get_without_the_body(server: Server) -> None:
    whole, head = server.get("/version"), server.request("HEAD", "/version")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert server.request("HEAD", "/v1/completions").status == 405


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x"',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=["empty", "cut", "open", "not utf-8", "nan", "deep", "long number"],
)
def test_malformed_json_is_a_400(server: Server, body: bytes) -> None:
    answer = server.post("/v1/completions", body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert "JSON" in answer.error["message"] or "nested" in answer.error["message"]


def test_other_content_types_are_a_415(server: Server) -> None:
    for kind, status in (("text/plain", 415), ("application/json; charset=utf-8", 400), ("application/a+json", 400)):
        assert server.post("/v1/completions", b"{", {"content-type": kind}).status == status


def test_request_ids_are_taken_when_sane_and_made_otherwise(server: Server) -> None:
    assert server.get("/version", {"x-request-id": "job-7_a.b:c"}).headers["x-request-id"] == "job-7_a.b:c"
    made = {server.get("/version").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for bad in ("a" * 129, "with space", 'quo"te', "caf\xe9"):
        answer = server.get("/version", {"x-request-id": bad})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_connections_are_kept_alive_through_errors(server: Server) -> None:
    connection = server.connection()
    statuses = [
        exchange(connection, "POST", "/nothing", {"a": 1}).status,
        exchange(connection, "POST", "/v1/completions", b"{").status,
        exchange(connection, "GET", "/health").status,
    ]
    first = connection.sock
    assert statuses == [404, 400, 200]
    assert exchange(connection, "GET", "/health").status == 200
    assert connection.sock is first is not None
    connection.close()


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.connect() as connection:
        head = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
        connection.sendall(head % b"/version" + head % b"/nothing" + head % b"/health")
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 3 or not answers.endswith(b"\r\n\r\n"):
            answers += connection.recv(1 << 16)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /caf\xe9 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["tls", "no path", "length", "negative", "both lengths", "two lengths", "chunk", "path"],
)
def test_what_is_not_http_is_a_400(server: Server, request_bytes: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes)
        answer = read_answer(connection)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert server.get("/health").status == 200


def test_keys_guard_all_but_the_health_of_the_server(guarded: Server) -> None:
    assert guarded.get("/health").status == 200
    assert guarded.get("/version").status == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEYS[0]}"},
        {"authorization": ""},
    ):
        for method, path in (("GET", "/v1/models"), ("POST", "/tokenize"), ("GET", "/nothing")):
            answer = guarded.request(method, path, headers=headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.error["type"] == "authentication_error"
    for key in KEYS:
        assert guarded.get("/v1/models", {"authorization": f"Bearer {key}"}).status == 200
        assert guarded.get("/v1/models", {"authorization": f"bearer  {key}"}).status == 200
        assert guarded.get("/nothing", {"authorization": f"Bearer {key}"}).status == 404
    assert not any(key in guarded.stderr for key in KEYS)


def test_keys_come_from_the_environment_too(start_server: Any, tiny_bundle: Path) -> None:
    process = start_server(tiny_bundle, environment={"VLLM_API_KEY": "from-vllm"})
    process.wait_until_ready()
    assert process.get("/v1/models").status == 401
    assert process.get("/v1/models", {"authorization": "Bearer from-vllm"}).status == 200


def test_other_origins_get_what_they_were_allowed(guarded: Server, server: Server) -> None:
    asking = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-a, x-b"}
    allowed = guarded.request("OPTIONS", "/v1/completions", headers=asking)
    assert (allowed.status, allowed.body) == (204, b"")
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert allowed.headers["access-control-allow-headers"] == "x-a, x-b"
    assert allowed.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = guarded.request("OPTIONS", "/v1/completions", headers={**asking, "origin": "https://other.example"})
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers
    assert guarded.get("/version", {"origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN
    assert guarded.get("/v1/models", {"origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN  # a 401
    assert "access-control-allow-origin" not in guarded.get("/version").headers
    assert "access-control-allow-origin" not in server.get("/version", {"origin": ORIGIN}).headers  # the default: none


def test_all_origins_with_and_without_credentials(start_server: Any, tiny_bundle: Path) -> None:
    free = start_server(tiny_bundle, "--allowed-origins", "*")
    assert free.get("/version", {"origin": ORIGIN}).headers["access-control-allow-origin"] == "*"
    strict = start_server(tiny_bundle, "--allowed-origins", "*", "--allow-credentials")
    headers = strict.get("/version", {"origin": ORIGIN}).headers
    assert (headers["access-control-allow-origin"], headers["access-control-allow-credentials"]) == (ORIGIN, "true")


def test_the_root_path_may_be_there_or_not(guarded: Server) -> None:
    for path, status in (("/models/tiny/version", 200), ("/version", 200), ("/models/tinyversion", 401)):
        assert guarded.get(path).status == status


def test_finished_requests_are_logged_in_one_line_each(guarded: Server, server: Server) -> None:
    guarded.get("/v1/mo%0adels%22", {"x-request-id": "logged-as-json"})
    record = json.loads(guarded.wait_for_line("logged-as-json"))
    assert record.items() >= {"event": "http", "method": "GET", "path": '/v1/mo\ndels"', "status": 401}.items()
    assert 0 <= record["seconds"] < 10
    server.get("/v1/mo%0adels%22%20x", {"x-request-id": "logged-as-text"})
    line = server.wait_for_line("logged-as-text")
    assert 'method=GET path="/v1/mo\\ndels\\" x" status=404 seconds=' in line
    assert re.search(r" client=127\.0\.0\.1:\d+$", line.rstrip())
    assert "/health" not in server.stderr


# What handlers may do, without a process: the ASGI messages that a server would send and get.


class Client:
    """One request to an application, and what came of it."""

    def __init__(self, app: App, *, leave_after: int | None = None, method: str = "GET") -> None:
        self._app = app
        self._leave_after = leave_after  # body messages
        self._gone = asyncio.Event()
        self._asked = 0
        self._scope = {
            "type": "http",
            "method": method,
            "path": "/x",
            "query_string": b"",
            "headers": [(b"x-request-id", b"id-1")],
            "client": ("192.0.2.1", 4242),
        }
        self.sent: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        self._asked += 1
        if self._asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if self._leave_after == len(self.bodies):
            self.leave()
            await asyncio.sleep(0)

    def leave(self) -> None:
        """Closes the connection."""
        self._gone.set()

    async def run(self) -> None:
        """Sends the request and lets the application answer it."""
        await self._app(self._scope, self._receive, self._send)

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.sent[0]["status"])

    @property
    def bodies(self) -> list[bytes]:
        """Pieces of the answer so far."""
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


def application(handler: Any, **options: Any) -> tuple[App, io.StringIO]:
    log = io.StringIO()
    state = ServerState(ServeOptions(**options), BootLedger())
    return App(state, {("GET", "/x"): handler}, RequestLog(stream=log)), log


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ApiError(409, "no", code="twice"), 409, "twice"),
        (PromptTooLongError("too long", hint="cut it"), 400, "context_length_exceeded"),
        (QueueFullError("full"), 429, "queue_full"),
        (VerificationError("/secret/path is damaged"), 500, "internal"),
        (ZeroDivisionError("secret detail"), 500, "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("streaming", [False, True])
def test_errors_of_handlers(error: Exception, status: int, code: str, streaming: bool) -> None:
    async def events() -> Any:
        for piece in list[bytes]():
            yield piece
        raise error

    async def handler(_request: HttpRequest) -> Response | EventStream:
        if streaming:
            return EventStream(events())
        raise error

    app, log = application(handler)
    client = Client(app)
    asyncio.run(client.run())
    assert client.status == status
    (body,) = map(json.loads, client.bodies)
    assert body["error"]["code"] == code
    assert "secret" not in str(body)
    if status == 500:
        assert "id-1" in body["error"]["message"]
        assert "secret" in log.getvalue()
        assert "Traceback" in log.getvalue()
    else:
        assert "Traceback" not in log.getvalue()


def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    async def events() -> Any:
        yield event({"n": 1})
        raise ZeroDivisionError("secret")

    async def handler(_request: HttpRequest) -> EventStream:
        return EventStream(events())

    app, _ = application(handler)
    client = Client(app)
    asyncio.run(client.run())
    assert client.status == 200
    pieces = b"".join(client.bodies).decode().split("\n\n")
    assert pieces[0] == 'data: {"n":1}'
    assert json.loads(pieces[1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert pieces[2:] == ["data: [DONE]", ""]
    assert client.sent[-1]["more_body"] is False


@pytest.mark.parametrize("streaming", [False, True])
def test_a_handler_is_cancelled_when_its_client_goes(streaming: bool) -> None:
    ends: list[str] = []

    async def work() -> Any:
        try:
            yield event(1)
            await asyncio.sleep(60)
        finally:
            ends.append("closed")

    async def handler(_request: HttpRequest) -> Response | EventStream:
        if streaming:
            return EventStream(work())
        clients[0].leave()
        async for _ in work():
            pass
        return Response()

    app, log = application(handler)
    clients = [Client(app, leave_after=1)]
    asyncio.run(asyncio.wait_for(clients[0].run(), 5))
    assert ends == ["closed"]
    assert f"status={200 if streaming else 499}" in log.getvalue()
    assert 'ended="client gone"' in log.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_has_a_limit_in_time(streaming: bool) -> None:
    async def work() -> Any:
        yield event(1)
        await asyncio.sleep(60)

    async def handler(_request: HttpRequest) -> Response | EventStream:
        if not streaming:
            await asyncio.sleep(60)
        return EventStream(work())

    app, _ = application(handler, request_timeout=0.05)
    client = Client(app)
    asyncio.run(client.run())
    assert client.status == (200 if streaming else 504)
    assert b'"code":"request_timeout"' in b"".join(client.bodies)
    assert client.sent[-1]["more_body"] is False
