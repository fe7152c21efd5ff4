"""URLs of bundles and of stores."""

from __future__ import annotations

import pytest

from paiton_artifacts.errors import UnsupportedError, UsageError
from paiton_artifacts.store.address import Address, parse_address, parse_root

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/name:v1", Address("s3://bucket", "name", "v1", None)),
        ("s3://bucket/a/b/name", Address("s3://bucket/a/b", "name", "latest", None)),
        (f"gs://bucket/name@sha256:{HEX}", Address("gs://bucket", "name", "latest", HEX)),
        (f"https://host:8443/x/name:v1@sha256:{HEX}", Address("https://host:8443/x", "name", "v1", HEX)),
        ("http://127.0.0.1:8000/name", Address("http://127.0.0.1:8000", "name", "latest", None)),
        ("file:///srv/models/name:v1", Address("file:///srv/models", "name", "v1", None)),
        ("oci://host:5000/a/b-c:v1", Address("oci://host:5000/a/b-c", "", "v1", None)),
        (f"oci://host/name@sha256:{HEX}", Address("oci://host/name", "", "latest", HEX)),
    ],
)
def test_parts(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == parse_address(text.replace(":v1@", "@"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3:///name",
        "s3://bucket/name:",
        "s3://bucket/na me",
        "s3://bucket/..:v1",
        "s3://bucket/name:v/1",
        "s3://bucket/name@sha256:12",
        f"s3://bucket/name@sha512:{HEX}",
        f"s3://bucket/name@sha256:{HEX.upper()}",
        "https://user:password@host/name:v1",
        "https://host/name:v1?signature=x",
        "https://host/name#part",
        "oci://host",
        "oci://host:5000",
        "oci://host/Upper:v1",
        "oci://host/a//b:v1",
        "oci://host/-a",
        "oci://user:password@host/name:v1",
    ],
)
def test_what_names_no_bundle_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "password" not in str(caught.value) or "user:" not in str(caught.value), "secrets are not repeated"


@pytest.mark.parametrize("text", ["ftp://host/name", "docker://host/name:v1", "C:/bundle", "://bucket/name"])
def test_unknown_schemes(text: str) -> None:
    with pytest.raises(UnsupportedError):
        parse_address(text)


def test_roots() -> None:
    assert parse_root("s3://bucket/prefix/") == "s3://bucket/prefix"
    with pytest.raises(UsageError):
        parse_root(f"s3://bucket/name@sha256:{HEX}")
