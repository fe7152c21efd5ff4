"""How a server begins and ends, as a process: what clients see meanwhile, and what its parent gets."""

from __future__ import annotations

import datetime as dt
import http.client
import ipaddress
import json
import shutil
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from paiton_runtime.cli import main
from paiton_runtime.ledger import STAGES
from tests.cpu.server.conftest import StartServer
from tests.cpu.server.server_process import SECONDS, Server

SOON = 20.0
"""Seconds within which a server ends that has nothing to wait for; the machine may be busy."""


def completion(tokens: int) -> dict[str, Any]:
    return {"prompt": "One, two", "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True}


def test_a_booting_server_says_what_it_does(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    """The boot is held where it first opens the encoder file, by the process itself, until the gate is there."""
    gate = tmp_path / "gate"
    server = start_server(tiny_bundle, hold=(gate, "encoder.bin"))
    deadline = time.monotonic() + SECONDS
    while "booting: open" not in server.get("/health").error["message"]:
        assert time.monotonic() < deadline
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/tokenize")):
        answer = server.request(method, path, {"prompt": "a"} if method == "POST" else None)
        assert (answer.status, answer.error["type"]) == (503, "service_unavailable")
        assert answer.error["code"] == "booting"
        assert answer.headers["retry-after"] == "1"
    assert server.get("/version").status == 200
    assert server.get("/nothing").status == 404
    assert "total" not in server.stderr
    gate.touch()
    server.wait_until_ready()
    assert server.get("/v1/models").status == 200
    ledger = [line[:18].strip() for line in server.stderr.splitlines()]
    assert [line for line in ledger if line in STAGES] == [stage for stage in STAGES if stage != "first token"]
    assert "first token" not in stages(server)
    assert server.post("/v1/completions", {**completion(1), "stream": False}).status == 200
    assert 0 < stages(server)["total"] < stages(server)["first token"] < time.monotonic() - server.started + 0.1


def stages(server: Server) -> dict[str, float]:
    """Returns when each stage of the boot ended, in seconds since the process was started."""
    return {row["stage"]: row["end"] for row in server.get("/boot").json()["stages"]}


def test_a_signal_ends_a_boot_at_once(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        server = start_server(tiny_bundle, hold=(tmp_path / "gate", "encoder.bin"))
        assert server.get("/health").status == 503
        server.signal(number)
        assert server.wait(SOON) == code
        assert "Traceback" not in server.stderr


def test_a_boot_that_fails_ends_the_server(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    absent = start_server(tmp_path / "absent.bundle")
    assert absent.wait() == 5
    damaged = tmp_path / "damaged.bundle"
    shutil.copytree(tiny_bundle, damaged)
    with (damaged / "tokenizer" / "encoder.bin").open("r+b") as file:
        file.write(b"X")
    server = start_server(damaged)
    assert server.wait() == 4
    for process, word in ((absent, "absent.bundle"), (server, "encoder.bin: SHA-256")):
        last = process.stderr.splitlines()[-1]
        assert last.startswith("paiton-run: error: ")
        assert word in last
        assert "Traceback" not in process.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server(start_server: StartServer, tiny_bundle: Path, number: int) -> None:
    server = start_server(tiny_bundle).wait_until_ready()
    idle = server.connection()
    idle.connect()
    began = time.monotonic()
    server.signal(number)
    assert server.wait(SOON) == 0
    assert time.monotonic() - began < SOON
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_drain_lets_streams_end_and_takes_no_more(start_server: StartServer, smollm2_bundle: Path) -> None:
    server = start_server(smollm2_bundle).wait_until_ready()
    with server.stream("/v1/completions", completion(100)) as events:
        next(iter(events))
        server.signal(signal.SIGTERM)
        server.wait_for_line("drain")
        for method, path in (("GET", "/health"), ("POST", "/v1/completions")):
            answer = server.request(method, path, completion(1) if method == "POST" else None)
            assert (answer.status, answer.error["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
        assert server.process.poll() is None
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert sum(bool(json.loads(data)["choices"]) for data in rest[:-1]) >= 90
    assert server.wait(SOON) == 0


@pytest.mark.parametrize(("flag", "code"), [("0.3", 143), ("0", 143)], ids=["soon", "at once"])
def test_a_drain_has_an_end(start_server: StartServer, smollm2_bundle: Path, flag: str, code: int) -> None:
    server = start_server(smollm2_bundle, "--shutdown-timeout", flag).wait_until_ready()
    with server.stream("/v1/completions", completion(8000)) as events:
        next(iter(events))
        server.signal(signal.SIGTERM)
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["code"] == "aborted"
    assert server.wait(SOON) == code


@pytest.mark.parametrize(
    ("first", "second", "code"), [(signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGTERM, signal.SIGINT, 130)]
)
def test_a_second_signal_aborts(
    start_server: StartServer, smollm2_bundle: Path, first: int, second: int, code: int
) -> None:
    server = start_server(smollm2_bundle).wait_until_ready()
    with server.stream("/v1/completions", completion(8000)) as events:
        next(iter(events))
        server.signal(first)
        server.wait_for_line("drain")
        server.signal(second)
        assert server.wait(SOON) == code
        events.read()
    assert "Traceback" not in server.stderr


def test_an_engine_that_fails_tells_its_requests_and_ends_the_process(
    start_server: StartServer, smollm2_bundle: Path
) -> None:
    """No step of this model takes as little as the watchdog allows here."""
    server = start_server(smollm2_bundle, "--step-timeout", "0.001").wait_until_ready()
    answers: list[int] = []

    def ask() -> None:
        answers.append(server.post("/v1/completions", {**completion(8), "stream": False}).status)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(answers) == 3
    assert set(answers) <= {500, 503}
    assert server.wait(SOON) == 1
    assert "paiton-run: error: the engine has failed: " in server.stderr
    assert "--step-timeout" in server.stderr


def test_a_port_that_is_taken(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_bundle), "--host", "127.0.0.1", "--port", str(port)]) == 7
    message = capfd.readouterr().err
    assert message == (
        f"paiton-run: error: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "hint: choose another with --port, or 0 for a free one\n"
    )
    for address in ("256.0.0.1", "192.0.2.1"):  # no address, and one for documentation, which no machine has
        assert main(["serve", str(tiny_bundle), "--host", address]) == 2
        assert address in capfd.readouterr().err


def test_every_address_is_the_default(start_server: StartServer, tiny_bundle: Path) -> None:
    server = start_server(tiny_bundle, "--port", "0")
    assert server.url.startswith("http://0.0.0.0:")
    assert server.get("/version").status == 200
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        server = start_server(tiny_bundle, "--port", "0", "--host", "::")
        port = int(server.url.removeprefix("http://[::]:"))
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), SECONDS):
                pass


def test_a_unix_socket(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start_server(tiny_bundle, "--uds", path).wait_until_ready()
    assert server.url == f"unix:{path}"
    assert server.get("/v1/models").status == 200
    assert "client=" in server.wait_for_line("/v1/models")
    assert main(["serve", str(tiny_bundle), "--uds", str(path)]) == 7
    server.signal(signal.SIGKILL)
    server.wait()
    assert path.is_socket()
    again = start_server(tiny_bundle, "--uds", path).wait_until_ready()
    assert again.stop() == 0
    assert not path.exists()
    path.write_text("somebody's file")
    assert main(["serve", str(tiny_bundle), "--uds", str(path)]) == 7
    assert path.read_text() == "somebody's file"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes a certificate for 127.0.0.1 that signs itself; returns it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "paiton test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return files


def test_tls_and_certificates_of_clients(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    own = ("--ssl-certfile", certificate, "--ssl-keyfile", key)
    server = start_server(tiny_bundle, *own, "--ssl-ca-certs", certificate, "--ssl-cert-reqs", "2")
    assert server.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(certificate))
    with pytest.raises((ssl.SSLError, ConnectionResetError, http.client.RemoteDisconnected)):
        server.request("GET", "/version", context=context)
    context.load_cert_chain(certificate, key)
    assert server.request("GET", "/version", context=context).status == 200
    with server.connect() as plain:
        plain.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP/1.1" not in plain.recv(1 << 16)


def test_a_stream_over_tls(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server: Server = start_server(tiny_bundle, "--ssl-certfile", certificate, "--ssl-keyfile", key)
    context = ssl.create_default_context(cafile=str(certificate))
    while server.request("GET", "/health", context=context).status == 503:
        time.sleep(0.02)
    answer = server.request("POST", "/v1/completions", completion(8), context=context)
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n")
