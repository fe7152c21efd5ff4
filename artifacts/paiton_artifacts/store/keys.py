"""Where things lie in a store: the one place that knows its layout (docs/store.md)."""

from __future__ import annotations

BLOBS = "blobs/sha256"
MANIFESTS = "manifests/sha256"
TAGS = "tags"
PENDING = "pending/sha256"
COLLECTING = "gc/under-way"

MAX_TAG_BYTES = 256


def blob_key(digest: str) -> str:
    """Returns the key of a chunk or a small file: the SHA-256 of its bytes."""
    return f"{BLOBS}/{digest}"


def manifest_key(digest: str) -> str:
    """Returns the key of a manifest file, header and all."""
    return f"{MANIFESTS}/{digest}"


def companion_key(digest: str, name: str) -> str:
    """Returns the key of a file that lies beside a manifest, such as its signature (`layout.COMPANIONS`)."""
    return f"{MANIFESTS}/{digest}.{name}"


def pending_key(digest: str) -> str:
    """Returns the key of a manifest whose push has begun and not ended: its blobs are not garbage."""
    return f"{PENDING}/{digest}"


def clock_key(word: str) -> str:
    """Returns the key of an object that is written to learn what time it is in the store."""
    return f"gc/clock-{word}"


def tag_key(name: str, tag: str) -> str:
    """Returns the key of a tag, which holds `sha256:<hex>` of a manifest."""
    return f"{TAGS}/{name}/{tag}"
