"""Clients that send too much, too slowly, or go away: each is answered or cut, and the server is as before."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cpu.server.server_process import SECONDS, Server, exchange, open_files, read_all, read_answer

HEADER_SECONDS = 0.6
BODY_SECONDS = 0.5
SEND_SECONDS = 0.5
MAX_BYTES = 20_000
LONG = {"prompt": "a", "max_tokens": 4000, "stream": True, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def strict(tiny_bundle: Path) -> Iterator[Server]:
    """A server with little patience."""
    words = ["--header-timeout", str(HEADER_SECONDS), "--body-timeout", str(BODY_SECONDS)]
    words += ["--send-timeout", str(SEND_SECONDS), "--max-request-bytes", str(MAX_BYTES)]
    process = Server(tiny_bundle, *words)
    try:
        yield process.wait_until_ready()
    finally:
        process.close()


def wait_for_load(server: Server, load: int) -> None:
    deadline = time.monotonic() + SECONDS
    while server.get("/load").json() != {"server_load": load}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nhost: x\r\n", b"\r\n"],
    ids=["", "path", "headers", "crlf"],
)
def test_headers_that_do_not_end_are_cut(strict: Server, beginning: bytes) -> None:
    began = time.monotonic()
    with strict.connect() as connection:
        connection.sendall(beginning)
        answer = read_answer(connection)
        assert connection.recv(1) == b""
    assert (answer.status, answer.error["type"]) == (408, "invalid_request_error")
    assert HEADER_SECONDS * 0.9 < time.monotonic() - began < SECONDS / 2


def test_dripping_headers_are_cut(strict: Server) -> None:
    """One byte at a time restarts no clock, neither on a new connection nor between two requests."""
    for requests in (0, 1):
        with strict.connect() as connection:
            for _ in range(requests):
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            connection.settimeout(0.05)
            data = drip(connection, b"GET /" + b"a" * 1000)
        assert data.startswith(b"HTTP/1.1 408 ")
        assert HEADER_SECONDS * 0.9 < time.monotonic() - began < SECONDS / 2


def drip(connection: socket.socket, data: bytes) -> bytes:
    """Sends byte by byte, one each time that nothing came for a while; returns what came at last."""
    for byte in data:
        connection.sendall(bytes([byte]))
        try:
            return connection.recv(1 << 16)
        except TimeoutError:
            continue
    return b""


def test_many_slow_clients_stop_nobody(strict: Server) -> None:
    before = open_files(strict.process.pid)
    slow = [strict.connect() for _ in range(200)]
    for connection in slow:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
    assert strict.get("/health").status == 200
    for connection in slow:
        read_all(connection)
        connection.close()
    assert open_files(strict.process.pid) <= before + 1  # a connection of another test may just have gone


def test_endless_headers_are_cut(strict: Server) -> None:
    with strict.connect() as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for number in range(10_000):
                connection.sendall(b"x-%d: " % number + b"y" * 1000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        data = read_all(connection)
    assert data == b"" or data.startswith(b"HTTP/1.1 431 ")  # the reset may overtake the answer
    assert strict.get("/health").status == 200


def test_large_headers_in_one_piece_are_a_431(strict: Server) -> None:
    with strict.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000)
        assert read_answer(connection).status == 431


def test_large_bodies_are_a_413(strict: Server) -> None:
    for size, status in ((MAX_BYTES, 400), (MAX_BYTES + 1, 413), (10_000_000, 413)):
        answer = strict.post("/tokenize", b"[" + b" " * (size - 2) + b"]")
        assert answer.status == status
        assert answer.error["type"] == "invalid_request_error"
    assert answer.error["code"] == "request_too_large"
    assert str(MAX_BYTES) in answer.error["message"]


def test_large_bodies_without_a_length_are_a_413(strict: Server) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        yield from (b"[" * 1000 for _ in range(count))

    for count, status in ((20, 400), (21, 413), (10_000, 413)):
        connection = strict.connection()
        connection.request(
            "POST", "/tokenize", pieces(count), {"content-type": "application/json"}, encode_chunked=True
        )
        response = connection.getresponse()
        assert response.status == status
        assert json.loads(response.read())["error"]["type"] == "invalid_request_error"
        connection.close()


def test_a_client_that_asks_first_never_sends_a_large_body(strict: Server) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    with strict.connect() as connection:
        connection.sendall(head % 100_000_000)
        status = connection.recv(1 << 16)
        assert status.startswith(b"HTTP/1.1 413 ")
    with strict.connect() as connection:
        connection.sendall(head % 2)
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"[]")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_does_not_come_is_a_408(strict: Server) -> None:
    with strict.connect() as connection:
        began = time.monotonic()
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = read_answer(connection)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert time.monotonic() - began > BODY_SECONDS * 0.9
    wait_for_load(strict, 0)


def test_a_client_that_leaves_within_its_body(strict: Server) -> None:
    with strict.connect() as connection:
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nhost: x\r\nx-request-id: left-early\r\ncontent-length: 9\r\n\r\n{"
        )
    assert "status=499" in strict.wait_for_line("left-early")


def test_a_client_that_leaves_a_stream_stops_the_generation(smollm2_server: Server) -> None:
    server = smollm2_server
    with server.stream("/v1/completions", LONG, {"x-request-id": "left-stream"}) as events:
        assert events.status == 200
        for _, data in zip(range(3), events, strict=False):
            json.loads(data)
        assert server.get("/load").json() == {"server_load": 1}
    assert 'ended="client gone"' in server.wait_for_line("http id=left-stream")
    assert "finish_reason=abort" in server.wait_for_line("generated id=left-stream")
    wait_for_load(server, 0)


def test_a_client_that_leaves_before_its_answer_stops_the_generation(smollm2_server: Server) -> None:
    server = smollm2_server
    body = json.dumps({**LONG, "stream": False}).encode()
    with server.connect() as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: left-wait\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_for_load(server, 1)
    assert "status=499" in server.wait_for_line("http id=left-wait")
    assert "finish_reason=abort" in server.wait_for_line("generated id=left-wait")
    wait_for_load(server, 0)


def test_a_client_that_does_not_read_is_cut(strict: Server) -> None:
    """Its answers fill the socket's buffers and then ours, until one cannot be sent."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(strict.address)
        deadline = time.monotonic() + SECONDS
        while not is_stuck(strict):
            assert time.monotonic() < deadline
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        wait_for_load(strict, 0)
        data = read_all(connection)
    whole = len(strict.get("/openapi.json").body)
    answers = data.split(b"HTTP/1.1 200 OK")[1:]
    assert len(answers) > 1
    assert len(answers[-1]) < whole < len(answers[0])
    assert strict.get("/health").status == 200


