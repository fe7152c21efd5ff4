"""Bundles that go to a real OCI registry and come back."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from paiton_aot.cli import main
from paiton_artifacts.errors import (
    BundleNotFoundError,
    DigestMismatchError,
    ManifestError,
    SignatureError,
    StoreError,
    StoreUnavailableError,
    TagMovedError,
    UntrustedBundleError,
)
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.cache import Cache
from paiton_artifacts.store.oci.registry import Registry as Repository
from paiton_artifacts.store.opening import open_store
from paiton_artifacts.store.push import Push, Pushed
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.trust.keys import load_signing_key
from paiton_artifacts.trust.policy import Policy
from paiton_artifacts.trust.sign import sign_bundle
from tests.cpu.store import bundles
from tests.cpu.store.proxy import Fault, Proxy, running
from tests.cpu.store.registry import Registry
from tests.cpu.trust.conftest import make_pair


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that anybody may use."""
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    """A proxy before the registry."""
    with running(registry.port) as made:
        yield made


@pytest.fixture
def url(proxy: Proxy, tmp_path: Path) -> str:
    """URL of an empty repository, through the proxy."""
    return f"oci://{proxy.url.removeprefix('http://')}/models/{tmp_path.name.replace('_', '-').lower()}"


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with chunks of several parts."""
    return bundles.make(tmp_path_factory.mktemp("large") / "one", mib=10, chunk=9 * bundles.MIB)


def push(path: Path, url: str, expected: str | None = None) -> Pushed:
    return Push(path, parse_address(url), expected=expected).run()


def get(url: str, path: str) -> bytes:
    """Reads from the registry as the specification says, without our code."""
    host, _, repository = url.removeprefix("oci://").partition("/")
    request = urllib.request.Request(f"http://{host}/v2/{repository}/{path}")
    request.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return bytes(answer.read())


def test_a_bundle_comes_back_byte_for_byte(url: str, tmp_path: Path, resolver: Resolver) -> None:
    signed = bundles.make(tmp_path / "signed")
    for name in ("model.sig", "sbom.cdx.json"):
        (signed / name).write_text(f"contents of {name}")
    pushed = push(signed, f"{url}:v1")
    assert str(pushed.address) == f"{url}@sha256:{pushed.digest}"
    found = resolver.cached(parse_address(f"{url}:v1"))
    assert bundles.contents(found) == bundles.contents(signed)
    output = resolver.download(parse_address(f"{url}@sha256:{pushed.digest}"), tmp_path / "output")
    assert bundles.contents(output) == bundles.contents(signed)


def test_the_artifact_is_what_modelpack_describes(bundle: Path, url: str) -> None:
    """https://github.com/modelpack/model-spec: docs/spec.md, docs/config.md."""
    pushed = push(bundle, f"{url}:v1")
    data = get(url, "manifests/v1")
    assert hashlib.sha256(data).hexdigest() == pushed.artifact
    manifest: dict[str, Any] = json.loads(data)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    config = json.loads(get(url, f"blobs/{manifest['config']['digest']}"))
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    kinds = {layer["mediaType"].removeprefix("application/vnd.cncf.model.") for layer in manifest["layers"]}
    assert kinds == {"weight.v1.raw", "weight.config.v1.raw", "code.v1.raw"}
    for layer in manifest["layers"]:
        blob = get(url, f"blobs/{layer['digest']}")
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == layer["digest"]
        assert len(blob) == layer["size"]


