"""Makes blobs that a registry has a bundle: its OCI manifest, under the tag of its digest and a tag of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from paiton_artifacts.errors import ManifestError, ObjectNotFoundError
from paiton_artifacts.layout import SIGNATURE_NAME
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.oci.artifact import Layer, write_artifact
from paiton_artifacts.store.oci.registry import Registry, digest_tag
from paiton_artifacts.store.remote import tag_moved


@dataclass(frozen=True, slots=True)
class Published:
    """What a tag held before, None if nothing; the digest of the OCI manifest that it holds now; and bytes uploaded."""

    replaced: str | None
    artifact: str
    uploaded_bytes: int


def publish(
    registry: Registry,
    manifest: Manifest,
    data: bytes,
    companions: Mapping[str, bytes],
    tag: str,
    expected: str | None,
) -> Published:
    """Writes the OCI manifest of a bundle whose chunks and files are there, and points tags at it.

    Args:
        registry: where.
        manifest: of the bundle.
        data: the bytes of its file.
        companions: what lies beside it, by name.
        tag: to write.
        expected: what it must hold now (`remote.write_tag`). Registries have no conditional writes, so somebody who is
            quick enough may come in between.

    Raises:
        TagMovedError: the tag holds something else.
        UnsupportedError: the bundle has too many chunks for an OCI manifest.
        StoreError: the registry fails.
    """
    digest = hashlib.sha256(data).hexdigest()
    held = _held(registry, tag)
    if expected is not None and held != digest and (held or "") != expected:
        raise tag_moved(f"{registry.url}:{tag}", held, expected)
    there = _companions_there(registry, digest)
    layers = {name: Layer(hashlib.sha256(found).hexdigest(), len(found)) for name, found in companions.items()}
    # Another build of the same bytes says other things about itself than those that were signed.
    kept = SIGNATURE_NAME in there and SIGNATURE_NAME not in companions
    oci, config = write_artifact(manifest, data, there if kept else {**there, **layers})
    moved = sum(len(blob) for blob in (data, *companions.values(), config) if registry.put_blob(blob))
    for reference in (digest_tag(digest), tag):
        if _manifest_at(registry, reference) != oci:
            registry.put_manifest(reference, oci)
            moved += len(oci)
    return Published(held, hashlib.sha256(oci).hexdigest(), moved)


def _held(registry: Registry, tag: str) -> str | None:
    """Returns the bundle that a tag holds; None where there is no tag, or something else's."""
    try:
        return registry.find(tag).bundle
    except (ObjectNotFoundError, ManifestError):
        return None


def _companions_there(registry: Registry, digest: str) -> Mapping[str, Layer]:
    try:
        return registry.find(digest_tag(digest)).companions
    except (ObjectNotFoundError, ManifestError):
        return {}


def _manifest_at(registry: Registry, reference: str) -> bytes | None:
    try:
        return registry.read_manifest(reference)
    except ObjectNotFoundError:
        return None
