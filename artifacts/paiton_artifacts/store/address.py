"""URLs of bundles, `s3://bucket/prefix/name:tag` or `https://host/prefix/name@sha256:<hex>`, and of their stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from paiton_artifacts.errors import UnsupportedError, UsageError

DEFAULT_TAG = "latest"
REGISTRY = "oci"
SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "https", "http", "file", "memory", REGISTRY)
"""What obstore opens, and registries. `http` and `https` are read only; `memory` lives as long as the process."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+")  # as the OCI distribution specification has it
_FORM = "write s3://BUCKET/PREFIX/NAME:TAG or ...NAME@sha256:HEX, likewise with gs, az, https or file"


@dataclass(frozen=True, slots=True)
class Address:
    """One bundle in one store.

    Attributes:
        root: URL of the store without a slash at its end, `s3://bucket/prefix`; of a registry, with the repository.
        name: of the bundle; empty in a registry, where a repository has one.
        tag: what `:tag` says, `latest` where neither tag nor digest is given.
        digest: what `@sha256:` pins: SHA-256 of the manifest file in lower-case hex; None where it is not pinned. In
            a registry, that of the OCI manifest will do as well.
    """

    root: str
    name: str
    tag: str
    digest: str | None

    def __str__(self) -> str:
        place = f"{self.root}/{self.name}" if self.name else self.root
        return place + (f"@sha256:{self.digest}" if self.digest else f":{self.tag}")


def is_url(text: str) -> bool:
    """Says whether a text names something in a store rather than a path."""
    return "://" in text


def parse_address(text: str) -> Address:
    """Parses the URL of a bundle.

    Raises:
        UsageError: it is malformed.
        UnsupportedError: no store has this scheme.
    """
    _check(text)
    location, at, pin = text.partition("@")
    digest = None
    if at:
        algorithm, _, digest = pin.partition(":")
        if algorithm != "sha256" or not _DIGEST.fullmatch(digest):
            raise UsageError(f"{text}: {pin!r} is no digest of a manifest", hint="write @sha256: and 64 hex digits")
    root, _, last = location.rpartition("/")
    name, colon, tag = last.partition(":")
    if not _NAME.fullmatch(name) or root.endswith(("/", ":")) or ":" in urlsplit(root).path:
        raise UsageError(f"{text}: names no bundle", hint=_FORM)
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(f"{text}: {tag!r} is no tag", hint="up to 128 letters, digits, dots, dashes and underscores")
    if is_registry(text):
        return Address(_check_repository(f"{root}/{name}"), "", tag or DEFAULT_TAG, digest)
    return Address(root, name, tag or DEFAULT_TAG, digest)


def parse_root(text: str) -> str:
    """Returns the URL of a store without a slash at its end.

    Raises:
        UsageError: it is malformed.
        UnsupportedError: no store has this scheme.
    """
    _check(text)
    if "@" in text:
        raise UsageError(f"{text}: names a bundle, not a store", hint="leave out the name and what follows it")
    return _check_repository(text.rstrip("/")) if is_registry(text) else text.rstrip("/")


def is_registry(url: str) -> bool:
    """Says whether a URL names a repository of an OCI registry, rather than an object store."""
    return url.startswith(f"{REGISTRY}://")


def _check_repository(url: str) -> str:
    """Returns the URL of a repository; raises where no registry can have one of this name."""
    parts = urlsplit(url)
    if not parts.hostname or not _REPOSITORY.fullmatch(parts.path):
        raise UsageError(
            f"{url}: names no repository", hint="write oci://HOST/REPOSITORY:TAG, the repository in lower case"
        )
    return url


def _check(text: str) -> None:
    """Refuses what no store can have: a scheme that nobody knows, a query, a password."""
    parts = urlsplit(text.partition("@sha256:")[0])
    if parts.scheme not in SCHEMES or not is_url(text):
        known = ", ".join(SCHEMES)
        raise UnsupportedError(f"{text}: there are no stores of scheme {parts.scheme!r}", hint=f"one of {known}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname or ''}...: a URL of a store has no query, fragment or password",
            hint="credentials come from the environment: docs/store.md",
        )
    if not parts.netloc and not parts.path.strip("/"):
        raise UsageError(f"{text}: names no store", hint=_FORM)
