"""What a store says about bundles: tags, manifests, and the files beside them. Blobs are left to `push` and `fetch`."""

from __future__ import annotations

import hashlib

from paiton_artifacts import container
from paiton_artifacts.errors import (
    BundleNotFoundError,
    DigestMismatchError,
    ManifestError,
    ObjectNotFoundError,
    TagMovedError,
)
from paiton_artifacts.limits import MAX_COMPANION_BYTES, MAX_MANIFEST_COMPRESSED
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.address import Address, is_registry
from paiton_artifacts.store.client import ABSENT, ObjectInfo, Readable, Store
from paiton_artifacts.store.keys import MAX_TAG_BYTES, TAGS, companion_key, manifest_key, tag_key
from paiton_artifacts.validate import parse_manifest

MAX_MANIFEST_FILE = container.HEADER.size + MAX_MANIFEST_COMPRESSED


def find_digest(store: Readable, address: Address) -> str:
    """Returns the manifest that an address means: what it pins, else what its tag holds now.

    In a registry the digest of an OCI manifest, which registries and their tools show, pins the bundle that is in it.

    Raises:
        BundleNotFoundError: there is no such tag.
        ManifestError: the tag holds something else.
        StoreError: the store fails.
    """
    if address.digest is not None:
        return _pinned(store, address.digest) if is_registry(address.root) else address.digest
    digest = read_tag(store, address.name, address.tag)
    if digest is None:
        raise BundleNotFoundError(f"{address}: there is no such bundle", hint="paiton-build ls lists what a store has")
    return digest


def _pinned(store: Readable, digest: str) -> str:
    from paiton_artifacts.store.oci.registry import Registry  # noqa: PLC0415  (http.client is heavy)

    try:
        return store.find_pinned(digest) if isinstance(store, Registry) else digest
    except ObjectNotFoundError:
        return digest


def read_tag(store: Readable, name: str, tag: str) -> str | None:
    """Returns the digest that a tag holds; None where there is no such tag.

    Raises:
        ManifestError: it holds something else.
        StoreError: the store fails.
    """
    key = tag_key(name, tag)
    try:
        data = store.read(key, MAX_TAG_BYTES)
    except ObjectNotFoundError:
        return None
    algorithm, _, digest = data.strip().partition(b":")
    text = digest.decode("ascii", "replace")
    if algorithm != b"sha256" or len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ManifestError(f"{store.url}/{key}: holds no digest of a manifest", hint="push the bundle again")
    return text


def write_tag(store: Store, name: str, tag: str, digest: str, expected: str | None = None) -> str | None:
    """Points a tag at a manifest.

    Args:
        store: where.
        name: of the bundle.
        tag: to write.
        digest: of the manifest, which must be in the store already.
        expected: what the tag must hold for it to be moved, "" if it must not exist. With a store that knows
            conditional writes nobody can come in between; with one that does not, only somebody who is very quick.
            None: whoever writes last wins.

    Returns:
        The digest that it held before, as far as we know.

    Raises:
        TagMovedError: it holds something else than `expected`.
        StoreError: the store fails.
    """
    key = tag_key(name, tag)
    data = f"sha256:{digest}\n".encode()
    before = store.info(key)
    held = read_tag(store, name, tag) if before else None
    if held == digest:
        return held
    if expected is None:
        store.put(key, data)
        return held
    # A write that is answered late may be repeated and then find its own bytes: what counts is what is there.
    written = (held or "") == expected and store.put(key, data, _condition(before))
    found = digest if written else read_tag(store, name, tag)
    if found != digest:
        raise tag_moved(f"{store.url}/{name}:{tag}", found, expected)
    return held


def tag_moved(what: str, found: str | None, expected: str) -> TagMovedError:
    """Returns the error of a tag that holds another digest than was expected, both "" or None for none."""
    holds = f"holds sha256:{found}" if found else "does not exist"
    wanted = f"sha256:{expected}" if expected else "nothing"
    return TagMovedError(
        f"{what} {holds}, but {wanted} was expected",
        hint="look at what was pushed meanwhile (paiton-build diff), then push with what it holds now",
    )


def _condition(before: ObjectInfo | None) -> str:
    """Returns the condition under which an object is still what it was."""
    return ABSENT if before is None else before.etag or ABSENT


def tags(store: Store) -> list[tuple[str, str, ObjectInfo]]:
    """Returns every tag of a store as name, tag and its object, in order.

    Raises:
        StoreError: the store fails or cannot list.
    """
    found = []
    for info in store.objects(TAGS):
        *_, name, tag = ("", *info.key.split("/"))
        found.append((name, tag, info))
    return sorted(found, key=lambda item: item[:2])


def read_manifest(store: Readable, digest: str, what: str) -> bytes:
    """Returns the bytes of a manifest file, whose SHA-256 is `digest`; nothing in them is parsed yet.

    Raises:
        BundleNotFoundError: the store does not have it.
        DigestMismatchError: the store holds other bytes at its key.
        StoreError: the store fails.
    """
    key = manifest_key(digest)
    try:
        data = store.read(key, MAX_MANIFEST_FILE)
    except ObjectNotFoundError as error:
        raise BundleNotFoundError(
            f"{what}: the store has no manifest sha256:{digest}", hint="check the digest, or push the bundle again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise DigestMismatchError(
            f"{store.url}/{key}: SHA-256 of its {len(data)} bytes is {found}",
            hint="the store or something in between damaged it; push the bundle again",
        )
    return data


def read_companion(store: Readable, digest: str, name: str) -> bytes | None:
    """Returns a file that lies beside a manifest (`layout.COMPANIONS`); None where there is none.

    Raises:
        FileSizeError: it is too large.
        StoreError: the store fails.
    """
    try:
        return store.read(companion_key(digest, name), MAX_COMPANION_BYTES)
    except ObjectNotFoundError:
        return None


def decode_manifest(data: bytes, what: str) -> Manifest:
    """Parses and checks the bytes of a manifest file.

    Raises:
        VerificationError: it is damaged or malformed.
        UnsupportedVersionError: it has another format version or runtime ABI.
    """
    return parse_manifest(container.unpack(container.MANIFEST, data, what), what)