def test_an_artifact_that_another_tool_extracts_is_a_store(
    bundle: Path, url: str, tmp_path: Path, new_resolver: Callable[[str], Resolver]
) -> None:
    """Every layer at its file path, as ModelPack's tools lay them out."""
    pushed = push(bundle, f"{url}:v1")
    for layer in json.loads(get(url, "manifests/v1"))["layers"]:
        path = tmp_path / "extracted" / layer["annotations"]["org.cncf.model.filepath"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(get(url, f"blobs/{layer['digest']}"))
    found = new_resolver("a").cached(parse_address(f"file://{tmp_path}/extracted/any@sha256:{pushed.digest}"))
    assert bundles.contents(found) == bundles.contents(bundle)


def test_a_push_without_change_moves_next_to_nothing(bundle: Path, proxy: Proxy, url: str) -> None:
    first = push(bundle, f"{url}:v1")
    proxy.forget()
    second = push(bundle, f"{url}:v1")
    assert (second.uploaded, second.uploaded_bytes) == (0, 0)
    assert sum(one.sent for one in proxy.passed) == 0
    manifests = len(get(url, "manifests/v1"))
    assert sum(one.received for one in proxy.passed) <= 5 * manifests < first.bytes / 100


def test_only_what_changed_moves(bundle: Path, url: str, tmp_path: Path) -> None:
    push(bundle, f"{url}:v1")
    assert push(bundles.make(tmp_path / "rebuilt", changed=1), f"{url}:v2").uploaded == 1
    assert push(bundles.make(tmp_path / "other", code=b"other code"), f"{url}:gpu").uploaded == 1


def test_both_digests_pin(bundle: Path, url: str, tmp_path: Path) -> None:
    """That of the bundle's manifest, as in any store, and that of the OCI manifest, which other tools show."""
    pushed = push(bundle, f"{url}:v1")
    for number, digest in enumerate((pushed.digest, pushed.artifact)):
        strict = Resolver(Policy(), Cache(tmp_path / f"cache-{number}"))
        found = strict.cached(parse_address(f"{url}@sha256:{digest}"))
        assert bundles.contents(found) == bundles.contents(bundle)
        assert strict.digest == pushed.digest
    with pytest.raises(BundleNotFoundError, match="0000"):
        strict.cached(parse_address(f"{url}@sha256:{'0' * 64}"))


def test_the_policy_comes_before_any_blob(bundle: Path, proxy: Proxy, url: str, tmp_path: Path) -> None:
    pushed = push(bundle, f"{url}:v1")
    proxy.forget()
    with pytest.raises(UntrustedBundleError):
        Resolver(Policy(), Cache(tmp_path / "cache")).cached(parse_address(f"{url}:v1"))
    assert {one.path.rpartition("/")[2] for one in proxy.requests("/blobs/")} == {f"sha256:{pushed.digest}"}


def test_a_newer_signature_moves_alone_and_an_unsigned_push_keeps_it(url: str, tmp_path: Path) -> None:
    signed = bundles.make(tmp_path / "signed")
    push(signed, f"{url}:v1")
    (signed / "model.sig").write_text("a signature")
    (signed / "provenance.json").write_text("what was signed")
    assert push(signed, f"{url}:v1").uploaded == 0
    unsigned = bundles.make(tmp_path / "unsigned")
    (unsigned / "provenance.json").write_text("another build")
    pushed = push(unsigned, f"{url}:v2")
    store = open_store(url)
    for name, text in {"model.sig": b"a signature", "provenance.json": b"what was signed"}.items():
        assert store.read(f"manifests/sha256/{pushed.digest}.{name}", 100) == text


def test_a_copy_of_one_tag_has_its_companions(url: str, registry: Registry, tmp_path: Path, resolver: Resolver) -> None:
    """As `crane copy` makes it: without the tag of the digest."""
    signed = bundles.make(tmp_path / "signed")
    (signed / "model.sig").write_text("a signature")
    push(signed, f"{url}:v1")
    source, copied = Repository(url), Repository(f"oci://{registry.host}/copies/one")
    manifest = source.read_manifest("v1")
    for layer in [json.loads(manifest)["config"], *json.loads(manifest)["layers"]]:
        copied.put_blob(get(url, f"blobs/{layer['digest']}"))
    copied.put_manifest("v1", manifest)
    found = resolver.cached(parse_address(f"oci://{registry.host}/copies/one:v1"))
    assert bundles.contents(found) == bundles.contents(signed)


def test_a_trusted_signature_is_asked_for_and_counts(url: str, tmp_path: Path) -> None:
    signed = bundles.make(tmp_path / "signed")
    pair = make_pair(tmp_path, "key", ec.SECP256R1())
    sign_bundle(signed, load_signing_key(pair.private))
    push(signed, f"{url}:v1")
    trusting = Resolver(pair.policy(), Cache(tmp_path / "cache"))
    assert bundles.contents(trusting.cached(parse_address(f"{url}:v1"))) == bundles.contents(signed)
    stranger = make_pair(tmp_path, "stranger", ec.SECP256R1())
    with pytest.raises(SignatureError):
        Resolver(stranger.policy(), Cache(tmp_path / "other")).cached(parse_address(f"{url}:v1"))


def test_expected_tags(bundle: Path, url: str, tmp_path: Path) -> None:
    first = push(bundle, f"{url}:v1", expected="")
    second = bundles.make(tmp_path / "second", changed=2)
    with pytest.raises(TagMovedError, match=first.digest):
        push(second, f"{url}:v1", expected="")
    assert push(second, f"{url}:v1", expected=first.digest).replaced == first.digest


def test_commands(bundle: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(bundle), f"{url}:v1", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["oci_manifest"] == f"sha256:{hashlib.sha256(get(url, 'manifests/v1')).hexdigest()}"
    push(bundles.make(tmp_path / "second", changed=2), f"{url}:v2")
    push(bundle, f"{url}:v2")
    assert main(["ls", url, "--untagged", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["bundles"]
    name = url.rpartition("/")[2]
    assert [(row["name"], row["tag"]) for row in rows] == [(name, "v1"), (name, "v2"), (None, None)]
    assert main(["ls", url]) == 0
    assert main(["diff", f"{url}:v1", str(tmp_path / "second"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("{")[2].join("{ "))["new_bytes"] == bundles.MIB
    assert main(["gc", url]) == 3
    assert "collects its own garbage" in capsys.readouterr().err
    assert main(["ls", f"{url}/nothing"]) == 5


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", times=3, status=500), Fault("status", path="/manifests/", status=503)],
        [Fault("reset", times=3), Fault("reset", path="/manifests/")],
        [Fault("truncate", times=4), Fault("truncate", path="/manifests/")],
    ],
    ids=["errors", "resets", "truncated"],
)
def test_a_pull_gets_through(bundle: Path, proxy: Proxy, url: str, tmp_path: Path, faults: list[Fault]) -> None:
    pushed = push(bundle, f"{url}:v1")
    proxy.forget()
    proxy.faults = faults
    resolver = Resolver(Policy(allow_untrusted=True), Cache(tmp_path / "cache"))
    found = resolver.cached(parse_address(f"{url}:v1"))
    assert bundles.contents(found) == bundles.contents(bundle)
    assert not any(fault.times for fault in faults), "every fault has happened"
    if any(fault.kind == "truncate" for fault in faults):
        assert sum(one.received for one in proxy.requests("/blobs/")) < pushed.bytes * 1.1, "ranges take up the rest"


def test_damage_on_the_way_is_noticed(bundle: Path, proxy: Proxy, url: str, resolver: Resolver) -> None:
    pushed = push(bundle, f"{url}:v1")
    chunk = open_bundle(bundle).manifest.blobs[0].chunks[1].sha256
    proxy.faults = [Fault("corrupt", f"/blobs/sha256:{chunk}", times=2)]
    assert bundles.contents(resolver.cached(pushed.address)) == bundles.contents(bundle)
    proxy.faults = [Fault("corrupt", f"/blobs/sha256:{pushed.digest}")]
    with pytest.raises(DigestMismatchError, match=pushed.digest):
        Resolver(resolver.policy, Cache(resolver.cache.root / "other")).cached(pushed.address)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", "/uploads/", method, times=2, status=503) for method in ("POST", "PUT")],
        [Fault("reset", "/uploads/", method, times=2) for method in ("POST", "PUT")],
        [Fault("lose-answer", "/uploads/", "PUT", times=2), Fault("lose-answer", "/manifests/", "PUT")],
        [Fault("status", "/uploads/", "PUT", status=413)],
    ],
    ids=["errors", "resets", "lost answers", "bodies too large"],
)
def test_a_push_gets_through(
    bundle: Path, large: Path, proxy: Proxy, url: str, resolver: Resolver, faults: list[Fault]
) -> None:
    proxy.faults = faults
    for path, tag in ((large, "large"), (bundle, "small")):
        push(path, f"{url}:{tag}")
        assert bundles.contents(resolver.cached(parse_address(f"{url}:{tag}"))) == bundles.contents(path)
    assert not any(fault.times for fault in faults), "every fault has happened"
    if faults[0].status == 413:
        parts = [one.sent for one in proxy.requests("/uploads/", "PATCH")]
        assert len(parts) > 1
        assert max(parts) <= 8 * bundles.MIB


def test_a_killed_registry_loses_nothing(
    bundle: Path, tmp_path: Path, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "2")
    seen: list[str] = []

    def kill(_method: str, path: str) -> None:
        seen.append(path)
        if len(seen) == 20:
            server.kill()

    with Registry(tmp_path / "registry") as server:
        url = f"oci://{server.host}/one"
        with running(server.port) as proxy:
            proxy.on_request = kill
            with pytest.raises(StoreUnavailableError, match="failed 2 times"):
                push(bundle, f"oci://{proxy.url.removeprefix('http://')}/one:v1")
        server.start()
        pushed = push(bundle, f"{url}:v1")
        assert 0 < pushed.uploaded < pushed.objects, "what had arrived is not moved again"
        assert bundles.contents(resolver.cached(parse_address(f"{url}:v1"))) == bundles.contents(bundle)


def test_a_damaged_bundle_is_not_published(url: str, tmp_path: Path) -> None:
    damaged = bundles.make(tmp_path / "damaged")
    with (damaged / "blobs/rank-0.bin").open("r+b") as file:
        file.seek(bundles.MIB - 1)
        file.write(b"\0")
    with pytest.raises(DigestMismatchError, match=r"rank-0\.bin"):
        push(damaged, f"{url}:v1")
    with pytest.raises(StoreError):
        get_tags(url)


def get_tags(url: str) -> list[str]:
    store = open_store(url)
    assert isinstance(store, Repository)
    return store.tags()


def test_retries_are_bounded(bundle: Path, proxy: Proxy, url: str, resolver: Resolver, monkeypatch: Any) -> None:
    push(bundle, f"{url}:v1")
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "3")
    proxy.faults = [Fault("status", path="/manifests/v1", times=10**6, status=429, headers={"Retry-After": "0"})]
    proxy.forget()
    with pytest.raises(StoreUnavailableError, match=r"failed 3 times.*429"):
        resolver.cached(parse_address(f"{url}:v1"))
    assert len(proxy.requests("/manifests/v1")) == 3
    proxy.faults = [Fault("status", path="/manifests/v1", status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(StoreUnavailableError, match="3600 s"):
        resolver.cached(parse_address(f"{url}:v1"))


def test_something_elses_tag_is_said_so(bundle: Path, url: str, resolver: Resolver) -> None:
    push(bundle, f"{url}:v1")
    other = json.loads(get(url, "manifests/v1")) | {"artifactType": "application/vnd.other"}
    Repository(url).put_manifest("other", json.dumps(other).encode())
    with pytest.raises(ManifestError, match="other"):
        resolver.cached(parse_address(f"{url}:other"))


def test_a_cached_pin_needs_no_registry(bundle: Path, tmp_path: Path, resolver: Resolver) -> None:
    with Registry(tmp_path / "registry") as server:
        pushed = push(bundle, f"oci://{server.host}/one:v1")
        found = resolver.cached(pushed.address)
    assert resolver.cached(pushed.address) == found
    shutil.rmtree(found)
