"""Logins at a real registry: user and password, tokens of a real token service, and who gets to see them."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from paiton_artifacts.errors import StoreAccessError, StoreError, UsageError
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.oci.credentials import Credentials, find_credentials
from paiton_artifacts.store.oci.registry import Registry as Repository
from paiton_artifacts.store.oci.transport import speaks_plainly
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.resolve import Resolver
from tests.cpu.store import bundles
from tests.cpu.store.registry import HTPASSWD, PASSWORD, USER, Registry

AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yields the URL of a server on a thread of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration, which is empty."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that asks for user and password."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    with Registry(folder, {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}) as server:
        yield server


def test_user_and_password(
    bundle: Path, guarded: Registry, docker: Path, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_address(f"oci://{guarded.host}/tiny:v1")
    with pytest.raises(StoreAccessError, match="asks for a login"):
        Push(bundle, address).run()
    docker.write_text(json.dumps({"auths": {guarded.host: {"auth": AUTH}}}))
    Push(bundle, address).run()
    docker.unlink()
    monkeypatch.setenv("PAITON_REGISTRY_USER", USER)
    monkeypatch.setenv("PAITON_REGISTRY_PASSWORD", "perch")
    with pytest.raises(StoreAccessError, match="credentials are wrong") as caught:
        resolver.cached(address)
    assert "perch" not in str(caught.value)
    monkeypatch.setenv("PAITON_REGISTRY_PASSWORD", PASSWORD)
    fresh = Resolver(resolver.policy, resolver.cache)
    assert bundles.contents(fresh.cached(address)) == bundles.contents(bundle)


class TokenService:
    """Gives tokens to one user, and for reading to anybody; the registry trusts its certificate.

    https://distribution.github.io/distribution/spec/auth/jwt/ describes them.

    Args:
        folder: for the certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.bundle = folder / "certificate.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        self.lifetime = 300
        self.given: list[str] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                known = self.headers.get("Authorization") == f"Basic {AUTH}"
                query = parse_qs(urlsplit(self.path).query)
                self.answer(query, known=known)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(form, known=form.get("refresh_token") == ["identity"])

            def answer(self, asked: dict[str, list[str]], *, known: bool) -> None:
                scope = asked.get("scope", [""])[0]
                if not known and "push" in scope:
                    self.send_error(401)
                    return
                body = json.dumps({"token": service.token(scope, asked["service"][0])}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.handler = Handler

    def token(self, scope: str, service: str) -> str:
        """Returns a JSON web token that grants a scope."""
        self.given.append(scope)
        now = int(time.time())
        kind, name, actions = scope.split(":") if scope else ("", "", "")
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if scope else []
        claims = {
            "iss": "tester",
            "sub": USER,
            "aud": service,
            "exp": now + self.lifetime,
            "nbf": now - 60,
            "iat": now,
            "jti": str(len(self.given)),
            "access": access,
        }
        header = {"typ": "JWT", "alg": "ES256", "x5c": self.chain}
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        r, s = utils.decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, TokenService]]:
    """A registry that wants tokens, and the service that gives them."""
    folder = tmp_path_factory.mktemp("tokens")
    service = TokenService(folder)
    with serving(service.handler) as url:
        auth = {
            "realm": f"{url}/token",
            "service": "registry",
            "issuer": "tester",
            "rootcertbundle": str(service.bundle),
        }
        with Registry(folder, {"token": auth}) as server:
            yield server, service


def test_tokens(bundle: Path, tokens: tuple[Registry, TokenService], docker: Path, resolver: Resolver) -> None:
    server, service = tokens
    address = parse_address(f"oci://{server.host}/org/tiny:v1")
    with pytest.raises(StoreAccessError, match=r"no token for repository:org/tiny:(pull,push|push,pull)"):
        Push(bundle, address).run()
    for entry in ({"auth": AUTH}, {"identitytoken": "identity"}):
        docker.write_text(json.dumps({"auths": {f"https://{server.host}": entry}}))
        Push(bundle, address).run()
    docker.unlink()
    service.given.clear()
    assert bundles.contents(resolver.cached(address)) == bundles.contents(bundle)  # as anybody
    assert service.given == ["repository:org/tiny:pull"], "one token does for all"


def test_an_expired_token_is_replaced(tokens: tuple[Registry, TokenService], docker: Path) -> None:
    server, service = tokens
    docker.write_text(json.dumps({"auths": {server.host: {"auth": AUTH}}}))
    service.lifetime = -120  # the registry allows for a minute of skew
    repository = Repository(f"oci://{server.host}/org/expired")
    try:
        with pytest.raises(StoreAccessError):
            repository.put_blob(b"early")
    finally:
        service.lifetime = 300
    assert repository.put_blob(b"late")