def is_stuck(server: Server) -> bool:
    """Whether a request is being answered, and still is a while later."""
    for _ in range(5):
        if server.get("/load").json() == {"server_load": 0}:
            return False
        time.sleep(0.02)
    return True


def test_too_many_requests_ahead_of_their_answers_are_cut(smollm2_server: Server) -> None:
    server = smollm2_server
    body = json.dumps({**LONG, "stream": False}).encode()
    with server.connect() as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body + b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        assert read_answer(connection).status == 400
        assert read_all(connection) == b""
    wait_for_load(server, 0)


def test_a_client_that_sends_ahead_and_leaves_stops_the_first_of_its_requests(smollm2_server: Server) -> None:
    """The protocol below knows of the last one only."""
    server = smollm2_server
    body = json.dumps({**LONG, "stream": False}).encode()
    with server.connect() as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: ahead\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body + b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        wait_for_load(server, 1)
    assert "status=499" in server.wait_for_line("http id=ahead")
    assert "finish_reason=abort" in server.wait_for_line("generated id=ahead")
    wait_for_load(server, 0)


WORDS = (
    *(b"\r\n", b"\0", b"\xff", b"chunked", b":", b" ", b"\t", b"%00", b"%zz", b"//", b"*", b"?a=%ff", b"#", b"-1"),
    *(b"content-length: 99999999999999999999\r\n", b"transfer-encoding: gzip, chunked\r\n", b"HTTP/9.9"),
    *(b"x-request-id: \xe9\r\n", b"authorization: Bearer \xff\r\n", b"connection: close\r\n", b"http://h:99999/"),
)
WHOLE = (
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b'POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"prompt": "a"}',
    b'POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nf\r\n{"prompt": "a"}\r\n0\r\n\r\n',
    b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\norigin: http://a\r\naccess-control-request-method: GET\r\n\r\n",
    b"GET /v1/models/a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n[1,2]",
)


def damaged(draw: random.Random) -> bytes:
    """Returns a request with up to four random changes."""
    data = bytearray(draw.choice(WHOLE))
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(data))
        match draw.randrange(3):
            case 0:
                data[at:at] = draw.choice(WORDS)
            case 1:
                del data[at : at + draw.randint(1, 8)]
            case 2:
                data[at] = draw.randrange(256)
    return bytes(data)


def test_damaged_requests_are_never_a_5xx(strict: Server) -> None:
    draw = random.Random(7)
    seen: set[bytes] = set()
    for _ in range(100):
        data = damaged(draw)
        with strict.connect() as connection:
            connection.settimeout(0.02)
            connection.sendall(data)
            answer = b""
            try:
                while part := connection.recv(1 << 16):
                    answer += part
            except (TimeoutError, ConnectionResetError):
                pass
        statuses = re.findall(rb"HTTP/1\.1 (\d)\d\d ", answer)
        assert b"5" not in statuses, (data, answer)
        seen.update(statuses)
    assert seen >= {b"2", b"4"}
    assert "Traceback" not in strict.stderr
    wait_for_load(strict, 0)


def test_a_small_error_leaves_the_connection_open_and_a_large_one_closes_it(strict: Server) -> None:
    connection = strict.connection()
    assert exchange(connection, "POST", "/nothing", b"x" * 1000).status == 404
    first = connection.sock
    large = exchange(connection, "POST", "/nothing", b"x" * 300_000)
    assert connection.sock is not first or large.headers.get("connection") == "close"
    assert large.status == 404
    connection.close()