def test_redirects_do_not_see_the_login(bundle: Path, guarded: Registry, docker: Path, resolver: Resolver) -> None:
    """Registries send those who read blobs to an object store, with a signature in the URL."""
    docker.write_text(json.dumps({"auths": {guarded.host: {"auth": AUTH}}}))
    address = Push(bundle, parse_address(f"oci://{guarded.host}/moved:v1")).run().address
    seen: list[tuple[str, str | None]] = []
    behind = Repository(f"oci://{guarded.host}/moved")

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            data = behind.read(f"blobs/sha256/{self.path.rpartition('/')[2]}", 1 << 24)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with serving(Handler) as elsewhere:

        class Redirecting(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if "Authorization" not in self.headers:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="test"')
                elif "/blobs/" in self.path:
                    self.send_response(307)
                    self.send_header("Location", f"{elsewhere}/objects/{self.path.rpartition(':')[2]}")
                else:
                    data = behind.read_manifest(self.path.rpartition("/")[2])
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    return
                self.send_header("Content-Length", "0")
                self.end_headers()

        with serving(Redirecting) as front:
            host = front.removeprefix("http://")
            docker.write_text(json.dumps({"auths": {name: {"auth": AUTH} for name in (host, guarded.host)}}))
            found = resolver.cached(parse_address(f"oci://{host}/moved@sha256:{address.digest}"))
    assert bundles.contents(found) == bundles.contents(bundle)
    assert len(seen) > 5
    assert not any(login for _, login in seen)


def test_only_this_machine_is_spoken_to_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speaks_plainly("localhost:5000")
    assert speaks_plainly("127.0.0.1:5000")
    assert speaks_plainly("[::1]:5000")
    assert not speaks_plainly("registry.example:5000")
    assert not speaks_plainly("127.0.0.1.example")
    assert not speaks_plainly("10.0.0.1:5000")
    monkeypatch.setenv("PAITON_REGISTRY_PLAIN_HTTP", "10.0.0.1:5000, other")
    assert speaks_plainly("10.0.0.1:5000")
    assert not speaks_plainly("10.0.0.1")


def test_a_registry_without_tls_elsewhere_gets_nothing(
    guarded: Registry, docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of this machine that does not say so stands for another machine."""
    monkeypatch.setattr("paiton_artifacts.store.oci.transport.speaks_plainly", lambda _: False)
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "1")
    docker.write_text(json.dumps({"auths": {guarded.host: {"auth": AUTH}}}))
    with pytest.raises(StoreError, match=r"SSLError|WRONG_VERSION_NUMBER"):
        Repository(f"oci://{guarded.host}/tiny").find("v1")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"auths": {"host": {"auth": AUTH}}}, Credentials(USER, PASSWORD)),
        ({"auths": {"https://host": {"username": "a", "password": "b"}}}, Credentials("a", "b")),
        ({"auths": {"host": {"identitytoken": "t"}}}, Credentials("", "", "t")),
        ({"auths": {"other": {"auth": AUTH}}}, None),
        ({"credHelpers": {"host": "good"}}, Credentials("helped", "secret of host")),
        ({"auths": {"host": {}}, "credsStore": "good"}, Credentials("helped", "secret of host")),
        ({"credHelpers": {"host": "empty"}}, None),
        ({"credHelpers": {"host": "token"}}, Credentials("", "", "identity")),
    ],
)
def test_where_credentials_come_from(
    config: dict[str, Any], expected: Credentials | None, docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helpers are programs, as github.com/docker/docker-credential-helpers describes them."""
    answers = {
        "good": """read host; echo '{"Username": "helped", "Secret": "secret of '"$host"'"}'""",
        "token": """echo '{"Username": "<token>", "Secret": "identity"}'""",
        "empty": "echo credentials not found in native keychain; exit 1",
    }
    for name, script in answers.items():
        path = docker.parent / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}{os.pathsep}{os.environ['PATH']}")
    docker.write_text(json.dumps(config))
    assert find_credentials("host") == expected


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{", UsageError),
        ("[]", UsageError),
        ('{"auths": {"host": {"auth": "?"}}}', UsageError),
        ('{"credHelpers": {"host": "../../bin/sh"}}', UsageError),
        ('{"credHelpers": {"host": "does-not-exist"}}', StoreAccessError),
    ],
)
def test_broken_configurations(config: str, error: type[Exception], docker: Path) -> None:
    docker.write_text(config)
    with pytest.raises(error):
        find_credentials("host")


def test_half_a_login_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_REGISTRY_USER", "x")
    with pytest.raises(UsageError, match="only one"):
        find_credentials("host")


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("user", "secret", "secret"))
